"""How to train: the settings of a run, and what cannot work, refused before anything is loaded or changed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from localopt.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from localopt.tracing.layer_trace import LayerTrace

METHODS = ("full", "freeze", "rescale", "online")
WARMUP = 0.05  # share of the steps
# Seeds beyond 32 bits are refused by NumPy, which Trainer seeds too, and sizes beyond these by torch: after the start.
RANGES = {"epochs": (1, 10**6), "batch_size": (1, 2**20), "seq_len": (2, 2**24), "seed": (0, 2**32 - 1)}
FEW = 20  # steps: with fewer there is no warm-up, and little is learned


@dataclass(frozen=True)
class Settings:
    """How to train; a run that goes on must be asked the same.

    Attributes:
        method: ``"full"``: AdamW on everything. ``"freeze"`` (TGL + FP): on the layers a trace chose, the others do not
            even get gradients. ``"rescale"`` (TGL + ALR): each layer's rate scaled by the trace. ``"online"``: each
            step on the layers with large gradient norms, relative to the trace's reference if there is a trace.
        lr: peak learning rate; see :func:`rate_share` for its schedule.
        epochs, batch_size, seq_len: passes over the corpus, sequences a step (of all processes together), tokens a
            sequence.
        bf16: run the model under bfloat16 autocast (weights stay float32).
        seed: order of the sequences and dropout.
    """

    method: str = "online"
    lr: float = 5e-5
    epochs: int = 3
    batch_size: int = 8
    seq_len: int = 256
    bf16: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"the method must be one of {', '.join(METHODS)}, not {self.method!r}.")
        if not 0 < self.lr < math.inf:
            raise InputError(f"the learning rate must be a number above 0, not {self.lr}.")
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if not least <= value <= most:
                bound = f"least {least}" if value < least else f"most {most}"
                raise InputError(f"{name} must be at {bound}, not {value}.")

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


def plan(settings: Settings, sequences: int, tokens: int) -> str:
    """Say how much there is to train on, in a line, and warn in a second one where that is little.

    >>> print(plan(Settings(epochs=3, batch_size=8), 2000, 500_000))
    corpus: 500,000 tokens in 2,000 sequences; 3 epochs of 250 steps, 750 in all
    """
    an_epoch = settings.steps_an_epoch(sequences)
    steps = an_epoch * settings.epochs
    said = (
        f"corpus: {tokens:,} tokens in {_counted(sequences, 'sequence')}; {_counted(settings.epochs, 'epoch')} of "
        f"{_counted(an_epoch, 'step')}, {steps:,} in all"
    )
    if steps < FEW:
        said += f"\nfew steps: under {FEW} little is learned; more text, more --epochs or a smaller --batch-size help"
    return said


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


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
