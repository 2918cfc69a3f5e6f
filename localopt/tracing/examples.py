"""Iterables of examples or batches -> one example at a time, as the model takes it.

The norm of a layer's gradient is wanted for each example apart, so whatever the caller iterates over comes out here as
batches of one row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from operator import length_hint
from typing import Any, TypeAlias

import torch
from torch import Tensor

from localopt.errors import InputError

Batch: TypeAlias = Any
"""A mapping (``model(**batch)``), a tuple or list (``model(*batch)``), a tensor (``model(batch)``)."""


def one_by_one(items: Iterable[Any], of: str = "examples") -> Iterator[Batch]:
    """Yield every example of ``items`` as a batch of one row; nothing is read ahead.

    Args:
        items: *examples*, mappings whose ``input_ids`` is a list of T ints or a tensor of shape (T,), or *batches*: a
            mapping, tuple or list of tensors, or one tensor. A batch of B rows gives B examples: every tensor in it
            whose first dimension is B is sliced, everything else is passed on. B is the length of ``input_ids``, or of
            the first tensor where there is none.
        of: what the items are called in errors.

    Raises:
        InputError: an item is none of these, or holds no tensor with rows.

    Examples:
        >>> list(one_by_one([{"input_ids": [5, 6]}, {"input_ids": torch.tensor([[1, 2], [3, 4]])}]))
        [{'input_ids': tensor([[5, 6]])}, {'input_ids': tensor([[1, 2]])}, {'input_ids': tensor([[3, 4]])}]
    """
    for position, item in enumerate(items):
        batch = _with_rows(item)
        rows = _row_count(batch)
        if rows is None:
            raise InputError(
                f"item {position} (from 0) of the {of} is a {type(item).__name__}, which is neither an example nor a "
                "batch: give a mapping with input_ids, or what the model takes as a mapping, tuple or tensor with rows"
            )
        if rows == 1:
            yield batch
        else:
            for row in range(rows):
                yield _rows(batch, rows, slice(row, row + 1))


def opened(items: Iterable[Any], of: str = "examples") -> tuple[Iterator[Any], int | None]:
    """The items and their number, if it is known. InputError if there is none: an empty set should not cost a pass."""
    iterator = iter(items)
    try:
        first = next(iterator)
    except StopIteration:
        raise InputError(f"the {of} is empty: there is nothing to trace") from None
    return chain([first], iterator), length_hint(items) or None


def moved(batch: Batch, device: torch.device) -> Batch:
    """Return ``batch`` with its tensors on ``device``."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: moved(value, device) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(moved(value, device) for value in batch)
    return batch


def _with_rows(item: Any) -> Batch:
    """Turn lists of numbers into tensors, and give an example the batch dimension it lacks."""
    if not isinstance(item, Mapping):
        return item
    tensors = {key: _tensor(value) for key, value in item.items()}
    ids = tensors.get("input_ids")
    if isinstance(ids, Tensor) and ids.dim() == 1:
        return {key: value.unsqueeze(0) if isinstance(value, Tensor) else value for key, value in tensors.items()}
    return tensors


def _tensor(value: Any) -> Any:
    if isinstance(value, (Tensor, str, bytes, Mapping)) or value is None:
        return value
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return value  # not numbers, or rows of unequal length: the model has to say what it makes of it


def _row_count(batch: Batch) -> int | None:
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.dim() > 0 else None
    if isinstance(batch, Mapping):
        ids = batch.get("input_ids")
        values = [ids] if isinstance(ids, Tensor) else list(batch.values())
    elif isinstance(batch, (tuple, list)):
        values = list(batch)
    else:
        return None
    counts = (_row_count(value) for value in values)
    return next((count for count in counts if count is not None), None)


def _rows(batch: Batch, rows: int, chosen: slice) -> Batch:
    if isinstance(batch, Tensor):
        return batch[chosen] if batch.dim() > 0 and batch.shape[0] == rows else batch
    if isinstance(batch, Mapping):
        return {key: _rows(value, rows, chosen) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(_rows(value, rows, chosen) for value in batch)
    return batch
