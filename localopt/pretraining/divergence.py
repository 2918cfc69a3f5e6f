"""A run that diverged is not a result: weights, or every loss for a while, that are no finite numbers end it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from localopt.errors import InputError


class Watch:
    """Counts losses on their device, so that no step waits for it, and looks at them where a checkpoint is due.

    A single loss that is not finite is no divergence: its step may have been skipped. A model that gives no other any
    more is diverged even where its weights are finite, as when every step is skipped.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.bad: Tensor | None = None

    def see(self, loss: Tensor) -> None:
        """Take note of one step's loss, a scalar tensor."""
        bad = (~loss.detach().isfinite()).long()
        self.bad = bad if self.bad is None else self.bad + bad
        self.steps += 1

    def refuse_diverged(self, model: nn.Module, step: int, checkpoints: Path) -> None:
        """Raise InputError if the model has diverged by this step; begin to count anew if not."""
        wrong = not_finite(model)
        if wrong is None and self.bad is not None and int(self.bad) == self.steps:
            wrong = f"the loss has not been a finite number for {self.steps} steps"
        self.steps, self.bad = 0, None
        if wrong is None:
            return
        kept = sorted(checkpoints.glob("checkpoint-*"), key=lambda path: path.name.rpartition("-")[2].zfill(20))
        last = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint before it"
        raise InputError(
            f"step {step}: the run has diverged: {wrong}. No model is saved; {last}. Begin anew with a smaller --lr."
        )


def not_finite(model: nn.Module) -> str | None:
    """Name a parameter with a value that is not finite; None if there is none."""
    with torch.no_grad():
        finite = {name: p.isfinite().all() for name, p in model.named_parameters()}
    wrong = [name for name, good in finite.items() if not bool(good)]
    return f"{wrong[0]} has values that are not finite" if wrong else None
