"""The picture of ``benchmarks.speed.step``: cost of a step against the share of parameters it updates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

PANELS = {
    "step / fused AdamW": (
        "online / AdamW",
        "its floor",
        "localized (norms every step)",
        "floor: share updated + reading the gradients once",
    ),
    "step with clipping / (clip_grad_norm_ + fused AdamW)": (
        "online + clip / clip + AdamW",
        "its floor by bytes",
        "localized, clipping included",
        "floor: the bytes it must move",
    ),
}


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw the first model of ``results``, as :mod:`benchmarks.speed.step` writes them, to a picture file."""
    name, model = next(iter(results["models"].items()))
    figure = Figure((8, 3.4), layout="constrained")
    axes = figure.subplots(1, len(PANELS), sharey=True)
    for panel, (title, (measured, floor, label, floor_label)) in zip(axes, PANELS.items(), strict=True):
        shares = [entry["share"] for entry in model["shares"].values()]
        medians, lows, highs = zip(*(entry["ratios"][measured] for entry in model["shares"].values()), strict=True)
        floors = [entry["ratios"][floor] for entry in model["shares"].values()]
        panel.axhline(1, color="#999999", linewidth=1, linestyle=":")
        panel.plot(shares, floors, color="#333333", linewidth=1, linestyle="--", label=floor_label)
        panel.fill_between(shares, lows, highs, color="#0072B2", alpha=0.2, linewidth=0)
        panel.plot(shares, medians, color="#0072B2", marker="o", markersize=4, label=label)
        panel.set(title=title, xlabel="share of the parameters updated", xlim=(0, 1.03), ylim=(0, None))
        panel.title.set_fontsize(9)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, fontsize=8, loc="upper left")
    stamp = results["stamp"]
    machine = ", ".join(stamp["accelerators"]) or f"{stamp['cpu']}, {stamp['threads']} threads"
    figure.suptitle(f"{name}, {results['dtype']}, {machine}, torch {stamp['versions']['torch']}", fontsize=9)
    figure.savefig(path, dpi=150)
