"""One training loop for everything the demo trains."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import LlamaForCausalLM

from localopt.demo.tiny.memory import PeakMemory
from localopt.optimizer import LocalizedOptimizer

Data = dict[str, Tensor]


@dataclass(frozen=True)
class Effort:
    """What a training run cost.

    ``seconds``: wall time of all steps but the last; ``peak_bytes``: most bytes of tensors alive in the last step, when
    all optimizer state exists; ``share_updated``: share of the parameters that a step updates, mean over the steps.
    """

    steps: int
    seconds: float
    peak_bytes: int
    share_updated: float


def train(
    model: LlamaForCausalLM,
    optimizer: Optimizer,
    data: Data,
    *,
    epochs: int,
    batch: int,
    seed: int,
    on_step: Callable[[], None],
) -> Effort:
    """Train on ``data`` in random order, with a short warm-up and a linear decay of the learning rate to zero."""
    steps = step_count(data, epochs, batch)
    warm_up = max(1, steps // 20)
    scheduler = LambdaLR(optimizer, lambda step: min((step + 1) / warm_up, (steps - step) / (steps - warm_up + 1)))
    order = _batches(data, batch, torch.Generator().manual_seed(seed))
    model.train()

    def step() -> float:
        loss: Tensor = model(**next(order), use_cache=False).loss
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        on_step()
        return optimizer.report().share_updated if isinstance(optimizer, LocalizedOptimizer) else 1.0

    started = time.perf_counter()
    shares = [step() for _ in range(steps - 1)]
    seconds = time.perf_counter() - started
    with PeakMemory(alive=_held(model, optimizer)) as memory:
        shares.append(step())
    model.train(False)
    return Effort(steps, seconds, memory.peak, math.fsum(shares) / steps)


def step_count(data: Data, epochs: int, batch: int) -> int:
    """How many steps of ``batch`` sentences it takes to read ``data`` ``epochs`` times."""
    return epochs * math.ceil(len(data["input_ids"]) / batch)


def _batches(data: Data, size: int, generator: torch.Generator) -> Iterator[Data]:
    """Batches without end, every epoch in another order."""
    while True:
        for rows in torch.split(torch.randperm(len(data["input_ids"]), generator=generator), size):
            yield {name: tensor[rows] for name, tensor in data.items()}


def _held(model: LlamaForCausalLM, optimizer: Optimizer) -> Iterator[Tensor]:
    """The tensors that outlive a step: weights, buffers, optimizer state."""
    yield from model.parameters()
    yield from model.buffers()
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))
