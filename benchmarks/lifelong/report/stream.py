"""Records of a stream -> a table, and one picture of periods by time.

    python -m benchmarks.lifelong.report.stream RUNS.jsonl ... --out FOLDER

With K(t, i) the share of period i's questions whose right answer the model finds likelier than the wrong ones after
period t of T, K(0, i) that of the start:

    average accuracy   = mean over i of K(T, i)
    backward transfer  = mean over i < T of K(T, i) - K(i, i)                 below 0: later periods cost earlier ones
    the first lost     = K(1, 1) - K(T, 1)

(Lopez-Paz and Ranzato 2017, arXiv 1706.08840). *At equal WikiText*: average accuracy on the path from the first start
to the last weights, where WikiText is up by 25, 50 and 75% of what AdamW's stream raises it by (its first rate in the
file); the difference to AdamW has a 95% interval over facts and pieces of text. FOLDER gets stream.md and stream.png.
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
from matplotlib.figure import Figure

from benchmarks.lifelong.methods.methods import METHODS
from benchmarks.lifelong.report.records import Records
from benchmarks.lifelong.report.statistics import LEVELS, Array, Curve, Scores, crossing, interval
from benchmarks.lifelong.report.tables import Table
from benchmarks.lifelong.stream.stream import NONE, StreamRecords
from localopt.errors import InputError

DRAWS = 2000

Row = dict[str, Any]
Key = tuple[str, float, str]  # method, rate, which start it decays toward


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="report.stream", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="runs.jsonl of one stream, or of several of one exam")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    given = parser.parse_args(arguments)
    try:
        found = Streams(StreamRecords.read(given.runs))
    except (InputError, OSError) as error:
        print(f"report: {error}", file=sys.stderr)
        sys.exit(2)
    given.out.mkdir(parents=True, exist_ok=True)
    made = table(found)
    markdown = f"**{made.title}**\n\n{made.markdown()}\n\n{made.note}\n"
    (given.out / "stream.md").write_text(markdown, encoding="utf-8")
    picture(found).savefig(given.out / "stream.png", dpi=150)
    print(markdown)


@dataclass(frozen=True)
class Known:
    """What the runs of one method know, averaged: `accuracy` (T + 1, P), and along the path `average` and `text`."""

    accuracy: Array
    average: Curve
    text: Curve
    near: Curve


class Streams:
    """The runs of a stream by method, rate and anchor."""

    def __init__(self, records: Records) -> None:
        self.runs: dict[Key, list[Row]] = {}
        for run in records.runs:
            self.runs.setdefault((run["method"], run["lr"], run["anchor"]), []).append(run)
        baselines = [key for key in self.runs if key[0] == "adamw"]
        if records.exam is None or not baselines:
            raise InputError("there is no stream of adamw yet, and every method is compared with it: run that first.")
        self.records = records
        self.scores = Scores(records, draws=DRAWS)
        self.first = baselines[0]
        self.taught = [*self.scores.places("A"), *self.scores.places("B")]
        self.near = self.scores.places("near")

    @cached_property
    def known(self) -> dict[Key, Known]:
        return {key: self._known(runs) for key, runs in self.runs.items()}

    def _known(self, runs: Sequence[Row]) -> Known:
        parts = [self._of(run) for run in runs]
        curves = (
            Curve(np.mean([c.mean for c in some], axis=0), np.mean([c.draws for c in some], axis=0))
            for some in zip(*((part.average, part.text, part.near) for part in parts), strict=True)
        )
        return Known(np.mean([part.accuracy for part in parts], axis=0), *curves)

    def _of(self, run: Row) -> Known:
        start = self.records.starts[run["start"]]
        of = np.array([run["period_of"][place] for place in self.taught])
        before = [start["nll"][place] for place in self.taught]
        after = np.stack([self._first(answers) for answers in (before, *(p["taught"] for p in run["periods"]))])
        accuracy = np.stack([after[:, of == period].mean(1) for period in range(len(run["periods"]))], axis=1)
        last = run["periods"][-1]
        points = [*(run["path"][share] for share in sorted(run["path"], key=float)), last]
        along = np.stack([after[0], *(self._first(point["taught"]) for point in points)])
        average = Curve(*self._mean_of_periods(along, of))
        lost = self.scores.mean(*self.scores.of_split(-self._near(start, points), "near", "test"))
        return Known(
            accuracy, average, self.scores.rise(start["text"], [p["text"] for p in points], "test"), Curve(*lost)
        )

    def _first(self, answers: Sequence[Sequence[float]]) -> Array:
        """For each question taught 1 where the right answer is the likeliest; the one that was right before is none."""
        found = []
        for place, nll in zip(self.taught, answers, strict=True):
            wrong = nll[1:-1] if self.scores.items[place]["old"] else nll[1:]
            found.append(float(nll[0] < min(wrong)))
        return np.array(found)

    def _mean_of_periods(self, values: Array, of: Array) -> tuple[Array, Array]:
        periods = [np.flatnonzero(of == period) for period in range(int(of.max()) + 1)]
        with np.errstate(invalid="ignore"):  # a draw may hold none of the facts of a period where there are few
            means = [self.scores.mean(values[:, some], [self.taught[n] for n in some]) for some in periods]
        return np.mean([mean for mean, _ in means], axis=0), np.nanmean([drawn for _, drawn in means], axis=0)

    def _near(self, start: Row, points: Sequence[Row]) -> Array:
        """How far scores of near facts have risen along the path, (S, questions), the start first."""
        before = self.scores.scores(self.near, [start["nll"][place] for place in self.near])
        return np.stack([before * 0, *(self.scores.scores(self.near, point["near"]) - before for point in points)])


def table(found: Streams) -> Table:
    header = ["method", "rate", "decays toward", "streams", "average accuracy", "backward transfer", "the first lost"]
    header += ["WikiText", "near facts lost", "written: exact", "F1"]
    header += ["average accuracy at 25 / 50 / 75% of AdamW's rise on WikiText", "less AdamW's", "training, CPU s"]
    baseline = found.known[found.first]
    before = baseline.accuracy[0].mean()
    rows = []
    for key, known in found.known.items():
        method, rate, anchor = key
        runs = found.runs[key]
        last = known.accuracy[-1]
        own = np.array([known.accuracy[period + 1, period] for period in range(len(last) - 1)])
        written = [runs_mean(run["periods"][-1]["written"][name] for run in runs) for name in ("exact", "f1")]
        at, difference = _at_equal_text(known, baseline)
        seconds = sum(period["train_cpu_seconds"] for run in runs for period in run["periods"]) / len(runs)
        row = [METHODS[method].about, f"{rate:g}", "" if anchor == NONE else f"the {anchor} start", str(len(runs))]
        row += [f"{last.mean():.1%}", f"{(last[:-1] - own).mean():+.1%}", f"{known.accuracy[1, 0] - last[0]:+.1%}"]
        row += [f"{known.text.end[0]:+.3f}", f"{known.near.end[0]:+.2f}", *(f"{value:.1%}" for value in written)]
        rows.append([*row, at, "" if key == found.first else difference, f"{seconds:.0f}"])
    note = (
        f"Accuracy: share of questions whose right answer is likelier than the wrong ones, at the end of {len(last)} "
        f"periods, averaged over them; before training {before:.1%}. Backward transfer: what later periods did to it. "
        "WikiText: rise of the NLL a token. Near facts lost: score, nats. Written: greedy decoding at the end, all "
        "periods. At equal WikiText: on the path from the first start to the end; >=: it never rises so far. "
        f"AdamW: at a rate of {found.first[1]:g}; 95% intervals over facts and pieces of text."
    )
    return Table.of_filled("What is known of every period at the end of a stream", header, rows, note)


def _at_equal_text(known: Known, baseline: Known) -> tuple[str, str]:
    """Average accuracy at the levels, and how far their mean is above AdamW's, with an interval."""
    cells, gaps, drawn = [], [], []
    end, ends = baseline.text.end
    for share in LEVELS:
        level, levels = np.array([share * end]), share * ends
        there = bool(end > 0 and (known.text.mean >= share * end).any())
        sides = [
            (
                crossing(k.average.mean[None], k.text.mean[None], level)[0],
                crossing(k.average.draws, k.text.draws, levels),
            )
            for k in (known, baseline)
        ]
        (mine, my_draws), (theirs, their_draws) = sides
        cells.append(("" if there else ">= ") + f"{mine:.1%}")
        gaps.append(mine - theirs)
        drawn.append(my_draws - their_draws)
    low, high = interval(np.mean(drawn, axis=0))
    return " / ".join(cells), f"{np.mean(gaps):+.1%} ({low:+.1%} to {high:+.1%})"


