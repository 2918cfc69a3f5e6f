"""Questions about the new world -> what a model knows of it, and what it has lost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedTokenizerBase

from localopt.pretraining.evaluate import evaluate
from localopt.pretraining.probes import Probe


@dataclass(frozen=True)
class Scores:
    """What a model knows of the new world.

    ``updated``, ``new``, ``unchanged``: share of the questions about these facts that the model answers with the right
    name first, of all the words it knows; ``loss``: negative log-likelihood of the right names in nats, over all of
    the questions.
    """

    updated: float
    new: float
    unchanged: float
    loss: float

    @property
    def news(self) -> float:
        """Mean of the accuracies on updated and new facts."""
        return (self.updated + self.new) / 2


def examine(model: nn.Module, tokenizer: PreTrainedTokenizerBase, questions: Mapping[str, Sequence[Probe]]) -> Scores:
    """Ask ``questions["updated"]``, ``["new"]`` and ``["unchanged"]``."""
    asked = {name: evaluate(model, tokenizer, probes, batch_size=256) for name, probes in questions.items()}
    right = {name: score.ranked_first or 0.0 for name, score in asked.items()}
    count = sum(score.tokens for score in asked.values())
    return Scores(**right, loss=math.fsum(score.nll * score.tokens for score in asked.values()) / count)
