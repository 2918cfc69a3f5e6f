"""Replay of logits as dark experience replay has it, DER++ (Buzzega et al. 2020, arXiv 2004.07211).

A buffer holds sequences x with the logits z_0 that the model had on them. In every step some of them are drawn, twice,
and with L the loss on what is learned and NLL that on a sequence's tokens, the loss is

    L + alpha * mean over tokens and vocabulary of (z - z_0)^2 + beta * NLL.

alpha = beta = 0.5, within what the authors tune over (0.1 to 1). With alpha = 0 it is replay.

Departures: their buffer grows with the stream of tasks; here it is 32 pieces of ordinary text that the start has not
read, with the start's logits (an earlier task is not at hand), 4 drawn a step for each of the two terms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from benchmarks.lifelong.methods.mixreview import unread
from benchmarks.lifelong.methods.study import Lesson
from benchmarks.lifelong.training import Loss, own_loss
from localopt.pretraining.evaluate import padded
from localopt.pretraining.probes import Example

BUFFER, DRAWN = 32, 4
ALPHA, BETA = 0.5, 0.5


def remembered(alpha: float = ALPHA, beta: float = BETA) -> Callable[[Lesson], Loss]:
    """The loss of DER++ with a buffer of text, whose logits are those of the model as it is when this is called."""

    def loss_of(lesson: Lesson) -> Loss:
        text = unread(lesson)
        kept = [text[i * len(text) // BUFFER] for i in range(BUFFER)] if len(text) > BUFFER else text
        with torch.no_grad(), lesson.settings.autocast():
            logits = [_logits(lesson.model.eval(), [one])[0] for one in kept]
        generator = torch.Generator().manual_seed(lesson.case.seed)

        def draw() -> list[int]:
            return torch.randint(len(kept), (DRAWN,), generator=generator).tolist()

        def loss(model: nn.Module, examples: Sequence[Example]) -> Tensor:
            found = own_loss(model, examples)
            likened, read = draw(), draw()
            if alpha:
                now = _logits(model, [kept[i] for i in likened])
                squares = [(a - logits[i]).square().mean() for a, i in zip(now, likened, strict=True)]
                found = found + alpha * torch.stack(squares).mean()
            return found + beta * own_loss(model, [kept[i] for i in read]) if beta else found

        return loss

    return loss_of


def _logits(model: nn.Module, examples: Sequence[Example]) -> list[Tensor]:
    """The logits of each sequence, (T, V), fp32."""
    ids, _, attention = padded(examples)
    found = model(input_ids=ids, attention_mask=attention, use_cache=False).logits
    return [row[: len(example["input_ids"])].float() for row, example in zip(found, examples, strict=True)]
