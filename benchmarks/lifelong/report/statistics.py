"""Records -> uptake and forgetting with intervals, and methods compared at equal forgetting.

The *score* of a question is the log of the probability its right answer has among the answers offered. For a run, a
share a of its change (start + a * (end - start), linear interpolation of weights), and scores s:

    gain(a)       = mean over facts taught of (s_a - s_0)
    control(a)    = the same over held-out facts
    uptake(a)     = gain(a) - max(0, control(a))
    forgetting(a) = mean over facts to keep of (s_0 - s_a)         measure "near"
                    mean over pieces of text of (NLL_a - NLL_0)    measure "text"

What held-out facts gain is style, and is taken off. What they lose is damage, and no reason to add to the gain.

A method's path averages its runs (both halves, all seeds) share by share. Its *uptake at level f* is that where the
path's forgetting first reaches f, interpolated linearly; where it never does, that of its end, which is a lower bound.
Levels are 25, 50 and 75% of what AdamW's end forgets.

Intervals are those of a paired bootstrap: the groups of facts taught, of each half, the groups of facts to keep and the
pieces of text are drawn anew, the same for all methods. They say how the result may differ for other facts of the kind
and other pieces of these articles; not how it may for other articles, of which there are few, or for other seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from benchmarks.lifelong.report.records import Records

LEVELS = (0.25, 0.5, 0.75)
DRAWS = 10_000
Array: TypeAlias = NDArray[np.float64]
Measure: TypeAlias = Literal["text", "near"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
Row = dict[str, Any]


@dataclass(frozen=True)
class Curve:
    """Values of one method along its shares, (S,), and of every bootstrap draw, (B, S).

    The first share is 0, the start, where the value is 0.
    """

    mean: Array
    draws: Array

    @property
    def end(self) -> tuple[float, Array]:
        """The value at the end of the path, and that of every draw (B,)."""
        return float(self.mean[-1]), self.draws[:, -1]


@dataclass(frozen=True)
class Path:
    """What a method takes in along its shares, and what it forgets by either measure."""

    uptake: Curve
    gain: Curve
    control: Curve
    near: Curve
    text: Curve

    def at(self, measure: Measure, level: float, levels: Array) -> tuple[float, Array, bool]:
        """(uptake at a level, that of every draw at its own level, whether the path gets there)."""
        lost: Curve = getattr(self, measure)
        found = crossing(self.uptake.mean[None], lost.mean[None], np.array([level]))[0]
        there = bool(level > 0 and (lost.mean >= level).any())
        return float(found), crossing(self.uptake.draws, lost.draws, levels), there


def crossing(uptake: Array, lost: Array, level: Array) -> Array:
    """Uptake (B,) where a path (B, S) first reaches a level (B,) of forgetting, or at its end.

    A level that is not above 0 is none, and counts like one that is never reached.

    >>> crossing(np.array([[0.0, 1.0, 3.0]]), np.array([[0.0, 2.0, 4.0]]), np.array([3.0]))
    array([2.])
    """
    reached = (lost >= level[:, None]) & (level[:, None] > 0)
    index = np.where(reached.any(1), reached.argmax(1), lost.shape[1] - 1)
    rows = np.arange(len(lost))
    before = np.maximum(index - 1, 0)
    x0, x1 = lost[rows, before], lost[rows, index]
    rise = np.where(x1 > x0, (level - x0) / np.where(x1 > x0, x1 - x0, 1.0), 1.0)
    part = np.where(reached.any(1), np.clip(rise, 0.0, 1.0), 1.0)
    result: Array = uptake[rows, before] + part * (uptake[rows, index] - uptake[rows, before])
    return result


def interval(draws: Array) -> tuple[float, float]:
    """The middle 95% of bootstrap draws."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def holm(values: Sequence[float]) -> list[float]:
    """Holm's correction of p-values for their number.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    corrected = [0.0] * len(values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = round(largest, 10)
    return corrected


def score(nll: Sequence[float], item: Row) -> float:
    """Log of the probability that the right answer has among its candidates, in nats; the old answer is none of them.

    >>> round(score([1.0, 1.0, 1.0], {"old": True}) / np.log(2), 6)
    -1.0
    """
    others = np.array(nll[1:-1] if item["old"] else nll[1:])
    return -float(np.logaddexp.reduce([0.0, *(nll[0] - others)]))


class Scores:
    """The scores of a file of records as arrays, and the bootstrap's draws."""

    def __init__(self, records: Records, draws: int = DRAWS, seed: int = 0) -> None:
        assert records.exam is not None
        self.records = records
        self.items = records.exam["items"]
        self.texts = records.exam["texts"]
        self.draws, self.seed = draws, seed

    def path(self, runs: Iterable[Row], split: str = "test", kind: str | None = None) -> Path:
        """The path of some runs, averaged; its forgetting is of the near facts and texts of one split.

        With a `kind` its uptake is that of the questions of this kind.
        """
        curves = [self._curves(run, split, kind) for run in runs]
        means = (np.mean([[c.mean, *c.draws] for c in parts], axis=0) for parts in zip(*curves, strict=True))
        return Path(*(Curve(mean[0], mean[1:]) for mean in means))

    def far(self, run: Row) -> tuple[float, Array]:
        """Score lost on far facts at a run's end, and that of every draw (B,)."""
        return self.fallen(run, run["end"]["far"], "far")

    def fallen(self, run: Row, answers: list[list[float]], part: str) -> tuple[float, Array]:
        """How far the scores of these answers are below those of a run's start, and that of every draw (B,)."""
        places = self.places(part)
        change = self._start(run, places) - self.scores(places, answers)
        mean, draws = self.mean(*self.of_split(change[None], part, "test"))
        return float(mean[0]), draws[:, 0]

    @property
    def kinds(self) -> list[str]:
        """The kinds of questions that are told apart, none in a set that has one."""
        return list(dict.fromkeys(item["kind"] for item in self.items if item.get("kind")))

    def _curves(self, run: Row, split: str, kind: str | None) -> tuple[Curve, Curve, Curve, Curve, Curve]:
        half, other = run["half"], "B" if run["half"] == "A" else "A"
        mine, near = self.places(half), self.places("near")
        theirs = [i for i in self.places(other) if self.items[i]["phrasing"] == 0]
        gain = self.mean(*self._of_kind(self._change(run, "taught", mine), mine, kind))
        control = self.mean(*self._of_kind(self._change(run, "held", theirs), theirs, kind))
        uptake = (one - np.maximum(other, 0.0) for one, other in zip(gain, control, strict=True))
        lost = self.mean(*self.of_split(-self._change(run, "near", near), "near", split))
        return Curve(*uptake), Curve(*gain), Curve(*control), Curve(*lost), self._text(run, split)

    def answered(self, run: Row, kind: str) -> float:
        """NLL a token of the right answers to the questions taught of one kind, at a run's end."""
        places = self.places(run["half"])
        return self._a_token(places, run["points"]["1.0"]["taught"], kind)

    def written(self, run: Row, name: str, kind: str) -> list[float]:
        """ "exact" or "f1" of every question of one kind that was decoded at a run's end: the first phrasings."""
        asked = [i for i in self.places(run["half"]) if self.items[i]["phrasing"] == 0]
        scores = zip(asked, run["end"]["written"][name], strict=True)
        return [score for i, score in scores if self.items[i]["kind"] == kind]

    def answered_before(self, kind: str) -> float:
        """The same at the first start, over both halves."""
        answers = next(iter(self.records.starts.values()))["nll"]
        places = [i for i, item in enumerate(self.items) if item.get("kind") == kind]
        return self._a_token(places, [answers[i] for i in places], kind)

    def _a_token(self, places: list[int], answers: list[list[float]], kind: str) -> float:
        found = [(nll[0], self.items[i]["tokens"][0]) for i, nll in zip(places, answers, strict=True)
                 if self.items[i].get("kind") == kind]  # fmt: skip
        return float(sum(nll for nll, _ in found) / sum(tokens for _, tokens in found))

    def _text(self, run: Row, split: str) -> Curve:
        """How far the NLL of text rises."""
        start = self.records.starts[run["start"]]["text"]
        return self.rise(start, [run["points"][share]["text"] for share in sorted(run["points"], key=float)], split)

    def rise(self, start: list[float], points: Sequence[list[float]], split: str) -> Curve:
        """How far the NLL of text rises above the start's from point to point."""
        nll = np.array([start, *points])
        chosen = [n for n, of in enumerate(self.texts) if of == split]
        rise = (nll - nll[0])[:, chosen]
        rng = np.random.default_rng(self.seed + 1)
        weights = rng.multinomial(len(chosen), np.full(len(chosen), 1 / len(chosen)), size=self.draws)
        return Curve(rise.mean(1), weights @ rise.T / len(chosen))

    def places(self, part: str) -> list[int]:
        return [i for i, item in enumerate(self.items) if item["part"] == part]

    def of_split(self, values: Array, part: str, split: str) -> tuple[Array, list[int]]:
        places = self.places(part)
        chosen = [n for n, i in enumerate(places) if self.items[i]["split"] == split]
        return values[:, chosen], [places[n] for n in chosen]

    def _of_kind(self, values: Array, places: list[int], kind: str | None) -> tuple[Array, list[int]]:
        chosen = [n for n, i in enumerate(places) if kind is None or self.items[i].get("kind") == kind]
        return values[:, chosen], [places[n] for n in chosen]

    def _change(self, run: Row, name: str, places: list[int]) -> Array:
        """Scores less those of the run's own start, (S, questions), the start itself first."""
        start = self._start(run, places)
        points = [self.scores(places, run["points"][share][name]) for share in sorted(run["points"], key=float)]
        return np.stack([start - start, *(point - start for point in points)])

    def _start(self, run: Row, places: list[int]) -> Array:
        answers = self.records.starts[run["start"]]["nll"]
        return self.scores(places, [answers[i] for i in places])

    def scores(self, places: list[int], answers: list[list[float]]) -> Array:
        return np.array([score(nll, self.items[i]) for i, nll in zip(places, answers, strict=True)])

    def mean(self, values: Array, places: Sequence[int]) -> tuple[Array, Array]:
        """Means over questions (S,), and those of every draw (B, S)."""
        weights = self._weights[:, places].astype(np.float64)
        drawn: Array = weights @ values.T / weights.sum(1, keepdims=True)
        return values.mean(1), drawn

    @cached_property
    def _weights(self) -> NDArray[np.int16]:
        """How often each draw holds each question, (B, questions): groups are drawn within their part and split."""
        rng = np.random.default_rng(self.seed)
        strata: dict[tuple[str, str], dict[str, list[int]]] = {}
        for index, item in enumerate(self.items):
            strata.setdefault((item["part"], item["split"]), {}).setdefault(item["group"], []).append(index)
        weights = np.zeros((self.draws, len(self.items)), dtype=np.int16)
        for groups in strata.values():
            counts = rng.multinomial(len(groups), np.full(len(groups), 1 / len(groups)), size=self.draws)
            for column, places in enumerate(groups.values()):
                weights[:, places] = counts[:, [column]]
        return weights


