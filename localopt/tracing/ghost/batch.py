"""Examples -> a padded batch; logits -> one loss an example."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from localopt.tracing.examples import Batch
from localopt.tracing.ghost.uses import NotBatchable

IGNORED = -100
TOKENS = 1024
"""Positions in a batch, padding included, where the caller does not say how many examples it should hold."""

_PADDING = {"input_ids": 0, "labels": IGNORED, "attention_mask": 0}


class Padded(NamedTuple):
    """B examples as rows of T positions; what is short is padded on the right.

    Attributes:
        inputs: what the model is called with: ``input_ids`` (B, T), and ``attention_mask`` (B, T) where it is needed.
        labels: (B, T) int64, -100 where no loss is taken.
        even: nothing is padded.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    even: bool


def grouped(examples: Iterable[Batch], size: int | None) -> Iterator[list[Batch]]:
    """Yield lists of ``size`` examples, or of as many as fit in TOKENS positions; one list is read ahead at most.

    Examples:
        >>> [len(group) for group in grouped([{"input_ids": torch.ones(1, 500)}] * 5, None)]
        [2, 2, 1]
    """
    group: list[Batch] = []
    longest = 0
    for example in examples:
        length = _length(example)
        full = len(group) == size if size else max(longest, length) * (len(group) + 1) > TOKENS
        if group and full:
            yield group
            group, longest = [], 0
        group.append(example)
        longest = max(longest, length)
    if group:
        yield group


def padded(examples: Sequence[Batch], device: torch.device) -> Padded:
    """Put batches of one row together. NotBatchable if they are more than token ids, labels and a mask."""
    for example in examples:
        _check(example)
    lengths = [_length(example) for example in examples]
    columns = {key: [example.get(key) for example in examples] for key in _PADDING}
    even = len(set(lengths)) == 1
    if not even or any(mask is not None for mask in columns["attention_mask"]):
        masks = zip(columns["attention_mask"], columns["input_ids"], strict=True)
        columns["attention_mask"] = [torch.ones_like(ids) if mask is None else mask for mask, ids in masks]
    else:
        del columns["attention_mask"]
    together = {
        key: pad_sequence([value[0] for value in values], batch_first=True, padding_value=_PADDING[key]).to(device)
        for key, values in columns.items()
    }
    labels = together.pop("labels")
    return Padded(together, labels, even)


@torch.no_grad()
def losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Each example's mean cross-entropy over its labeled tokens: what a causal model of transformers returns for it.

    Position t predicts the label at t + 1. An example without a labeled token has the loss NaN.

    Args:
        logits: (B, T, V).
        labels: (B, T) int64, -100 where no loss is taken.

    Returns:
        The losses, (B,), and the gradient of their sum for the logits, (B, T, V): (softmax - one-hot) / labeled tokens.
        Made here, in place, it needs half the memory and time that autograd takes for it.

    Examples:
        >>> each, gradient = losses(torch.zeros(2, 3, 5), torch.tensor([[1, 2, 3], [1, -100, 4]]))
        >>> each, gradient[1, 1]
        (tensor([1.6094, 1.6094]), tensor([ 0.2000,  0.2000,  0.2000,  0.2000, -0.8000]))
    """
    if logits.shape[:2] != labels.shape:
        raise NotBatchable(f"logits of shape {tuple(logits.shape)} do not answer labels of {tuple(labels.shape)}")
    targets = F.pad(labels, (0, 1), value=IGNORED)[:, 1:].to(logits.device)
    weights = (targets != IGNORED).float()
    weights /= weights.sum(1, keepdim=True)
    targets = targets.clamp(min=0)[..., None]
    logs = torch.log_softmax(logits.float(), dim=-1)
    each = -(weights * logs.gather(-1, targets)[..., 0]).sum(1)
    gradient = logs.exp_().scatter_add_(-1, targets, logs.new_full((), -1.0).expand(targets.shape))
    return each, gradient.mul_(weights[..., None]).to(logits.dtype)


def _length(example: Batch) -> int:
    ids = example.get("input_ids") if isinstance(example, Mapping) else None
    return ids.shape[-1] if isinstance(ids, Tensor) and ids.dim() else TOKENS


def _check(example: Batch) -> None:
    if not isinstance(example, Mapping) or not {"input_ids", "labels"} <= example.keys():
        raise NotBatchable("only examples with input_ids and labels can be put together")
    others = ", ".join(str(key) for key in example if key not in _PADDING)
    if others:
        raise NotBatchable(f"examples also hold {others}, and it is not known how to pad that")
    ids = example["input_ids"]
    for key, value in example.items():
        if not isinstance(value, Tensor) or value.dim() != 2 or len(value) != 1 or value.shape != ids.shape:
            raise NotBatchable(f"the {key} of an example is not one row of as many numbers as there are tokens")
