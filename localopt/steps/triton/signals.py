"""Sums over all tensors by two launches: one reads every chunk once, one adds the chunks of each tensor up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from localopt.steps.triton.chunks import CHUNK, addresses, aligned, chunks, numbers
from localopt.steps.triton.elements import KINDS, launching
from localopt.steps.triton.sum_kernels import sums_of_chunks, sums_of_tensors
from localopt.sums import READS, Sources, flattened

BLOCK = 1024
_ROLES = ("gradient", "weight", "start", "momentum")


def triton_sums(names: Sequence[str], sources: Sources, home: torch.device) -> Tensor:
    """Return what :func:`localopt.sums.sums` returns, for tensors that all lie on ``home``.

    Partial sums are of 16 elements each before a tree adds them up, in float32 (float64 for float64), then in float64
    from chunk to chunk: no atomic additions, so equal tensors give equal bits.

    Args:
        names, sources, home: as there.

    Returns:
        Shape (S, T + 1), float64.

    Example:
        >>> triton_sums(["norm"], {"gradient": [torch.ones(3, device="cuda")]}, torch.device("cuda"))  # doctest: +SKIP
        tensor([[3., 0.]], device='cuda:0', dtype=torch.float64)
    """
    roles = list(dict.fromkeys(role for name in names for role in READS[name]))
    columns = [dict(zip(roles, column, strict=True)) for column in zip(*(sources[role] for role in roles), strict=True)]
    out = torch.zeros((len(names), len(columns) + 1), dtype=torch.float64, device=home)
    alike: dict[tuple[tuple[str, torch.dtype], ...], list[tuple[int, dict[str, Tensor]]]] = {}
    for position, column in enumerate(columns):
        flat = {role: tensor.contiguous() for role, tensor in flattened(column).items()}
        if flat:
            alike.setdefault(tuple((role, tensor.dtype) for role, tensor in flat.items()), []).append((position, flat))
    with launching(home):
        for kind, members in alike.items():
            _add(names, dict(kind), members, out)
    return out


def _add(
    names: Sequence[str], kinds: dict[str, torch.dtype], members: Sequence[tuple[int, dict[str, Tensor]]], out: Tensor
) -> None:
    """Write the sums of tensors that are alike in what they have and in its dtypes."""
    sizes = tuple(next(iter(flat.values())).numel() for _, flat in members)
    table = chunks(sizes, out.device)
    count = len(table.tensor)
    taken = [name for name in names if kinds.keys() >= set(READS[name])]
    if not count or not taken:
        return
    wide = torch.float64 if torch.float64 in kinds.values() else torch.float32
    partial = torch.zeros((len(names), count), dtype=wide, device=out.device)
    lists = {role: [flat[role] for _, flat in members] for role in kinds}
    where = {role: addresses(tensors, out.device) for role, tensors in lists.items()}
    nowhere = table.size  # read as addresses, which are never followed: what needs them is not taken
    rows = {name: names.index(name) if name in taken else -1 for name in READS}
    sums_of_chunks[(count,)](
        *(where.get(role, nowhere) for role in _ROLES),
        table.tensor,
        table.offset,
        table.size,
        partial,
        count,
        *(KINDS[kinds.get(role, torch.float32)] for role in _ROLES),
        *(rows[name] for name in ("norm", "l1", "weight", "drift", "pullback", "momentum", "agreement")),
        ALIGNED=aligned(*lists.values()),
        WIDE=KINDS[wide],
        CHUNK=CHUNK,
        BLOCK=BLOCK,
    )
    positions = numbers([position for position, _ in members], out.device)
    sums_of_tensors[(len(members), len(names))](partial, table.first, positions, out, count, out.shape[1], BLOCK=BLOCK)