@dataclass(frozen=True)
class Comparison:
    """How much more one method takes in than another at equal forgetting, as a ratio of the mean over the levels."""

    ratio: float
    low: float
    high: float
    p: float
    capped: bool  # one of the two does not forget as much as a level, so its uptake there is a lower bound
    cells: tuple[str, ...]  # the halves and seeds that were compared


def uptake_at_levels(path: Path, adamw: Path, measure: Measure) -> tuple[list[float], Array, list[bool]]:
    """(uptake at each level, (B, levels) of the draws, whether the path reaches each level).

    Where AdamW forgets nothing there are no levels, and a path counts with its end.
    """
    end, ends = getattr(adamw, measure).end
    found = [path.at(measure, q * end, q * ends) for q in LEVELS]
    return [u for u, _, _ in found], np.stack([draws for _, draws, _ in found], 1), [there for _, _, there in found]


def lost_at_levels(path: Path, adamw: Path) -> list[float]:
    """Score lost on near facts where a path's rise on text reaches each level, or at its end."""
    levels = np.array(LEVELS) * adamw.text.end[0]
    near, text = (np.tile(curve.mean, (len(levels), 1)) for curve in (path.near, path.text))
    found: list[float] = crossing(near, text, levels).tolist()
    return found


def compare(
    one: Sequence[Path], other: Sequence[Path], adamw: Path, measure: Measure, cells: tuple[str, ...] = ()
) -> Comparison:
    """Compare methods by their paths; several paths on a side (random draws) count by the mean of their uptakes."""
    sides, capped = [], False
    for paths in (one, other):
        found = [uptake_at_levels(path, adamw, measure) for path in paths]
        mean = float(np.mean([uptakes for uptakes, _, _ in found]))
        sides.append((mean, np.mean([draws.mean(1) for _, draws, _ in found], axis=0)))
        capped |= not all(all(there) for _, _, there in found)
    (a, draws_a), (b, draws_b) = sides
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio, ratios = np.divide(a, b), draws_a / draws_b
    # Two-sided: how often the draws fall on the other side of no difference.
    below = float((draws_a < draws_b).mean() + (draws_a == draws_b).mean() / 2)
    p = min(1.0, 2 * max(min(below, 1 - below), 1 / len(draws_a)))
    return Comparison(float(ratio), *interval(ratios), p, capped, cells)
