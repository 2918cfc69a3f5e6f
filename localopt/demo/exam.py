"""A model -> what it knows of the invented facts, of the world, and of ordinary text, and what it writes.

The *score* of a question is the log of the probability that its right answer has among the answers offered, in nats:
log(1/5) = -1.61 for a model that cannot tell five answers apart, 0 for one that is certain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from localopt.demo.lessons import Asked, Lessons
from localopt.pretraining.candidates import Question, Tree, answer_losses, answer_losses_apart, plant
from localopt.pretraining.evaluate import evaluate_text, positions
from localopt.pretraining.written import greedy

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PIECE = 256  # tokens of the page read at a time
WRITTEN = 10  # tokens


@dataclass(frozen=True)
class Marks:
    """What a model knows.

    ``answered``, ``scores``: of the questions about what was taught, the share whose right answer is the likeliest of
    those offered, and the score of each. ``known``: that share of what it should still know. ``page``: negative
    log-likelihood of ordinary text, nats a token.
    """

    answered: float
    scores: tuple[float, ...]
    known: float
    page: float

    @property
    def score(self) -> float:
        """Mean score on what was taught."""
        return sum(self.scores) / len(self.scores)


@dataclass(frozen=True)
class _Sheet:
    questions: list[Question]
    trees: list[Tree]

    @classmethod
    def of(cls, asked: Sequence[Asked], tokenizer: PreTrainedTokenizerBase) -> _Sheet:
        questions = [Question(one.prompt, one.answers) for one in asked]
        return cls(questions, plant(questions, tokenizer))


class Exam:
    """The questions of ``lessons``, tokenized once for all models that are asked."""

    def __init__(self, lessons: Lessons, tokenizer: PreTrainedTokenizerBase) -> None:
        self.lessons, self.tokenizer = lessons, tokenizer
        self._taught, self._known = _Sheet.of(lessons.taught, tokenizer), _Sheet.of(lessons.known, tokenizer)

    def mark(self, model: PreTrainedModel) -> Marks:
        """Ask everything. The model is put in eval mode."""
        model.train(False)
        taught, known = self._losses(model, self._taught), self._losses(model, self._known)
        length = min(PIECE, positions(model) or PIECE)
        page = evaluate_text(model, self.tokenizer, [self.lessons.page], length=length).nll
        return Marks(_share_first(taught), _scores(taught), _share_first(known), page)

    def write(self, model: PreTrainedModel) -> list[str]:
        """What the model writes, greedily, for each of ``lessons.shown``: up to the end of the sentence."""
        asked = [self.lessons.taught[place].prompt for place in self.lessons.shown]
        return [greedy(model, self.tokenizer, prompt, WRITTEN) for prompt in asked]

    def _losses(self, model: PreTrainedModel, sheet: _Sheet) -> list[Tensor]:
        if model.config.model_type == "llama":
            return answer_losses(model, sheet.trees)
        # Answers beside each other need a mask and positions of their own, which not every model takes.
        return answer_losses_apart(model, self.tokenizer, sheet.questions)


def _scores(losses: Sequence[Tensor]) -> tuple[float, ...]:
    """Each question's score: see the top of this file."""
    return tuple(-float(torch.logsumexp(nll[0] - nll, 0)) for nll in losses)


def _share_first(losses: Sequence[Tensor]) -> float:
    return sum(bool((nll[1:] > nll[0]).all()) for nll in losses) / len(losses)
