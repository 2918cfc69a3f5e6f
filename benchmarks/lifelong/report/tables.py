"""What a report says in numbers: each method at its rate, the contrasts that were named beforehand, what it cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.lifelong.methods.methods import METHODS
from benchmarks.lifelong.report.contrasts import CONTRASTS
from benchmarks.lifelong.report.findings import Findings, cells_of, mean, named
from benchmarks.lifelong.report.statistics import MEASURES, Comparison, compare, holm, interval, lost_at_levels


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


def methods(findings: Findings) -> Table:
    """One row a method: where its path ends."""
    header = ["method", "rate", "runs", "weights a step", "uptake", "gain, taught", "gain, held out"]
    header += ["WikiText", "new entities"]
    header += ["near facts lost", "near still first", "far facts lost", "written: exact", "F1", "KL to the start"]
    rows = []
    for method, runs in findings.runs.items():
        path = findings.paths[method]
        far = [np.mean(parts, axis=0) for parts in zip(*(findings.scores.far(run) for run in runs), strict=True)]
        row = [METHODS[method].about, f"{findings.rates[method]:g}", named(runs)]
        row += [f"{mean(r['share'] for r in runs):.2f}", _with_interval(*path.uptake.end)]
        row += [f"{curve.mean[-1]:+.2f}" for curve in (path.gain, path.control)]
        row += [_with_interval(*path.text.end), f"{mean(findings.entities(run) for run in runs):+.2f}"]
        row += [_with_interval(*path.near.end), f"{mean(findings.first(run) for run in runs):.0%}"]
        rows.append([*row, _with_interval(*far), *findings.written(runs), findings.diverged(runs)])
    note = (
        "Scores are logs of the probability of the right answer among five, in nats; in brackets 95% intervals "
        "over facts or pieces of text. Uptake: score gained on facts taught, less what held-out facts gain. "
        "WikiText, new entities: rise of the NLL a token. Lost: score lost on facts to keep that are never traced. "
        "Still first: under both phrasings. Written: greedy decoding; before training "
        + findings.written_before()
        + ". KL(start || model): on the passages taught, nats a token."
    )
    return Table.of_filled("What was learned and lost", header, rows, note)


def levels(findings: Findings) -> Table:
    """One row a method: what it takes in where it forgets as much as AdamW does along its path."""
    header = ["method", "rate", "runs", "uptake at 25 / 50 / 75% of AdamW's rise on WikiText", "ratio to AdamW"]
    header += ["near facts lost there", "written at the end: exact", "F1"]
    header += ["at 25 / 50 / 75% of what AdamW loses of near facts", "ratio to AdamW"]
    rows = []
    for method in findings.runs:
        cells = findings.shared([method])
        row = [METHODS[method].about, f"{findings.rates[method]:g}", named(findings.runs[method])]
        for measure in MEASURES:
            contrast = findings.compare([method], ["adamw"], measure)
            row.append("" if contrast is None else findings.uptakes(method, cells, measure))
            row.append("" if method == "adamw" else _ratio(contrast))
            if measure == "text":
                lost = lost_at_levels(findings.path(method, cells), findings.baseline_path(cells)) if cells else []
                row.append(" / ".join(f"{nats:+.2f}" for nats in lost))
                row += findings.written(findings.runs[method])
        rows.append(row)
    note = (
        f"AdamW's rise and loss: those of its end at a rate of {findings.baseline[0]['lr']:g}. Where it does not lose "
        "near facts for certain there is no column for them. Rates were chosen on half A, at equal rise on other "
        "pieces of WikiText. Ratio: of the means of the three, on halves and seeds both ran. >=: the method never "
        "forgets so much, so this is its uptake at its end. Near facts lost: score, at the points of the path that "
        "the uptake on the left is of."
    )
    return Table.of_filled("What is taken in at equal forgetting", header, rows, note)


def contrasts(findings: Findings) -> Table:
    """The comparisons named beforehand, those whose runs are there."""
    ran = cells_of(findings.baseline)
    first = min(seed for _, seed in ran)
    apart = {cell for cell in ran if cell[0] == "B"}, {cell for cell in ran if cell[1] != first}
    rows: list[list[str]] = []
    values: list[float] = []
    for about, one, other in CONTRASTS:
        text, near = (findings.compare(one, other, measure) for measure in MEASURES)
        if text is None:
            continue
        alone = (findings.compare(one, other, "text", cells) for cells in apart)
        row = [about, ", ".join(text.cells), _ratio(text), "yes" if text.capped else "", *map(_ratio, alone)]
        rows.append([*row, _ratio(near), "yes" if near and near.capped else "", findings.f1(one), findings.f1(other)])
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


def kinds(findings: Findings) -> Table | None:
    """Uptake by kind of question, where a data set tells kinds apart."""
    kinds = findings.scores.kinds
    header = ["method", "rate", "runs", *(f"{kind}: at the end" for kind in kinds)]
    header += [f"{kind}: ratio to AdamW at equal WikiText" for kind in kinds]
    header += [f"{kind}: NLL of the answer, nats a token" for kind in kinds]
    header += [f"{kind}: written, exact / F1" for kind in kinds]
    rows = []
    for method, runs in findings.runs.items():
        cells = findings.shared([method])
        row = [METHODS[method].about, f"{findings.rates[method]:g}", named(runs)]
        row += [_with_interval(*findings.scores.path(runs, kind=kind).uptake.end) for kind in kinds]
        for kind in kinds:
            baseline, mine = findings.baseline_path(cells, kind), findings.path(method, cells, kind)
            theirs = findings.path("adamw", cells, kind)
            there = method != "adamw" and interval(baseline.text.end[1])[0] > 0
            row.append(_ratio(compare([mine], [theirs], baseline, "text")) if there else "")
        row += [f"{mean(findings.scores.answered(run, kind) for run in runs):.2f}" for kind in kinds]
        row += [" / ".join(findings.written(runs, kind)) for kind in kinds]
        rows.append(row)
    starts = [f"{kind} {findings.scores.answered_before(kind):.2f}" for kind in kinds]
    note = (
        "Uptake as above, of the questions of one kind alone. Ratio: where WikiText has risen alike, as in the "
        "table above. NLL of the right answer at the end of training; before it " + ", ".join(starts) + "."
    )
    return Table.of_filled("By kind of question", header, rows, note) if kinds else None


def costs(findings: Findings) -> Table:
    """Time and memory of training, and the smaller measures."""
    header = ["method", "training, CPU s", "memory peak, MB", "new beats old", "written: exact", "F1"]
    header += ["near facts lost after a reminder"]
    rows = []
    for method, runs in findings.runs.items():
        row = [METHODS[method].about, f"{mean(r['train_cpu_seconds'] for r in runs):.0f}"]
        row += ["" if runs[0]["train_peak_mb"] is None else f"{mean(r['train_peak_mb'] for r in runs):.0f}"]
        row += ["" if findings.over_old(runs[0]) is None else f"{mean(findings.over_old(r) for r in runs):.0%}"]
        rows.append([*row, *findings.written(runs), f"{mean(findings.relearned(run) for run in runs):+.2f}"])
    note = (
        "CPU seconds of all threads, in training alone. New beats old: share of questions on facts taught where "
        "the new answer is likelier than the one before. Written: greedy decoding. After a "
        "reminder: ten other near facts, three steps; against the start after the same."
    )
    return Table.of_filled("Costs and smaller measures", header, rows, note)


def _with_interval(value: float, draws: Any) -> str:
    low, high = interval(draws)
    return f"{value:+.2f} ({low:+.2f} to {high:+.2f})"


def _ratio(found: Comparison | None) -> str:
    return f"{found.ratio:.2f} ({found.low:.2f} to {found.high:.2f})" if found else ""