def picture(found: Streams) -> Figure:
    """A square a method: periods down, time across, what is known of a period after each."""
    many = list(found.known.items())
    columns = min(4, len(many))
    lines = -(-len(many) // columns)
    figure = Figure(figsize=(3.1 * columns, 2.9 * lines), layout="constrained")
    squares = figure.subplots(lines, columns, squeeze=False).flatten()
    for square in squares[len(many) :]:
        square.set_axis_off()
    for square, ((method, rate, anchor), known) in zip(squares, many, strict=False):
        image = square.imshow(known.accuracy.T, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        for (after, period), share in np.ndenumerate(known.accuracy):
            color = "black" if share > 0.6 else "white"
            weight = "bold" if after == period + 1 else "normal"
            square.text(after, period, f"{share:.0%}", ha="center", va="center", color=color, fontsize=8, weight=weight)
        decay = "" if anchor == NONE else f", {anchor} start"
        runs = found.runs[method, rate, anchor]
        f1 = runs_mean(run["periods"][-1]["written"]["f1"] for run in runs)
        square.set_title(f"{method}{decay}\nWikiText {known.text.end[0]:+.2f}, F1 {f1:.0%}", fontsize=9)
        periods = known.accuracy.shape[1]
        square.set_xticks(range(periods + 1), ["start", *map(str, range(1, periods + 1))])
        square.set_yticks(range(periods), [str(period + 1) for period in range(periods)])
    figure.supxlabel("after period")
    figure.supylabel("period asked about")
    figure.colorbar(image, ax=list(squares), label="right answer likeliest", shrink=0.6)
    return figure


def runs_mean(values: Any) -> float:
    """The mean over runs of the means of their lists."""
    return float(np.mean([np.mean(some) for some in values]))


if __name__ == "__main__":
    main()
