"""What came out -> a table on the terminal, and a folder of pictures, traces and numbers."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from localopt import __version__
from localopt.demo.folder import filled
from localopt.demo.tiny.exam import Scores
from localopt.demo.tiny.experiment import THREADS, WAY, Outcome
from localopt.plots import Run, learning_forgetting
from localopt.tracing.layer_trace import LayerTrace

_READING = (
    "updated, new, unchanged: share of questions about these facts that the model answers with the right name first of "
    "all words, in wordings it was never trained on. The news repeats no unchanged fact: what is missing there is "
    "forgotten. (text), (keep): traced against old text, against other facts to keep. loss: nats per answer. "
    "peak: tensors alive in a step.",
    "A toy: one invented world, one tiny model, one learning rate (chosen with AdamW alone). It shows the parts at "
    "work; which method suits a real model has to be measured there, and times and memory too.",
)


def show(outcome: Outcome, console: Console) -> None:
    """Print the table and how to read it."""
    world, before = outcome.world, outcome.before
    was, now = world.outdated[0], world.updated[0]
    console.print(
        f"A Llama of {outcome.parameters:,} weights knew {outcome.known:.0%} of the "
        f"{len(world.outdated) + len(world.unchanged)} facts of an invented world. Then {len(world.updated)} of them "
        f"changed and {len(world.new)} new ones came. [i]{was}[/] became [i]{now}[/], for one.",
        highlight=False,
    )
    table = Table(title="After reading the news")
    table.add_column("method", no_wrap=True)
    for name in ("updated", "new", "unchanged", "loss", "weights\nupdated", "train\ns", "peak\nMiB"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("before the news", *_cells(before), "", "", "", style="dim", end_section=True)
    for result in outcome.results:
        effort = result.effort
        cost = f"{effort.share_updated:.0%}", f"{effort.seconds:.1f}", f"{effort.peak_bytes / 2**20:.1f}"
        table.add_row(result.method, *_cells(result.scores), *cost)
    console.print(table)
    for line in _READING:
        console.print(line, style="dim", highlight=False, markup=False)


def write(outcome: Outcome, folder: Path) -> None:
    """Fill ``folder``, which does not exist or is empty."""
    with filled(folder) as partial:
        for name, trace, title in _traces(outcome):
            trace.save(partial / f"trace-{name}.safetensors")
            trace.plot(partial / f"trace-{name}.png", title=title)
        _picture(outcome, partial / "learning-forgetting.png")
        (partial / "results.json").write_text(json.dumps(_numbers(outcome), indent=2) + "\n", encoding="utf-8")


def _cells(scores: Scores) -> tuple[str, ...]:
    return f"{scores.updated:.0%}", f"{scores.new:.0%}", f"{scores.unchanged:.0%}", f"{scores.loss:.2f}"


def _traces(outcome: Outcome) -> tuple[tuple[str, LayerTrace, str], ...]:
    return (
        ("text", outcome.traces.text, "Updated facts, relative to old text"),
        ("keep", outcome.traces.keep, "Updated facts, relative to facts to keep"),
    )


def _picture(outcome: Outcome, path: Path) -> None:
    """What each method forgot and learned, in points of accuracy, on the way to its final weights."""

    def point(scores: Scores) -> tuple[float, float]:
        before = outcome.before
        return 100 * (before.unchanged - scores.unchanged), 100 * (scores.news - before.news)

    runs = [Run(r.method, *point(r.scores), path=[(0, 0), *map(point, r.way)]) for r in outcome.results]
    figure = learning_forgetting(
        runs,
        title="Weights 1/4, 1/2, 3/4 and all the way from before the news to after",
        forgetting="unchanged facts: points of accuracy lost",
        uptake="updated and new facts: points gained",
    )
    figure.savefig(path, dpi=150)


def _numbers(outcome: Outcome) -> dict[str, Any]:
    world = outcome.world
    return {
        "seed": outcome.seed,
        "size": asdict(outcome.size),
        "facts": {name: len(getattr(world, name)) for name in ("updated", "new", "unchanged")},
        "parameters": outcome.parameters,
        "old_facts_known": outcome.known,
        "before": asdict(outcome.before),
        "results": [asdict(result) for result in outcome.results],
        "way": WAY,
        "traces": {
            name: {
                "relative_norms": dict(zip(trace.layers, trace.relative_norms.tolist(), strict=True)),
                "trained": [layer for layer, scale in trace.frozen_parameters().scales.items() if scale > 0],
            }
            for name, trace, _ in _traces(outcome)
        },
        "machine": {"platform": platform.platform(), "processor": platform.machine(), "threads": THREADS},
        "versions": {"localopt": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
