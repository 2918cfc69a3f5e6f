"""How to train: the settings of a run, and what cannot work, refused before anything is loaded or changed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from localopt.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from localopt.tracing.layer_trace import LayerTrace

METHODS = ("auto", "full", "freeze", "rescale", "online")
WARMUP = 0.05  # share of the steps
# Seeds beyond 32 bits are refused by NumPy, which Trainer seeds too, and sizes beyond these by torch: after the start.
RANGES = {"epochs": (1, 10**6), "batch_size": (1, 2**20), "seq_len": (2, 2**24), "seed": (0, 2**32 - 1)}
FEW = 20  # steps: with fewer there is no warm-up, and little is learned
PLAIN_RATE = 5e-5  # of the methods that have no rule for it


@dataclass(frozen=True)
class Settings:
    """How to train; a run that goes on must be asked the same.

    Attributes:
        method: ``"auto"``: AdamW with decay toward the start on the layers that a trace by gains chooses, of the corpus
            against the reference; the others are frozen. ``"full"``: AdamW on everything. ``"freeze"`` (TGL + FP): on
            the layers a trace chose, the others do not even get gradients. ``"rescale"`` (TGL + ALR): each layer's rate
            scaled by the trace. ``"online"``: each step on the layers with large gradient norms, relative to the
            trace's reference if there is a trace.
        lr: peak learning rate; see :func:`rate_share` for its schedule. None: by the rule of
            :func:`localopt.pretraining.optimizers.rate_by_rule` for "auto", 5e-5 for the others.
        epochs, batch_size, seq_len: passes over the corpus, sequences a step (of all processes together), tokens a
            sequence.
        bf16: run the model under bfloat16 autocast (weights stay float32).
        seed: order of the sequences and dropout, and of what the model writes as its own reference.
        anchor_decay: strength in [0, 1] of selective decay toward the weights training began with (SPD, arXiv
            2411.01713); 0 is none. None: 1 for "auto", 0 for the others.
        budget: the most that the reference's loss may rise, in nats a token: training ends with the largest share of
            its way that keeps to it. None: the whole way.
    """

    method: str = "auto"
    lr: float | None = None
    epochs: int = 3
    batch_size: int = 8
    seq_len: int = 256
    bf16: bool = False
    seed: int = 0
    anchor_decay: float | None = None
    budget: float | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"the method must be one of {', '.join(METHODS)}, not {self.method!r}.")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise InputError(f"the learning rate must be a number above 0, not {self.lr}.")
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if not least <= value <= most:
                bound = f"least {least}" if value < least else f"most {most}"
                raise InputError(f"{name} must be at {bound}, not {value}.")
        if self.anchor_decay is not None and not 0 <= self.anchor_decay <= 1:
            raise InputError(f"the anchor decay must be a strength from 0 (none) to 1, not {self.anchor_decay}.")
        if self.budget is not None and not 0 < self.budget < math.inf:
            raise InputError(
                f"the forgetting budget must be a number of nats a token above 0, not {self.budget}: leave it out to "
                "keep all that was learned."
            )

    @property
    def pull(self) -> float:
        """The strength of the decay toward the start."""
        return float(self.method == "auto") if self.anchor_decay is None else self.anchor_decay

    @property
    def needs_reference(self) -> bool:
        """Whether the run cannot do without something that the model should keep."""
        return self.method == "auto" or self.budget is not None

    def steps_an_epoch(self, sequences: int) -> int:
        """How many steps one pass over so many sequences takes; the last may have fewer of them."""
        return math.ceil(sequences / self.batch_size)


def rate_share(step: int, steps: int) -> float:
    """Return the share of the peak rate at a step (0, 1, ...): linear warm-up over 5% of the steps, linear decay.

    No step is at rate 0, neither the first nor the last; the last step of the warm-up is followed by the peak. Under 20
    steps there is no warm-up.

    >>> [rate_share(step, 4) for step in range(4)], [rate_share(step, 40) for step in (0, 1, 2, 39)]
    ([1.0, 0.75, 0.5, 0.25], [0.3333333333333333, 0.6666666666666666, 1.0, 0.02631578947368421])
    """
    warmup = int(WARMUP * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return max(0.0, (steps - step) / (steps - warmup))


def refuse_trace(settings: Settings, trace: LayerTrace | None) -> None:
    """Raise InputError if the method lacks the trace it needs, or has one it cannot use."""
    if settings.method in ("freeze", "rescale") and trace is None:
        raise InputError(
            f'method "{settings.method}" needs a trace: make one with `localopt trace`, give it as --trace.'
        )
    if settings.method == "full" and trace is not None:
        raise InputError('method "full" trains every layer and has no use for a trace: leave --trace out.')


def refuse_longer(seq_len: int, model: nn.Module) -> None:
    """Raise InputError if the model cannot read this many tokens at once."""
    from localopt.pretraining.evaluate import positions

    longest = positions(model)
    if longest is not None and seq_len > longest:
        raise InputError(f"the model reads at most {longest} tokens at once, not {seq_len}: set --seq-len {longest}.")


def refuse_uneven(batch_size: int, count: int) -> None:
    """Raise InputError if so many processes cannot have the same share of every step."""
    if batch_size % count:
        raise InputError(
            f"{batch_size} sequences a step cannot be shared evenly by {count} processes: set --batch-size to a "
            f"multiple of {count}."
        )
