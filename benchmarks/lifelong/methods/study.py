"""How a method teaches where it does more than read the passages by the loss on their tokens."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.lifelong.methods.rules import Case, Online, Scales
from benchmarks.lifelong.training import Loss, Settings
from localopt.pretraining.probes import Example


@dataclass(frozen=True)
class Lesson:
    """What there is to teach with: the model, which is at `start`, the prepared files, the case, the rate, settings."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prepared: Path
    case: Case
    rate: float
    settings: Settings
    start: dict[str, Tensor]


@dataclass(frozen=True)
class Study:
    """The parts of a run that a method does its own way; None for what all others do.

    `reads`: the sequences of every epoch. `loss`: of a batch of them. `before`: what is done to the weights before
    they are trained. `instead`: what changes the weights of a plan, in place of training. `batches`: how many times as
    many sequences a step reads, for what reads several for every passage.
    """

    reads: Callable[[Lesson], list[list[Example]]] | None = None
    loss: Callable[[Lesson], Loss] | None = None
    before: Callable[[Lesson, Scales | Online], None] | None = None
    instead: Callable[[Lesson, Scales | Online], None] | None = None
    batches: int = 1


PLAIN = Study()
Extension: TypeAlias = Callable[[PreTrainedModel, Case], AbstractContextManager[dict[str, Tensor]]]
"""Adds modules to a model, takes them off at the end, and gives the weights they begin with by parameter name."""
