"""What a budget of forgetting buys: uptake where WikiText has risen by so many nats a token, beside AdamW.

    python -m benchmarks.lifelong.report.budgets EvolveBench=A.jsonl.xz,B.jsonl.xz Fictional=RUNS.jsonl \\
        --methods corpus-fp-selective@2.4e-3 selective@1.2e-3 corpus-random*-selective@2.4e-3 --out FOLDER

A method's uptake at a budget b is the mean, over halves and seeds, of that on the path from the start to the end of its
training where the rise of WikiText first reaches b, or of its end where it never does (a lower bound). It is divided by
AdamW's over the same halves and seeds, at the rate that is best *at this budget* of all that were run on them: nobody
who has a budget would train at another. The rate of the methods is the one that was chosen on half A with the first
seed. A name with stars stands for all methods that match it, averaged (random draws). With --against NAME@RATE the
methods are also divided by that one, over the halves and seeds that both were run on. FOLDER gets budgets.md and
budgets.png.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path as FilePath

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.lifelong.methods.methods import METHODS
from benchmarks.lifelong.report.records import Records
from benchmarks.lifelong.report.statistics import DRAWS, Array, Path, Scores, crossing, interval
from benchmarks.lifelong.report.tables import Table
from localopt.errors import InputError

BUDGETS = (0.05, 0.1, 0.2, 0.4)  # nats a token
FINE = np.linspace(0.01, BUDGETS[-1], 40)
COLORS = ("#999999", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")  # Okabe and Ito's, told apart by all

Cell = tuple[str, int]  # half and seed
Bought = tuple[Array, Array, Array]  # uptake at each budget (K,), of every draw (B, K), share of paths that get there


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="report.budgets", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("sets", nargs="+", metavar="NAME=FILE,FILE", help="records of one data set, its name first")
    parser.add_argument("--methods", nargs="+", required=True, metavar="NAME@RATE[=LABEL]", help="beside AdamW")
    parser.add_argument("--against", nargs="+", default=[], metavar="NAME@RATE[=LABEL]", help="also beside these")
    parser.add_argument("--out", type=FilePath, required=True, metavar="FOLDER")
    parser.add_argument("--draws", type=int, default=DRAWS, help="of the bootstrap")
    given = parser.parse_args(arguments)
    try:
        sets = {name: DataSet(records, given.draws) for name, records in map(_named_records, given.sets)}
        wanted = [_wanted(text) for text in given.methods]
        for one in wanted:
            if not any(found.of(one) for found in sets.values()):
                raise InputError(f"no run of {one.name} at {one.rate:g} in these files: run it, or leave it out.")
        parts = [f"**{name}**\n\n{table(found, wanted).markdown()}" for name, found in sets.items()]
        for other in map(_wanted, given.against):
            beside = {name: against(found, wanted, other).markdown() for name, found in sets.items() if found.of(other)}
            parts += [f"**{name}, relative to: {other.about}**\n\n{shown}" for name, shown in beside.items()]
    except (InputError, OSError) as error:
        print(f"budgets: {error}", file=sys.stderr)
        sys.exit(2)
    given.out.mkdir(parents=True, exist_ok=True)
    page = "\n\n".join(["# What a budget of forgetting buys", *parts, NOTE, REPEAT]) + "\n"
    (given.out / "budgets.md").write_text(page, encoding="utf-8")
    picture(sets, wanted).savefig(given.out / "budgets.png", dpi=150)
    print(page)


NOTE = (
    "Uptake where WikiText has risen by so many nats a token, relative to AdamW's at the rate that is best there, over "
    "the same halves and seeds; 95% intervals over facts and pieces of text. >=: the training of some of them ends "
    "before, and they count with their end."
)
REPEAT = "Made by `python -m benchmarks.lifelong.report.budgets`, with the lines and rates above as its methods."


@dataclass(frozen=True)
class Wanted:
    """Methods whose names match `name`, at one rate."""

    name: str
    rate: float
    label: str = ""

    def matches(self, method: str, rate: float) -> bool:
        return rate == self.rate and fnmatchcase(method, self.name)

    @property
    def about(self) -> str:
        return self.label or (METHODS[self.name].about if self.name in METHODS else f"{self.name}, averaged")


class DataSet:
    """The runs of one data set by method and rate, half and seed."""

    def __init__(self, records: Records, draws: int = DRAWS) -> None:
        self.scores = Scores(records, draws)
        self.runs: dict[tuple[str, float], dict[Cell, Path]] = {}
        for run in records.runs:
            mine = self.runs.setdefault((run["method"], run["lr"]), {})
            mine[run["half"], run["seed"]] = self.scores.path([run])

    def of(self, wanted: Wanted) -> dict[Cell, list[Path]]:
        """The paths of what matches, by half and seed."""
        found: dict[Cell, list[Path]] = {}
        for (method, rate), paths in self.runs.items():
            if wanted.matches(method, rate):
                for cell, path in paths.items():
                    found.setdefault(cell, []).append(path)
        return found

    def adamw(self, cells: Iterable[Cell], budgets: Array) -> tuple[Array, Array, list[float]]:
        """AdamW's uptake at each budget (K,), that of every draw (B, K), and the rates: the best at each.

        Raises:
            InputError: no rate at which AdamW was run on all of these halves and seeds.
        """
        cells = list(cells)
        tried = {
            rate: bought([paths[cell] for cell in cells], budgets)
            for (method, rate), paths in self.runs.items()
            if method == "adamw" and all(cell in paths for cell in cells)
        }
        if not tried:
            named = ", ".join(f"{half}, seed {seed}" for half, seed in sorted(cells))
            raise InputError(f"no rate at which adamw was run on {named}: run it on all of these.")
        best = [max(tried, key=lambda rate, at=k: tried[rate][0][at]) for k in range(len(budgets))]  # type: ignore[misc]
        means = np.array([tried[rate][0][k] for k, rate in enumerate(best)])
        draws = np.stack([tried[rate][1][:, k] for k, rate in enumerate(best)], axis=1)
        return means, draws, best


def bought(paths: Sequence[Path], budgets: Array) -> Bought:
    """The mean of what some paths take in at each budget.

    >>> from benchmarks.lifelong.report.statistics import Curve
    >>> curve = lambda *values: Curve(np.array(values), np.array([values]))
    >>> zero, path = curve(0.0, 0.0), Path(curve(0.0, 4.0), *[curve(0.0, 0.0)] * 3, curve(0.0, 0.2))
    >>> bought([path], np.array([0.05, 0.4]))[0]
    array([1., 4.])
    """
    means, draws, there = [], [], []
    for path in paths:
        columns = range(len(budgets))
        lost, many = path.text, len(path.text.draws)
        means.append([crossing(path.uptake.mean[None], lost.mean[None], budgets[[k]])[0] for k in columns])
        draws.append([crossing(path.uptake.draws, lost.draws, np.full(many, budgets[k])) for k in columns])
        there.append(lost.mean.max() >= budgets)
    return np.mean(means, axis=0), np.mean(draws, axis=0).T, np.mean(there, axis=0)


def table(found: DataSet, wanted: Sequence[Wanted], budgets: Sequence[float] = BUDGETS) -> Table:
    """One row a method that was run, in the order given, below AdamW on the same halves and seeds, in nats.

    Raises:
        InputError: AdamW was not run on the same halves and seeds.
    """
    at = np.array(budgets)
    rows: list[list[str]] = []
    for one in wanted:
        paths = found.of(one)
        if not paths:
            continue
        means, draws, rates = found.adamw(paths, at)
        rows.append(_beside(paths, means, rates))
        mine, my_draws, there = bought([path for some in paths.values() for path in some], at)
        row = [one.about, f"{one.rate:g}", _cells(paths)]
        for k in range(len(at)):
            low, high = interval(my_draws[:, k] / draws[:, k])
            row.append(f"{'' if there[k] == 1 else '>= '}{mine[k] / means[k]:.2f} ({low:.2f} to {high:.2f})")
        rows.append(row)
    shown = [row for n, row in enumerate(rows) if row not in rows[:n]]  # AdamW once for the same halves and seeds
    return Table("What a budget buys", ["method", "rate", "runs", *(f"+{b:g}" for b in budgets)], shown, NOTE)


def against(found: DataSet, wanted: Sequence[Wanted], other: Wanted, budgets: Sequence[float] = BUDGETS) -> Table:
    """One row a method: its uptake over another's, on the halves and seeds that both were run on."""
    at, rows = np.array(budgets), []
    theirs = found.of(other)
    for one in wanted:
        mine = found.of(one)
        cells = sorted(mine.keys() & theirs.keys())
        if not cells or one.name == other.name:
            continue
        (my, my_draws, _), (their, their_draws, _) = (
            bought([path for cell in cells for path in paths[cell]], at) for paths in (mine, theirs)
        )
        spans = [interval(my_draws[:, k] / their_draws[:, k]) for k in range(len(at))]
        ratios = [f"{my[k] / their[k]:.2f} ({low:.2f} to {high:.2f})" for k, (low, high) in enumerate(spans)]
        rows.append([one.about, f"{one.rate:g}", _cells(dict.fromkeys(cells)), *ratios])
    return Table("Beside another", ["method", "rate", "runs", *(f"+{b:g}" for b in budgets)], rows, NOTE)


