"""The ways to take in new text that the demo compares.

The rates were chosen by `benchmarks/demo_rates.py` on facts of their own, which share no name and no kind with those
the methods are compared on, before the methods were compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch.optim import Optimizer

from localopt.demo.training import Effort
from localopt.optimizer import LocalizedOptimizer
from localopt.pretraining.announce import trained
from localopt.pretraining.auto import Material
from localopt.pretraining.optimizers import make_optimizer, rate
from localopt.pretraining.probes import Example
from localopt.pretraining.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ADAMW_RATE = 3e-4
ONE_LINE_RATE = 3e-4


@dataclass(frozen=True)
class Classroom:
    """What a method may look at: the model, the passages it will train on, and a folder to leave files in."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    rows: Sequence[Example]
    effort: Effort
    folder: Path


@dataclass(frozen=True)
class Prepared:
    """An optimizer that is ready, its peak learning rate, and what else there is to say."""

    optimizer: Optimizer
    rate: float
    note: str = ""


@dataclass(frozen=True)
class Method:
    """A name, what its preparation is called and costs in steps of training, if it takes time, and that itself."""

    name: str
    first: str
    preparing: float
    prepare: Callable[[Classroom], Prepared]


def adamw(model: PreTrainedModel, lr: float) -> Optimizer:
    """Every weight, by AdamW alone."""
    return make_optimizer(model, Settings(method="full", lr=lr), None)


def one_line(model: PreTrainedModel, lr: float) -> Optimizer:
    """The same optimizer, wrapped: every weight, with selective decay toward the weights it began with."""
    return LocalizedOptimizer(adamw(model, lr), model)


def auto(room: Classroom) -> Prepared:
    """What `localopt train` does unasked: the layers where the passages gain most over what that costs the model's own
    text, at the rate its rule gives, with selective decay toward the start; the other layers are frozen."""
    settings = Settings(method="auto", seed=room.effort.seed)
    trace = Material(room.model, room.tokenizer, room.rows, (), settings, room.folder, progress=False).trace()
    optimizer = make_optimizer(room.model, settings, trace)
    return Prepared(optimizer, rate(room.model, settings), trained(room.model, trace.partition()))


METHODS = (
    Method("AdamW", "", 0, lambda room: Prepared(adamw(room.model, ADAMW_RATE), ADAMW_RATE)),
    Method("one line", "", 0, lambda room: Prepared(one_line(room.model, ONE_LINE_RATE), ONE_LINE_RATE)),
    Method("auto", "choosing layers", 20, auto),
)
