"""What a report says in numbers: each method at its rate, the contrasts that were named beforehand, what it cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from benchmarks.lifelong.methods.methods import METHODS
from benchmarks.lifelong.report.contrasts import CONTRASTS, RANDOM, RANDOM_GAIN_DAMAGE, RANDOM_KEPT, Best
from benchmarks.lifelong.report.records import Records
from benchmarks.lifelong.report.statistics import (
    MEASURES,
    Comparison,
    Measure,
    Path,
    Scores,
    compare,
    holm,
    interval,
    lost_at_levels,
    uptake_at_levels,
)
from localopt.errors import InputError

Row = dict[str, Any]
Cell: TypeAlias = tuple[str, int]  # a half and a seed


@dataclass(frozen=True)
class Table:
    title: str
    header: list[str]
    rows: list[list[str]]
    note: str

    @classmethod
    def of_filled(cls, title: str, header: list[str], rows: list[list[str]], note: str) -> Table:
        """Without the columns that are empty in every row."""
        kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
        return cls(title, [header[i] for i in kept], [[row[i] for i in kept] for row in rows], note)

    def markdown(self) -> str:
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
                at = {lr: _mean(uptake_at_levels(path, baseline, "text")[0]) for lr, path in paths.items()}
                rates[method] = max(at, key=lambda lr: at[lr])
        for draws in (RANDOM, RANDOM_KEPT, RANDOM_GAIN_DAMAGE):
            ran = {(run["method"], run["lr"]) for run in self.records.runs if run["method"] in draws}
            if ran:
                most = Counter(lr for _, lr in ran).most_common(1)[0][0]
                rates |= {method: most for method, lr in ran if lr == most}
        return {method: rates[method] for method in METHODS if method in rates}

    def methods(self) -> Table:
        """One row a method: where its path ends."""
        header = ["method", "rate", "runs", "weights a step", "uptake", "gain, taught", "gain, held out"]
        header += ["WikiText", "new entities"]
        header += ["near facts lost", "near still first", "far facts lost", "written: exact", "F1", "KL to the start"]
        rows = []
        for method, runs in self.runs.items():
            path = self.paths[method]
            far = [np.mean(parts, axis=0) for parts in zip(*(self.scores.far(run) for run in runs), strict=True)]
            row = [METHODS[method].about, f"{self.rates[method]:g}", _named(runs)]
            row += [f"{_mean(r['share'] for r in runs):.2f}", _with_interval(*path.uptake.end)]
            row += [f"{curve.mean[-1]:+.2f}" for curve in (path.gain, path.control)]
            row += [_with_interval(*path.text.end), f"{_mean(self._entities(run) for run in runs):+.2f}"]
            row += [_with_interval(*path.near.end), f"{_mean(self._first(run) for run in runs):.0%}"]
            rows.append([*row, _with_interval(*far), *self._written(runs), self._diverged(runs)])
        note = (
            "Scores are logs of the probability of the right answer among five, in nats; in brackets 95% intervals "
            "over facts or pieces of text. Uptake: score gained on facts taught, less what held-out facts gain. "
            "WikiText, new entities: rise of the NLL a token. Lost: score lost on facts to keep that are never traced. "
            "Still first: under both phrasings. Written: greedy decoding; before training "
            + self._written_before()
            + ". KL(start || model): on the passages taught, nats a token."
        )
        return Table.of_filled("What was learned and lost", header, rows, note)

    def levels(self) -> Table:
        """One row a method: what it takes in where it forgets as much as AdamW does along its path."""
        header = ["method", "rate", "runs", "uptake at 25 / 50 / 75% of AdamW's rise on WikiText", "ratio to AdamW"]
        header += ["near facts lost there", "written at the end: exact", "F1"]
        header += ["at 25 / 50 / 75% of what AdamW loses of near facts", "ratio to AdamW"]
        rows = []
        for method in self.runs:
            cells = self._shared([method])
            row = [METHODS[method].about, f"{self.rates[method]:g}", _named(self.runs[method])]
            for measure in MEASURES:
                contrast = self._compare([method], ["adamw"], measure)
                row.append("" if contrast is None else self._uptakes(method, cells, measure))
                row.append("" if method == "adamw" else _ratio(contrast))
                if measure == "text":
                    lost = lost_at_levels(self._path(method, cells), self._baseline(cells)) if cells else []
                    row.append(" / ".join(f"{nats:+.2f}" for nats in lost))
                    row += self._written(self.runs[method])
            rows.append(row)
        note = (
            f"AdamW's rise and loss: those of its end at a rate of {self.baseline[0]['lr']:g}. Where it does not lose "
            "near facts for certain there is no column for them. Rates were chosen on half A, at equal rise on other "
            "pieces of WikiText. Ratio: of the means of the three, on halves and seeds both ran. >=: the method never "
            "forgets so much, so this is its uptake at its end. Near facts lost: score, at the points of the path that "
            "the uptake on the left is of."
        )
        return Table.of_filled("What is taken in at equal forgetting", header, rows, note)

    def _uptakes(self, method: str, cells: set[Cell], measure: Measure) -> str:
        found, _, there = uptake_at_levels(self._path(method, cells), self._baseline(cells), measure)
        return " / ".join(("" if t else ">= ") + f"{u:.2f}" for u, t in zip(found, there, strict=True))

    def contrasts(self) -> Table:
        """The comparisons named beforehand, those whose runs are there."""
        ran = _cells(self.baseline)
        first = min(seed for _, seed in ran)
        apart = {cell for cell in ran if cell[0] == "B"}, {cell for cell in ran if cell[1] != first}
        rows: list[list[str]] = []
        values: list[float] = []
        for about, one, other in CONTRASTS:
            text, near = (self._compare(one, other, measure) for measure in MEASURES)
            if text is None:
                continue
            alone = (self._compare(one, other, "text", cells) for cells in apart)
            row = [about, ", ".join(text.cells), _ratio(text), "yes" if text.capped else "", *map(_ratio, alone)]
            rows.append([*row, _ratio(near), "yes" if near and near.capped else "", self._f1(one), self._f1(other)])
            values.append(text.p)
        for row, p in zip(rows, holm(values), strict=True):
            row.insert(3, f"{p:.3f}")
        note = (
            "Ratio of uptakes at equal forgetting, above 1 where the first is better; 95% interval over facts and "
            "texts, p corrected by Holm for the comparisons shown. Bound: one of the two does not forget as much as "
            "the highest level, and counts with what it took in. Half B, other seeds: no rate was chosen on them."
        )
        header = [
            "comparison",
            "runs a side",
            "ratio at equal WikiText",
            "p",
            "bound",
            "on half B alone",
            "other seeds",
        ]
        header += ["ratio at equal loss of near facts", "bound", "F1 written, the first", "the second"]
        return Table.of_filled("Named comparisons", header, rows, note)

    def kinds(self) -> Table | None:
        """Uptake by kind of question, where a data set tells kinds apart."""
        kinds = self.scores.kinds
        header = ["method", "rate", "runs", *(f"{kind}: at the end" for kind in kinds)]
        header += [f"{kind}: ratio to AdamW at equal WikiText" for kind in kinds]
        header += [f"{kind}: NLL of the answer, nats a token" for kind in kinds]
        header += [f"{kind}: written, exact / F1" for kind in kinds]
        rows = []
        for method, runs in self.runs.items():
            cells = self._shared([method])
            row = [METHODS[method].about, f"{self.rates[method]:g}", _named(runs)]
            row += [_with_interval(*self.scores.path(runs, kind=kind).uptake.end) for kind in kinds]
            for kind in kinds:
                baseline, mine = self._baseline(cells, kind), self._path(method, cells, kind)
                theirs = self._path("adamw", cells, kind)
                there = method != "adamw" and interval(baseline.text.end[1])[0] > 0
                row.append(_ratio(compare([mine], [theirs], baseline, "text")) if there else "")
            row += [f"{_mean(self.scores.answered(run, kind) for run in runs):.2f}" for kind in kinds]
            row += [" / ".join(self._written(runs, kind)) for kind in kinds]
            rows.append(row)
        starts = [f"{kind} {self.scores.answered_before(kind):.2f}" for kind in kinds]
        note = (
            "Uptake as above, of the questions of one kind alone. Ratio: where WikiText has risen alike, as in the "
            "table above. NLL of the right answer at the end of training; before it " + ", ".join(starts) + "."
        )
        return Table.of_filled("By kind of question", header, rows, note) if kinds else None

    def costs(self) -> Table:
        """Time and memory of training, and the smaller measures."""
        header = ["method", "training, CPU s", "memory peak, MB", "new beats old", "written: exact", "F1"]
        header += ["near facts lost after a reminder"]
        rows = []
        for method, runs in self.runs.items():
            row = [METHODS[method].about, f"{_mean(r['train_cpu_seconds'] for r in runs):.0f}"]
            row += ["" if runs[0]["train_peak_mb"] is None else f"{_mean(r['train_peak_mb'] for r in runs):.0f}"]
            row += ["" if self._over_old(runs[0]) is None else f"{_mean(self._over_old(r) for r in runs):.0%}"]
            rows.append([*row, *self._written(runs), f"{_mean(self._relearned(run) for run in runs):+.2f}"])
        note = (
            "CPU seconds of all threads, in training alone. New beats old: share of questions on facts taught where "
            "the new answer is likelier than the one before. Written: greedy decoding. After a "
            "reminder: ten other near facts, three steps; against the start after the same."
        )
        return Table.of_filled("Costs and smaller measures", header, rows, note)

    def _written(self, runs: Sequence[Row], kind: str | None = None) -> list[str]:
        """Exact match and F1 of what is written at the end, of all questions decoded or of one kind."""
        if kind is None:
            return [f"{_mean(run['end'][name] for run in runs):.1%}" for name in ("exact", "f1")]
        return [f"{_mean(_mean(self.scores.written(run, name, kind)) for run in runs):.1%}" for name in ("exact", "f1")]

    def _f1(self, side: Sequence[str]) -> str:
        return f"{_mean(run['end']['f1'] for method in side for run in self.runs.get(method, [])):.1%}"

    def _written_before(self) -> str:
        starts = list(self.records.starts.values())
        means = {name: _mean(row[half][name] for row in starts for half in ("A", "B")) for name in ("exact", "f1")}
        return ", ".join(f"{name} {mean:.1%}" for name, mean in means.items())

    def _diverged(self, runs: Sequence[Row]) -> str:
        """KL at the end; runs of before it was measured have none."""
        if not all("kl" in run["points"]["1.0"] for run in runs):
            return ""
        return f"{_mean(_mean(run['points']['1.0']['kl']) for run in runs):.3f}"

    def _shared(self, methods: Sequence[str]) -> set[Cell]:
        """(half, seed) that all of these methods ran, and AdamW at the rate that sets the levels."""
        return set.intersection(*map(_cells, [self.baseline, *(self.runs[method] for method in methods)]))

    def _draws(self, side: Sequence[str], cells: Collection[Cell]) -> list[str]:
        """The methods of a side that ran some of these cells; of `Best` the one that takes in most.

        Of several random draws some may have run more than others: those with which most runs can be compared.
        """
        ran = {method: _cells(self.runs[method]) & set(cells) for method in side if method in self.runs}
        ran = {method: mine for method, mine in ran.items() if mine}
        groups = [[other for other in ran if ran[other] >= mine] for mine in ran.values()]
        there = max(groups, key=lambda group: len(group) * len(set.intersection(*(ran[m] for m in group))), default=[])
        if isinstance(side, Best) and there:
            shared = self._shared(there) & set(cells)
            baseline = self._baseline(shared)
            at = {method: _mean(uptake_at_levels(self._path(method, shared), baseline, "text")[0]) for method in there}
            return [max(there, key=lambda method: at[method])]
        return there

    def _path(self, method: str, cells: set[Cell], kind: str | None = None) -> Path:
        return self.scores.path((r for r in self.runs[method] if (r["half"], r["seed"]) in cells), kind=kind)

    def _baseline(self, cells: set[Cell], kind: str | None = None) -> Path:
        return self.scores.path((r for r in self.baseline if (r["half"], r["seed"]) in cells), kind=kind)

    def _compare(
        self, one: Sequence[str], other: Sequence[str], measure: Measure, cells: Collection[Cell] | None = None
    ) -> Comparison | None:
        """None where runs are missing, or AdamW does not certainly forget by this measure: there is no level then."""
        cells = _cells(self.baseline) if cells is None else cells
        one, other = self._draws(one, cells), self._draws(other, cells)
        if not one or not other:
            return None
        shared = self._shared([*one, *other]) & set(cells)
        if not shared:
            return None
        baseline = self._baseline(shared)
        if interval(getattr(baseline, measure).end[1])[0] <= 0:
            return None
        paths = [[self._path(method, shared) for method in side] for side in (one, other)]
        return compare(paths[0], paths[1], baseline, measure, _names(shared))

    def _tested(self) -> list[tuple[int, str]]:
        """Where the tested near facts stand in the lists of near facts, and which they are."""
        items = [self.scores.items[i] for i in self.scores.places("near")]
        return [(n, item["fact"]) for n, item in enumerate(items) if item["split"] == "test"]

    def _first(self, run: Row) -> float:
        """Share of the tested near facts whose answer is still the likeliest under both phrasings."""
        answers = run["points"]["1.0"]["near"]
        lost = {fact for n, fact in self._tested() if min(answers[n][1:]) <= answers[n][0]}
        return 1 - len(lost) / len({fact for _, fact in self._tested()})

    def _over_old(self, run: Row) -> float | None:
        """Share of the facts taught that had another answer before where the new one is likelier; None without any."""
        items = [self.scores.items[i] for i in self.scores.places(run["half"])]
        taught = zip(items, run["points"]["1.0"]["taught"], strict=True)
        found = [nll[0] < nll[-1] for item, nll in taught if item["old"]]
        return _mean(found) if found else None

    def _entities(self, run: Row) -> float:
        return float(run["end"]["entities"] - self.records.starts[run["start"]][run["half"]]["entities"])

    def _relearned(self, run: Row) -> float:
        """Score of the tested near facts below the start's, both after the reminder."""
        start = self.records.starts[run["start"]]["relearned"]
        return self.scores.fallen(run, run["relearned"], "near")[0] - self.scores.fallen(run, start, "near")[0]


def _names(cells: Iterable[Cell]) -> tuple[str, ...]:
    """A half's name, and the seed's where it is not the first.

    >>> _names([("B", 0), ("A", 0), ("A", 1)])
    ('A', 'A1', 'B')
    """
    return tuple(sorted(f"{half}{seed or ''}" for half, seed in cells))


def _named(runs: Sequence[Row]) -> str:
    return ", ".join(_names(_cells(runs)))


def _cells(runs: Sequence[Row]) -> set[Cell]:
    return {(run["half"], run["seed"]) for run in runs}


def _balanced(runs: Sequence[Row]) -> list[Row]:
    """The runs of the seeds that were run on as many halves as any: means over others would lean to one half."""
    halves = Counter(run["seed"] for run in runs)
    return [run for run in runs if halves[run["seed"]] == max(halves.values())]


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


def _with_interval(value: float, draws: Any) -> str:
    low, high = interval(draws)
    return f"{value:+.2f} ({low:+.2f} to {high:+.2f})"


def _ratio(found: Comparison | None) -> str:
    return f"{found.ratio:.2f} ({found.low:.2f} to {found.high:.2f})" if found else ""
