"""A model -> what it knows of the invented facts, of the world, and of ordinary text, and what it writes.

The *score* of a question is the log of the probability that its right answer has among the answers offered, in nats:
log(1/5) = -1.61 for a model that cannot tell five answers apart, 0 for one that is certain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from localopt.demo.lessons import Asked, Lessons
from localopt.pretraining.candidates import Question, answer_losses, answer_losses_apart, plant
from localopt.pretraining.evaluate import evaluate_text, positions

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PIECE = 256  # tokens of the page read at a time
WRITTEN = 10  # tokens


@dataclass(frozen=True)
class Marks:
    """What a model knows.

    ``answered``, ``score``: of the questions about what was taught, the share whose right answer is the likeliest of
    those offered, and the mean score. ``known``, ``known_score``: the same of what it should still know. ``page``:
    negative log-likelihood of ordinary text, nats a token.
    """

    answered: float
    score: float
    known: float
    known_score: float
    page: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


class Exam:
    """The questions of ``lessons``, tokenized once for all models that are asked."""

    def __init__(self, lessons: Lessons, tokenizer: PreTrainedTokenizerBase) -> None:
        self.lessons, self.tokenizer = lessons, tokenizer
        self._taught = [Question(one.prompt, one.answers) for one in lessons.taught]
        self._known = [Question(one.prompt, one.answers) for one in lessons.known]

    def mark(self, model: PreTrainedModel) -> Marks:
        """Ask everything. The model is put in eval mode."""
        model.train(False)
        answered, score = _told_apart(self._losses(model, self._taught))
        known, known_score = _told_apart(self._losses(model, self._known))
        length = min(PIECE, positions(model) or PIECE)
        page = evaluate_text(model, self.tokenizer, [self.lessons.page], length=length).nll
        return Marks(answered, score, known, known_score, page)

    def write(self, model: PreTrainedModel) -> list[str]:
        """What the model writes, greedily, for each of ``lessons.shown``: up to the end of the sentence."""
        return [self._written(model, self.lessons.taught[place]) for place in self.lessons.shown]

    def _losses(self, model: PreTrainedModel, questions: Sequence[Question]) -> list[Tensor]:
        if model.config.model_type == "llama":
            return answer_losses(model, plant(questions, self.tokenizer))
        # Answers beside each other need a mask and positions of their own, which not every model takes.
        return answer_losses_apart(model, self.tokenizer, questions)

    @torch.inference_mode()
    def _written(self, model: PreTrainedModel, asked: Asked) -> str:
        ids = self.tokenizer(asked.prompt, return_tensors="pt")["input_ids"].to(model.device)
        for _ in range(WRITTEN):
            following = model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)
            ids = torch.cat([ids, following], 1)
        text = str(self.tokenizer.decode(ids[0], skip_special_tokens=True))
        beginning = str(self.tokenizer.decode(ids[0, :-WRITTEN], skip_special_tokens=True))
        return _first_sentence(text.removeprefix(beginning))


def _told_apart(losses: Sequence[Tensor]) -> tuple[float, float]:
    """(share of the questions whose first answer is the likeliest, mean score)."""
    first = sum(bool((nll[1:] > nll[0]).all()) for nll in losses) / len(losses)
    scores = [-float(torch.logsumexp(nll[0] - nll, 0)) for nll in losses]
    return first, sum(scores) / len(scores)


def _first_sentence(text: str) -> str:
    """The text as one line up to its first full stop.

    >>> _first_sentence(" a baker. She")
    'a baker.'
    """
    line = " ".join(text.split())
    end = line.find(". ") + 1
    return line[:end] if end else line
