"""The table of ``first_look.sh``: what every method learned and lost, as Markdown.

python -m benchmarks.lifelong.first_look OUT > table.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.stamp import stamp
from localopt.tracing.layer_trace import LayerTrace

METHODS = {
    "start": "before training",
    "full": "AdamW on everything",
    "freeze-text": "TGL+FP, traced against text",
    "freeze-facts": "TGL+FP, traced against facts to keep",
    "rescale-text": "TGL+ALR, traced against text",
    "online": "online, `AboveMean`",
}


def table(out: Path) -> str:
    """One row a method: NLL in nats a token, and the share of answers ranked first by greedy decoding."""
    header = ["method", "weights trained", "updated facts", "retained facts", "new entities", "WikiText"]
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for name, label in METHODS.items():
        scores = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
        cells = [_cell(scores[key]) for key in ("updated", "retained", "entities", "reference")]
        lines.append(f"| {label} | {_share(out / name)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def traces(out: Path) -> str:
    """What every trace chose."""
    lines = []
    for name in ("updated-text", "updated-facts", "entities-text"):
        trace = LayerTrace.load(out / f"{name}.safetensors")
        chosen = [layer for layer, scale in trace.frozen_parameters().scales.items() if scale > 0]
        largest = sorted(zip(trace.relative_norms.tolist(), trace.layers, strict=True), reverse=True)[:3]
        shown = ", ".join(f"`{layer}` {value:.2f}" for value, layer in largest)
        lines.append(f"- {name}: {len(chosen)} of {len(trace.layers)} layers above the mean; largest R: {shown}")
    return "\n".join(lines)


def _cell(score: dict[str, Any]) -> str:
    first = score["ranked_first"]
    return f"{score['nll']:.3f}" + ("" if first is None else f" ({first:.0%} first)")


def _share(folder: Path) -> str:
    if not (folder / "history.json").is_file():
        return ""
    history = json.loads((folder / "history.json").read_text(encoding="utf-8"))
    return f"{history['trained_parameters'] / history['all_parameters']:.0%}"


def main() -> None:
    """Print the table, what the traces chose, and what it was measured on."""
    out = Path(sys.argv[1])
    print(table(out), traces(out), "Measured on: " + json.dumps(stamp()), sep="\n\n")


if __name__ == "__main__":
    main()