def _beside(paths: Mapping[Cell, object], means: Array, rates: Sequence[float]) -> list[str]:
    told = [f"{mean:.2f} nats ({rate:g})" for mean, rate in zip(means, rates, strict=True)]
    return ["AdamW (at its best rate)", "", _cells(paths), *told]


def _cells(paths: Mapping[Cell, object]) -> str:
    return ", ".join(f"{half}{seed}" for half, seed in sorted(paths))


def picture(sets: Mapping[str, DataSet], wanted: Sequence[Wanted]) -> Figure:
    """One square a data set: uptake against the budget, of AdamW and of each method.

    Intervals of uptake would mostly show how facts differ from each other, which all methods share: those of the ratios
    are in the table.
    """
    figure = Figure(figsize=(5.2 * len(sets), 4.6), layout="constrained")
    for axes, (name, found) in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets.items(), strict=True):
        ran = [(one, color, found.of(one)) for one, color in zip(wanted, COLORS[1:], strict=False)]
        most = max((paths for _, _, paths in ran), key=len)
        # Means over fewer halves and seeds cannot be seen beside these: the table has them, beside an AdamW of theirs.
        lines = [(one, color, paths) for one, color, paths in ran if paths.keys() == most.keys()]
        _line(axes, found.adamw(most, FINE)[0], COLORS[0], "AdamW, at the rate that is best for the budget")
        for one, color, paths in lines:
            _line(axes, bought([path for some in paths.values() for path in some], FINE)[0], color, one.about)
        axes.set(title=name, xlabel="how far ordinary text got worse (WikiText, nats a token)", xlim=(0, FINE[-1]))
        axes.set_ylabel("how much of the new facts was taken in (nats)")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    named = {text: line for axes in figure.axes for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return figure


def _line(axes: Axes, values: Array, color: str, label: str) -> None:
    axes.plot([0.0, *FINE], [0.0, *values], color=color, label=label, linewidth=2)


def _named_records(text: str) -> tuple[str, Records]:
    name, _, files = text.partition("=")
    if not name or not files:
        raise InputError(f"{text!r} is not NAME=FILE,FILE: give the data set's name, an equals sign, and its records.")
    records = Records.read([FilePath(file) for file in files.split(",")])
    if not records.runs:
        raise InputError(f"{name}: no runs in {files}: name the records of a sweep.")
    return name, records


def _wanted(text: str) -> Wanted:
    name, _, rest = text.partition("@")
    rate, _, label = rest.partition("=")
    try:
        found = Wanted(name, float(rate), label)
    except ValueError:
        raise InputError(f"{text!r} is not NAME@RATE or NAME@RATE=LABEL, as in selective@1.2e-3.") from None
    if not any(fnmatchcase(method, name) for method in METHODS):
        raise InputError(f"{name!r}: there is no such method; there are {', '.join(METHODS)}.")
    return found


if __name__ == "__main__":
    main()
