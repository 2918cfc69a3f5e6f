"""One training loop for every method: a passage a row, in random order, as `localopt train` trains."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from localopt.pretraining.evaluate import padded
from localopt.pretraining.probes import Example
from localopt.pretraining.settings import rate_share

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Effort:
    """How long each model trains: passes over the passages, passages a step, and the seed of their order."""

    epochs: int = 4
    batch: int = 24
    seed: int = 0

    def steps(self, passages: int) -> int:
        return self.epochs * math.ceil(passages / self.batch)


def read_passages(passages: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """One sequence a passage, the loss on every token."""
    rows = [torch.tensor(tokenizer(passage)["input_ids"]) for passage in passages]
    return [{"input_ids": ids, "labels": ids.clone()} for ids in rows]


def teach(
    model: PreTrainedModel,
    rows: Sequence[Example],
    optimizer: Optimizer,
    effort: Effort,
    on_step: Callable[[], None] = lambda: None,
) -> float:
    """Train the model on the passages; returns the seconds it took."""
    schedule = LambdaLR(optimizer, partial(rate_share, steps=effort.steps(len(rows))))
    generator = torch.Generator().manual_seed(effort.seed)
    started = time.perf_counter()
    model.train()
    for _ in range(effort.epochs):
        for chosen in torch.split(torch.randperm(len(rows), generator=generator), effort.batch):
            ids, labels, attention = (part.to(model.device) for part in padded([rows[int(i)] for i in chosen]))
            loss = model(input_ids=ids, labels=labels, attention_mask=attention, use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            on_step()
    model.train(False)
    return time.perf_counter() - started
