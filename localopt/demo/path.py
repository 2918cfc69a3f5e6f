"""A model before and after training -> what it has learned and forgotten on the way between its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from localopt.demo.exam import Marks
from localopt.pretraining.interpolation import interpolate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WAY = (0.25, 0.5, 0.75)  # stops on the straight way from the weights before training to those after
LEVELS = (0.25, 0.5, 0.75)  # shares of what AdamW's end forgets at which methods are compared
LEAST = 0.01  # nats a token: a baseline that forgets less gives no levels to compare at
DRAWS = 10_000


@dataclass(frozen=True)
class Path:
    """Marks before training, at :data:`WAY`, and after it."""

    marks: tuple[Marks, ...]

    @property
    def points(self) -> list[tuple[float, float]]:
        """(forgetting, uptake) at each stop from the start, which is (0, 0).

        Uptake is the gain in mean score on what was taught; forgetting is the rise of ordinary text's loss, in nats a
        token.
        """
        start = self.marks[0]
        return [(marks.page - start.page, marks.score - start.score) for marks in self.marks]

    @property
    def forgetting(self) -> float:
        """At the end."""
        return self.points[-1][0]

    @property
    def uptake(self) -> float:
        """At the end."""
        return self.points[-1][1]

    def gains(self, level: float) -> tuple[Tensor, bool]:
        """(the gain in score of each question where forgetting first reaches a level above 0, whether it does).

        Interpolated linearly between stops. Where forgetting never reaches the level, the gains are those of the end.
        """
        scores = torch.tensor([marks.scores for marks in self.marks], dtype=torch.float64)
        gains = scores - scores[0]
        lost = [forgetting for forgetting, _ in self.points]
        for stop in range(1, len(lost)):
            if lost[stop] >= level:
                part = (level - lost[stop - 1]) / (lost[stop] - lost[stop - 1])
                return torch.lerp(gains[stop - 1], gains[stop], part), True
        return gains[-1], False

    def mean_gains(self, levels: Sequence[float]) -> tuple[Tensor, bool]:
        """(the gain in score of each question, averaged over levels of forgetting; whether it reaches them all)."""
        found = [self.gains(level) for level in levels]
        return torch.stack([gains for gains, _ in found]).mean(0), all(there for _, there in found)


@dataclass(frozen=True)
class Ratio:
    """How much one path takes in, as a multiple of another, where both have forgotten alike.

    ``low``, ``high``: the middle 95% of what other draws of the questions would give (a paired bootstrap). ``bound``:
    the path never forgets so much, and counts with its end, so the ratio is a lower bound.
    """

    value: float
    low: float
    high: float
    bound: bool


def compare(path: Path, baseline: Path) -> Ratio | None:
    """Compare with a baseline at :data:`LEVELS` of what its end forgets.

    None where that cannot be said: the baseline forgot nothing, or took nothing in.
    """
    if baseline.forgetting < LEAST:
        return None
    levels = [share * baseline.forgetting for share in LEVELS]
    (mine, there), (theirs, _) = path.mean_gains(levels), baseline.mean_gains(levels)
    if theirs.mean() <= 0:
        return None
    drawn = torch.randint(len(mine), (DRAWS, len(mine)), generator=torch.Generator().manual_seed(0))
    ratios = mine[drawn].mean(1) / theirs[drawn].mean(1)
    low, high = ratios.quantile(torch.tensor([0.025, 0.975], dtype=ratios.dtype)).tolist()
    return Ratio(float(mine.mean() / theirs.mean()), low, high, not there)


def walk(
    model: PreTrainedModel, start: Mapping[str, Tensor], before: Marks, mark: Callable[[PreTrainedModel], Marks]
) -> Path:
    """Mark a trained model at its end and on the way back; its weights are those of ``start`` afterwards."""
    back, present = [mark(model)], 1.0
    for share in reversed(WAY):
        interpolate(model, start, share / present)
        back.append(mark(model))
        present = share
    interpolate(model, start, 0.0)
    return Path((before, *reversed(back)))
