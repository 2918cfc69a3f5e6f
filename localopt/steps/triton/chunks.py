"""Tensors -> equal chunks: which program of a kernel works on which part of which tensor."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

CHUNK = 1 << 14  # elements a program reads of each tensor
ALIGNMENT = 16  # bytes that a thread reads at once, where a tensor begins at a multiple of them
_KEPT = 8  # tables that are kept; an optimizer has one for each combination of dtypes

# A CUDA graph reads its tables again whenever it is replayed: they, and what they were copied from, stay.
_captured: list[tuple[Tensor, ...]] = []
Tables = TypeVar("Tables", bound=tuple[Tensor, ...])


class Chunks(NamedTuple):
    """Where the programs of one launch find their work; int64 tensors on the device.

    Attributes:
        tensor: (C,), the index of the tensor that a chunk is of.
        offset: (C,), its first element.
        first: (T + 1,), the first chunk of each tensor, then C.
        size: (T,), elements of each tensor.
    """

    tensor: Tensor
    offset: Tensor
    first: Tensor
    size: Tensor


def chunks(sizes: tuple[int, ...], device: torch.device) -> Chunks:
    """Cut tensors of these sizes; made once, as long as the parameters stay.

    Example:
        >>> chunks((CHUNK + 1, 0, 3), torch.device("cpu")).first.tolist()
        [0, 2, 2, 3]
    """
    return _kept(_chunks(sizes, device))


def numbers(found: Sequence[int], device: torch.device) -> Tensor:
    """Return whole numbers as an int64 tensor on the device; brought there once."""
    return _kept(_sent(tuple(found), device))[1]


def addresses(tensors: Sequence[Tensor | None], device: torch.device) -> Tensor:
    """Return where tensors lie, int64 (T,) on the device, 0 for None; brought there anew only where one has moved."""
    return numbers([0 if tensor is None else tensor.data_ptr() for tensor in tensors], device)


def aligned(*lists: Sequence[Tensor | None]) -> bool:
    """Whether all tensors begin at a multiple of ALIGNMENT bytes."""
    return all(tensor is None or tensor.data_ptr() % ALIGNMENT == 0 for tensors in lists for tensor in tensors)


@lru_cache(maxsize=_KEPT)
def _chunks(sizes: tuple[int, ...], device: torch.device) -> Chunks:
    counts = [-(-size // CHUNK) for size in sizes]
    first = [0]
    for count in counts:
        first.append(first[-1] + count)
    rows = [
        [i for i, count in enumerate(counts) for _ in range(count)],
        [piece * CHUNK for count in counts for piece in range(count)],
        first,
        list(sizes),
    ]
    return Chunks(*(_on(row, device)[1] for row in rows))


@lru_cache(maxsize=16 * _KEPT)
def _sent(found: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    return _on(found, device)


def _on(found: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Whole numbers on the host and on the device; from pinned memory, so that nothing waits."""
    table = torch.tensor(found, dtype=torch.int64, pin_memory=device.type == "cuda")
    return table, table.to(device, non_blocking=True)


def _kept(tables: Tables) -> Tables:
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        _captured.append(tables)
    return tables
