"""Runs with measures -> one table and one heat map.

    python -m benchmarks.lifelong.measures.report RUNS.jsonl ... --out FOLDER [--halves A B E]

A difference between two methods is *within noise* where the 95% interval of it, from resampling the groups of questions
that are not independent, holds 0; it is not corrected for how many are shown. Seeds of one method count as more
questions of the same groups. FOLDER gets measures.md and measures.png.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.lifelong.measures.definitions import DEFINITIONS, Values, figure
from benchmarks.lifelong.measures.measuring import START, MeasureRecords
from benchmarks.lifelong.report.records import Records
from benchmarks.lifelong.report.tables import Table
from localopt.errors import InputError

DRAWS = 2000
BASELINE = "adamw"

Row = dict[str, Any]
Method = tuple[str, float]  # name, rate
Array = npt.NDArray[np.float64]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="measures.report", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="runs.jsonl of benchmarks.lifelong.measures")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--halves", nargs="+", metavar="HALF", help="those to report; methods that lack one are left out"
    )
    given = parser.parse_args(arguments)
    try:
        board = Board(MeasureRecords.read(given.runs), given.halves)
    except (InputError, OSError) as error:
        print(f"report: {error}", file=sys.stderr)
        sys.exit(2)
    given.out.mkdir(parents=True, exist_ok=True)
    made = [table(board), against(board)]
    markdown = "\n".join(f"**{one.title}**\n\n{one.markdown()}\n\n{one.note}\n" for one in made)
    (given.out / "measures.md").write_text(markdown, encoding="utf-8")
    picture(board).savefig(given.out / "measures.png", dpi=150)
    print(markdown)


@dataclass(frozen=True)
class Taken:
    """One measure of one method: the figure, and the figures of resampled groups, (DRAWS,)."""

    value: float
    draws: Array


class Board:
    """The runs by method, and what was measured.

    Raises:
        InputError: no start, or no method that has all halves.
    """

    def __init__(self, records: Records, halves: Sequence[str] | None = None) -> None:
        self.starts = {run["half"]: run for run in records.runs if run["method"] == START}
        self.halves = list(halves or dict.fromkeys(run["half"] for run in records.runs))
        if missing := [half for half in self.halves if half not in self.starts]:
            raise InputError(f"the start was not measured on {', '.join(missing)}: go on with those runs first.")
        runs: dict[Method, list[Row]] = {}
        for run in records.runs:
            if run["half"] in self.halves:
                runs.setdefault((run["method"], run["lr"]), []).append(run)
        whole = {key: some for key, some in runs.items() if {run["half"] for run in some} == set(self.halves)}
        self.left_out = sorted(
            {name for name, _ in runs.keys() - whole.keys()} | {r["method"] for r in records.diverged}
        )
        self.runs = whole
        self.methods = [key for key in whole if key[0] != START]
        if not self.methods:
            raise InputError(f"no method has been run on {' and '.join(self.halves)} yet: go on, or give --halves.")
        self.names = [name for name in DEFINITIONS if any(name in run["measures"] for run in self.starts.values())]
        self.names = [name for name in self.names if any(name in self.starts[half]["measures"] for half in self.halves)]
        self.start = next(key for key in whole if key[0] == START)
        self.first = next((key for key in self.methods if key[0] == BASELINE), self.methods[0])

    @cached_property
    def taken(self) -> dict[str, dict[Method, Taken]]:
        return {name: {key: self._take(name, key) for key in [self.start, *self.methods]} for name in self.names}

    def _take(self, name: str, key: Method) -> Taken:
        values, groups, weights = [], [], []
        for run in self.runs[key]:
            start = self.starts[run["half"]]
            if name in run["measures"]:
                values += run["measures"][name]
                groups += [f"{run['half']} {group}" for group in start["groups"][name]]
                weights += start["weights"].get(name) or [1.0] * len(run["measures"][name])
        value = figure(name, Values(values, groups, weights))
        return Taken(value, resampled(values, groups, weights, DEFINITIONS[name].perplexity))

    def difference(self, name: str, one: Method, other: Method) -> tuple[float, float, float]:
        """How far the one is above the other, and the 95% interval of it."""
        a, b = self.taken[name][one], self.taken[name][other]
        low, high = np.percentile(a.draws - b.draws, [2.5, 97.5])
        return a.value - b.value, float(low), float(high)

    def within_noise(self, name: str, one: Method, other: Method) -> bool:
        _, low, high = self.difference(name, one, other)
        return low <= 0 <= high

    def best(self, name: str) -> Method | None:
        better = DEFINITIONS[name].better
        return max(self.methods, key=lambda key: better * self.taken[name][key].value) if better else None

    def layers(self, name: str, key: Method) -> dict[str, float]:
        """Accuracy or selectivity of probes by layer, mean over runs."""
        found = [run["layers"][name] for run in self.runs[key] if "layers" in run]
        return {layer: float(np.mean([one[layer] for one in found])) for layer in (found[0] if found else {})}


def resampled(values: Sequence[float], groups: Sequence[str], weights: Sequence[float], perplexity: bool) -> Array:
    """The figure for DRAWS draws of as many groups, with replacement; the same draws for every list of these groups."""
    names = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    of = np.array([names[group] for group in groups])
    sums, totals = (np.bincount(of, weights=np.asarray(each, dtype=float)) for each in (values, weights))
    counts = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), size=DRAWS)
    found: Array = (counts @ sums) / (counts @ totals)
    return np.exp(found) if perplexity else found


def shown(name: str, value: float) -> str:
    return f"{value:.1f}" if DEFINITIONS[name].perplexity else f"{value:.2f}"


def label(key: Method) -> str:
    return key[0] if key[0] == START else f"{key[0]} {key[1]:g}"


def table(board: Board) -> Table:
    """Measures down, methods across: the best in bold, what is within noise of it with a sign."""
    header = ["system", "measure", *(label(key) for key in [board.start, *board.methods])]
    rows = []
    for name in board.names:
        best, definition = board.best(name), DEFINITIONS[name]
        cells = [shown(name, board.taken[name][board.start].value)]
        for key in board.methods:
            text = shown(name, board.taken[name][key].value)
            if key == best:
                text = f"**{text}**"
            elif best and board.within_noise(name, key, best):
                text += " ≈"
            cells.append(text)
        rows.append([definition.system, name + (" ↓" if definition.better < 0 else ""), *cells])
    left = f" Without {', '.join(board.left_out)}, which lack one of them or diverged." if board.left_out else ""
    note = (
        f"Taught: {', '.join(board.halves)}. Bold: the best of the methods; ≈: within noise of it, the 95% interval of "
        f"the difference, over groups of questions, holds 0. ↓: less is better. A row without bold has no better side."
        f"{left} What each measure is: `benchmarks/lifelong/measures/definitions.py`."
    )
    return Table("Methods by the measures of the field", header, rows, note)


def against(board: Board) -> Table:
    """What each method is better and worse at than AdamW, beyond noise."""
    rows = []
    for key in board.methods:
        if key == board.first:
            continue
        better, worse = [], []
        for name in board.names:
            sign = DEFINITIONS[name].better
            gap, low, high = board.difference(name, key, board.first)
            if sign and not low <= 0 <= high:
                digits = 1 if DEFINITIONS[name].perplexity else 2
                (better if sign * gap > 0 else worse).append(f"{name} {gap:+.{digits}f}")
        rows.append([label(key), ", ".join(better) or "nothing", ", ".join(worse) or "nothing"])
    note = "Differences whose 95% interval leaves 0 out, not corrected for their number: of every twenty one is chance."
    return Table(f"Against {label(board.first)}", ["method", "better", "worse"], rows, note)


def picture(board: Board) -> Figure:
    """Differences to AdamW by measure and method; what became of the probes, by layer and method."""
    figure = Figure(figsize=(4.5 + 1.1 * len(board.methods), 2.5 + 0.27 * len(board.names)), layout="constrained")
    probed = [name for name in ("dependency", "part of speech") if name in board.names]
    axes = figure.subplots(1, 1 + len(probed), squeeze=False, width_ratios=[2, *[1] * len(probed)])[0]
    others = [key for key in board.methods if key != board.first]
    names = [name for name in board.names if DEFINITIONS[name].better]
    score = np.array([[_deviations(board, name, key) for key in others] for name in names]).reshape(len(names), -1)
    _heat(
        axes[0], score, names, others, 4.0, f"against {label(board.first)}, in standard errors: green is better", "+.1f"
    )
    for axis, name in zip(axes[1:], probed, strict=True):
        before = board.layers(name, board.start)
        change = np.array([[board.layers(name, key)[n] - before[n] for key in board.methods] for n in before])
        _heat(
            axis,
            100 * change,
            [f"layer {n}" for n in before],
            board.methods,
            5.0,
            f"{name}: points since start",
            "+.1f",
        )
    return figure


def _deviations(board: Board, name: str, key: Method) -> float:
    """The difference to AdamW in standard errors, above 0 where it is better; 0 where nothing differs."""
    a, b = board.taken[name][key], board.taken[name][board.first]
    error = float((a.draws - b.draws).std())
    return DEFINITIONS[name].better * (a.value - b.value) / error if error > 0 else 0.0


def _heat(
    axis: Axes, values: Array, down: Sequence[str], across: Sequence[Method], most: float, title: str, form: str
) -> None:
    axis.imshow(values, vmin=-most, vmax=most, cmap="RdYlGn", aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        axis.text(column, row, f"{value:{form}}", ha="center", va="center", fontsize=7)
    axis.set_xticks(range(len(across)), [label(key) for key in across], rotation=60, ha="right", fontsize=7)
    axis.set_yticks(range(len(down)), down, fontsize=7)
    axis.set_title(title, fontsize=8)


if __name__ == "__main__":
    main()
