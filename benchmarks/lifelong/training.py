"""One training loop for the start and for every method: texts of equal rank in batches, a rate that rises and falls."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from localopt import LocalizedOptimizer
from localopt.pretraining.evaluate import padded
from localopt.pretraining.probes import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Loss: TypeAlias = Callable[[nn.Module, Sequence[Example]], Tensor]
"""The loss of a model on a batch of sequences, a scalar."""

WARMUP = 0.05  # share of the steps
WEIGHT_DECAY = 0.01  # on matrices


@dataclass(frozen=True)
class Settings:
    """What is the same in all runs of a sweep: tokens of a text, texts of a batch, passes, and the forward's dtype."""

    length: int = 64
    batch_size: int = 8
    epochs: int = 3
    bf16: bool = False

    @classmethod
    def of(cls, prepared: Path, bf16: bool = False, smoke: bool = False) -> Settings:
        """Those of a prepared folder, whose manifest says how long its passages are where they must be read whole.

        `smoke`: one epoch, of short texts where they need not.
        """
        file = prepared / "manifest.json"
        length = json.loads(file.read_text()).get("length") if file.is_file() else None
        return cls(length or (16 if smoke else cls.length), epochs=1 if smoke else cls.epochs, bf16=bf16)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.bf16)


def texts(rows: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, length: int) -> list[Example]:
    """One sequence a text, cut after `length` tokens, the loss on every token."""
    ids = [torch.tensor(tokenizer(row["text"], verbose=False)["input_ids"][:length]) for row in rows]
    return [{"input_ids": one, "labels": one.clone()} for one in ids]


def grouped(parameters: Sequence[nn.Parameter]) -> list[dict[str, Any]]:
    """Parameter groups with weight decay on matrices alone."""
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def own_loss(model: nn.Module, sequences: Sequence[Example]) -> Tensor:
    """The model's own: the mean NLL of the labeled tokens."""
    ids, labels, attention = padded(sequences)
    loss: Tensor = model(input_ids=ids, labels=labels, attention_mask=attention, use_cache=False).loss
    return loss


def fit(
    model: nn.Module,
    epochs: Sequence[Sequence[Example]],
    optimizer: Optimizer,
    settings: Settings,
    seed: int,
    after_step: Callable[[], None] = lambda: None,
    loss_of: Loss = own_loss,
) -> None:
    """Train on the sequences of each epoch, in an order that depends on the seed alone.

    `after_step` is called after every step.
    """
    steps = sum(math.ceil(len(sequences) / settings.batch_size) for sequences in epochs)
    warmup = math.ceil(WARMUP * steps)
    schedule = LambdaLR(optimizer, lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup)))
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model.train()
    for sequences in epochs:
        order = torch.randperm(len(sequences), generator=generator)
        for chosen in torch.split(order, settings.batch_size):
            with settings.autocast():
                loss = loss_of(model, [sequences[int(i)] for i in chosen])
            loss.backward()
            if isinstance(optimizer, LocalizedOptimizer):
                optimizer.observe(loss.detach())
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            after_step()
    model.eval()
