"""Which runs stand for a method, how methods are compared, and the numbers of single runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from benchmarks.lifelong.methods.methods import METHODS
from benchmarks.lifelong.report.contrasts import RANDOM, RANDOM_CORPUS, RANDOM_GAIN_DAMAGE, RANDOM_KEPT, Best
from benchmarks.lifelong.report.records import Records
from benchmarks.lifelong.report.statistics import (
    Comparison,
    Measure,
    Path,
    Scores,
    compare,
    interval,
    uptake_at_levels,
)
from localopt.errors import InputError

Row = dict[str, Any]
Cell: TypeAlias = tuple[str, int]  # a half and a seed


class Findings:
    """The runs of each method at the rate chosen for it, and their paths."""

    def __init__(self, records: Records) -> None:
        if records.exam is None or not any(run["method"] == "adamw" for run in records.runs):
            raise InputError("there is no run of adamw yet, and every method is compared with it: run that first.")
        self.records = records
        self.scores = Scores(records)
        first = next(run["lr"] for run in records.runs if run["method"] == "adamw")
        self.baseline = [run for run in records.runs if (run["method"], run["lr"]) == ("adamw", first)]
        self.rates = self._rates()
        self.runs: dict[str, list[Row]] = {
            method: _balanced([run for run in records.runs if (run["method"], run["lr"]) == (method, rate)])
            for method, rate in self.rates.items()
        }

    @cached_property
    def paths(self) -> dict[str, Path]:
        return {method: self.scores.path(runs) for method, runs in self.runs.items()}

    def _rates(self) -> dict[str, float]:
        """Each method's rate: of those run on half A with the first seed, the best.

        That is the one that takes in most where the NLL of the pieces of text kept apart for this rises alike; the
        questions are half A's own, so of what is tested half B alone is untouched by the choice. A method that was run
        at one rate has that one. Random draws of a kind share a rate, that at which most of them were run.
        """
        seed = min(run["seed"] for run in self.records.runs)
        tried: dict[str, dict[float, Path]] = {}
        for run in self.records.runs:
            if (run["half"], run["seed"]) == ("A", seed):
                tried.setdefault(run["method"], {})[run["lr"]] = self.scores.path([run], "dev")
        rates = {run["method"]: run["lr"] for run in reversed(self.records.runs)}
        baselines = [run for run in self.baseline if (run["half"], run["seed"]) == ("A", seed)]
        if baselines:
            baseline = self.scores.path(baselines, "dev")
            for method, paths in tried.items():
                at = {lr: mean(uptake_at_levels(path, baseline, "text")[0]) for lr, path in paths.items()}
                rates[method] = max(at, key=lambda lr: at[lr])
        for draws in (RANDOM, RANDOM_KEPT, RANDOM_GAIN_DAMAGE, RANDOM_CORPUS):
            ran = {(run["method"], run["lr"]) for run in self.records.runs if run["method"] in draws}
            if ran:
                most = Counter(lr for _, lr in ran).most_common(1)[0][0]
                rates |= {method: most for method, lr in ran if lr == most}
        return {method: rates[method] for method in METHODS if method in rates}

    def shared(self, methods: Sequence[str]) -> set[Cell]:
        """(half, seed) that all of these methods ran, and AdamW at the rate that sets the levels."""
        return set.intersection(*map(cells_of, [self.baseline, *(self.runs[method] for method in methods)]))

    def draws(self, side: Sequence[str], cells: Collection[Cell]) -> list[str]:
        """The methods of a side that ran some of these cells; of `Best` the one that takes in most.

        Of several random draws some may have run more than others: those with which most runs can be compared.
        """
        ran = {method: cells_of(self.runs[method]) & set(cells) for method in side if method in self.runs}
        ran = {method: mine for method, mine in ran.items() if mine}
        groups = [[other for other in ran if ran[other] >= mine] for mine in ran.values()]
        there = max(groups, key=lambda group: len(group) * len(set.intersection(*(ran[m] for m in group))), default=[])
        if isinstance(side, Best) and there:
            shared = self.shared(there) & set(cells)
            baseline = self.baseline_path(shared)
            at = {method: mean(uptake_at_levels(self.path(method, shared), baseline, "text")[0]) for method in there}
            return [max(there, key=lambda method: at[method])]
        return there

    def path(self, method: str, cells: set[Cell], kind: str | None = None) -> Path:
        return self.scores.path((r for r in self.runs[method] if (r["half"], r["seed"]) in cells), kind=kind)

    def baseline_path(self, cells: set[Cell], kind: str | None = None) -> Path:
        return self.scores.path((r for r in self.baseline if (r["half"], r["seed"]) in cells), kind=kind)

    def compare(
        self, one: Sequence[str], other: Sequence[str], measure: Measure, cells: Collection[Cell] | None = None
    ) -> Comparison | None:
        """None where runs are missing, or AdamW does not certainly forget by this measure: there is no level then."""
        cells = cells_of(self.baseline) if cells is None else cells
        one, other = self.draws(one, cells), self.draws(other, cells)
        if not one or not other:
            return None
        shared = self.shared([*one, *other]) & set(cells)
        if not shared:
            return None
        baseline = self.baseline_path(shared)
        if interval(getattr(baseline, measure).end[1])[0] <= 0:
            return None
        paths = [[self.path(method, shared) for method in side] for side in (one, other)]
        return compare(paths[0], paths[1], baseline, measure, names(shared))

    def uptakes(self, method: str, cells: set[Cell], measure: Measure) -> str:
        found, _, there = uptake_at_levels(self.path(method, cells), self.baseline_path(cells), measure)
        return " / ".join(("" if t else ">= ") + f"{u:.2f}" for u, t in zip(found, there, strict=True))

    def written(self, runs: Sequence[Row], kind: str | None = None) -> list[str]:
        """Exact match and F1 of what is written at the end, of all questions decoded or of one kind."""
        if kind is None:
            return [f"{mean(run['end'][name] for run in runs):.1%}" for name in ("exact", "f1")]
        return [f"{mean(mean(self.scores.written(run, name, kind)) for run in runs):.1%}" for name in ("exact", "f1")]

    def f1(self, side: Sequence[str]) -> str:
        return f"{mean(run['end']['f1'] for method in side for run in self.runs.get(method, [])):.1%}"

    def written_before(self) -> str:
        starts = list(self.records.starts.values())
        means = {name: mean(row[half][name] for row in starts for half in ("A", "B")) for name in ("exact", "f1")}
        return ", ".join(f"{name} {mean:.1%}" for name, mean in means.items())

    def diverged(self, runs: Sequence[Row]) -> str:
        """KL at the end; runs of before it was measured have none."""
        if not all("kl" in run["points"]["1.0"] for run in runs):
            return ""
        return f"{mean(mean(run['points']['1.0']['kl']) for run in runs):.3f}"

    def _tested(self) -> list[tuple[int, str]]:
        """Where the tested near facts stand in the lists of near facts, and which they are."""
        items = [self.scores.items[i] for i in self.scores.places("near")]
        return [(n, item["fact"]) for n, item in enumerate(items) if item["split"] == "test"]

    def first(self, run: Row) -> float:
        """Share of the tested near facts whose answer is still the likeliest under both phrasings."""
        answers = run["points"]["1.0"]["near"]
        lost = {fact for n, fact in self._tested() if min(answers[n][1:]) <= answers[n][0]}
        return 1 - len(lost) / len({fact for _, fact in self._tested()})

    def over_old(self, run: Row) -> float | None:
        """Share of the facts taught that had another answer before where the new one is likelier; None without any."""
        items = [self.scores.items[i] for i in self.scores.places(run["half"])]
        taught = zip(items, run["points"]["1.0"]["taught"], strict=True)
        found = [nll[0] < nll[-1] for item, nll in taught if item["old"]]
        return mean(found) if found else None

    def entities(self, run: Row) -> float:
        return float(run["end"]["entities"] - self.records.starts[run["start"]][run["half"]]["entities"])

    def relearned(self, run: Row) -> float:
        """Score of the tested near facts below the start's, both after the reminder."""
        start = self.records.starts[run["start"]]["relearned"]
        return self.scores.fallen(run, run["relearned"], "near")[0] - self.scores.fallen(run, start, "near")[0]


def names(cells: Iterable[Cell]) -> tuple[str, ...]:
    """A half's name, and the seed's where it is not the first.

    >>> names([("B", 0), ("A", 0), ("A", 1)])
    ('A', 'A1', 'B')
    """
    return tuple(sorted(f"{half}{seed or ''}" for half, seed in cells))


def named(runs: Sequence[Row]) -> str:
    return ", ".join(names(cells_of(runs)))


def cells_of(runs: Sequence[Row]) -> set[Cell]:
    return {(run["half"], run["seed"]) for run in runs}


def _balanced(runs: Sequence[Row]) -> list[Row]:
    """The runs of the seeds that were run on as many halves as any: means over others would lean to one half."""
    halves = Counter(run["seed"] for run in runs)
    return [run for run in runs if halves[run["seed"]] == max(halves.values())]


def mean(values: Any) -> float:
    return float(np.mean(list(values)))
