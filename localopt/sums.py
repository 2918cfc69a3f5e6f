"""Tensors -> sums over their elements: each tensor is read once, and nothing waits for the device.

What a signal of a layer is made of adds up over the layer's tensors, and over the shards of a tensor:

    norm   sum of |g|^2        weight    sum of |w|^2          momentum   sum of |m|^2
    l1     sum of |g|          drift     sum of |w - w0|^2     agreement  sum of g m
                               pullback  sum of g (w - w0)

with g the gradient of a parameter, w its weights, w0 those it began with, m its momentum.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

READS = {
    "norm": ("gradient",),
    "l1": ("gradient",),
    "weight": ("weight",),
    "drift": ("weight", "start"),
    "pullback": ("gradient", "weight", "start"),
    "momentum": ("momentum",),
    "agreement": ("gradient", "momentum"),
}
"""What each sum is taken of."""

Sources: TypeAlias = Mapping[str, Sequence[Tensor | None]]
"""By the names in READS, the gradients, weights, ... of the same T parameters; None where there is none."""

Column: TypeAlias = Mapping[str, Tensor | None]  # one parameter's part of the sources

# Sizes in elements. A float32 dot product is off by 3e-7 at SHORT (3e-6 if the numbers are bfloat16's) and by ever more
# beyond; a longer gradient is cut into rows, whose norms are short again. Half-precision gradients are widened a chunk
# at a time, in a buffer that stays in cache: to reduce them as they are is twice as fast, and off by 2e-3 at worst.
SHORT = 1 << 17
ROW = 1 << 12
CHUNK = 1 << 20
BLOCK = 1 << 18  # elements that several sums are taken of while they are in cache
PIECE = 1 << 24  # elements whose differences are held at a time where they are taken on an accelerator


def squared_norm(gradient: Tensor) -> Tensor:
    """Return the sum of squares of one gradient, accumulated in float32 or wider.

    Args:
        gradient: any shape, any floating or complex dtype, dense or sparse, on any device.

    Returns:
        A 0-d tensor on the gradient's device; float64, or float32 where the device has no float64.

    Example:
        >>> squared_norm(torch.tensor([3.0, 4.0])).item()
        25.0
    """
    flat = _flat(gradient)
    if flat.device.type == "cpu":
        return torch.tensor(_square_on_cpu(flat, _buffer()), dtype=torch.float64)
    norm: Tensor = torch.linalg.vector_norm(flat, dtype=_accumulator(flat.dtype))
    return norm.to(sum_dtype(flat.device)).square()


def squares(gradients: Sequence[Tensor | None], home: torch.device) -> Tensor:
    """Sum of squares of every gradient, then one zero for the padding: shape (T + 1,) on ``home``."""
    if {gradient.device.type for gradient in gradients if gradient is not None} <= {"cpu"}:
        buffer = _buffer()
        values = [0.0 if gradient is None else _square_on_cpu(_flat(gradient), buffer) for gradient in gradients]
        return torch.tensor([*values, 0.0], dtype=torch.float64).to(home)
    zero = torch.zeros((), dtype=sum_dtype(home), device=home)
    slots = [zero] * (len(gradients) + 1)
    for (device, dtype), members in _by_device_and_dtype(gradients).items():
        if device.type == "cpu":
            norms = [squared_norm(gradient).sqrt() for _, gradient in members]
        else:
            flats = [_flat(gradient) for _, gradient in members]
            norms = list(torch._foreach_norm(flats, 2, dtype=_accumulator(dtype)))
        # One transfer a device, not one a gradient.
        moved = torch.stack(norms).to(device=home, dtype=zero.dtype, non_blocking=True).square()
        for (position, _), square in zip(members, moved.unbind(), strict=True):
            slots[position] = square
    return torch.stack(slots)


def sums(names: Sequence[str], sources: Sources, home: torch.device) -> Tensor:
    """Return the sums of every parameter, then a zero that stands for no parameter.

    Args:
        names: S names of READS.
        sources: what they are taken of. Where one is None, the sums that need it are zero.
        home: where the sums are wanted.

    Returns:
        Shape (S, T + 1), float64, or float32 where the device has no float64.

    Example:
        >>> sources = {"gradient": [torch.tensor([3.0, -4.0])], "momentum": [torch.tensor([1.0, 2.0])]}
        >>> sums(["norm", "l1", "agreement"], sources, torch.device("cpu"))
        tensor([[25.,  0.],
                [ 7.,  0.],
                [-5.,  0.]], dtype=torch.float64)
    """
    roles = list(dict.fromkeys(role for name in names for role in READS[name]))
    columns = [dict(zip(roles, column, strict=True)) for column in zip(*(sources[role] for role in roles), strict=True)]
    if all(tensor is None or tensor.device.type == "cpu" for column in columns for tensor in column.values()):
        buffers = {role: torch.empty(BLOCK, dtype=torch.float32) for role in (*roles, "difference", "absolute")}
        values = [_sums_on_cpu(names, column, buffers) for column in columns]
        return torch.tensor([*values, [0.0] * len(names)], dtype=torch.float64).T.contiguous().to(home)
    return _sums_on_device(names, columns, home)


def _sums_on_device(names: Sequence[str], columns: Sequence[Column], home: torch.device) -> Tensor:
    dtype = sum_dtype(home)
    nothing = torch.zeros(len(names), dtype=dtype, device=home)
    slots = [nothing] * (len(columns) + 1)
    for positions, lists in _pieces(columns):
        # One transfer a piece, not one a parameter.
        found = _sums_of_piece(names, lists).to(device=home, dtype=dtype, non_blocking=True)
        for position, column in zip(positions, found.unbind(1), strict=True):
            slots[position] = column if slots[position] is nothing else slots[position] + column
    return torch.stack(slots, dim=1)


def _sums_on_cpu(names: Sequence[str], column: Column, buffers: Mapping[str, Tensor]) -> list[float]:
    """The sums of one parameter, by pieces that stay in cache while all of them are taken."""
    flat = flattened(column)
    taken = [name for name in names if flat.keys() >= set(READS[name])]
    found = dict.fromkeys(names, 0.0)
    for first in range(0, max((tensor.numel() for tensor in flat.values()), default=0), BLOCK):
        piece = {role: _widened(tensor[first : first + BLOCK], buffers[role]) for role, tensor in flat.items()}
        if "start" in piece and "weight" in piece:
            piece["difference"] = _difference(piece["weight"], piece["start"], buffers["difference"])
        for name in taken:
            found[name] += _sum(name, piece, buffers["absolute"])
    return list(found.values())


_FACTORS = {
    "norm": ("gradient", "gradient"),
    "weight": ("weight", "weight"),
    "drift": ("difference", "difference"),
    "pullback": ("gradient", "difference"),
    "momentum": ("momentum", "momentum"),
    "agreement": ("gradient", "momentum"),
}


def _sum(name: str, of: Mapping[str, Tensor], buffer: Tensor) -> float:
    if name == "l1":
        # Twice as fast as vector_norm(ord=1), which is not vectorized.
        gradient = of["gradient"]
        same = gradient.dtype == buffer.dtype
        return float((torch.abs(gradient, out=buffer[: gradient.numel()]) if same else gradient.abs()).sum())
    one, other = (of[role] for role in _FACTORS[name])
    return float(torch.dot(one, other.to(one.dtype)))


def _difference(weight: Tensor, start: Tensor, buffer: Tensor) -> Tensor:
    if weight.dtype == start.dtype == buffer.dtype:
        return torch.sub(weight, start, out=buffer[: weight.numel()])
    return weight - start


def _widened(piece: Tensor, buffer: Tensor) -> Tensor:
    return piece if piece.dtype in (torch.float32, torch.float64) else buffer[: piece.numel()].copy_(piece)


def flattened(column: Column) -> dict[str, Tensor]:
    """What there is of one parameter, as vectors of real numbers in the same order."""
    present = {role: tensor for role, tensor in column.items() if tensor is not None}
    if len(present) > 1:  # a sparse gradient beside what is dense
        present = {role: tensor.to_dense() if tensor.is_sparse else tensor for role, tensor in present.items()}
    return {role: _flat(tensor) for role, tensor in present.items()}


def _pieces(columns: Sequence[Column]) -> Iterator[tuple[list[int], dict[str, list[Tensor]]]]:
    """Yield what can be summed by the same calls: parameters alike in what they have, where and in which dtype.

    Where differences are taken, which are tensors of their own, these are of PIECE elements at most: a parameter that
    is larger comes in several pieces.
    """
    alike: dict[tuple[tuple[str, torch.device, torch.dtype], ...], list[tuple[int, dict[str, Tensor]]]] = {}
    for position, column in enumerate(columns):
        flat = flattened(column)
        kind = tuple((role, tensor.device, tensor.dtype) for role, tensor in flat.items())
        alike.setdefault(kind, []).append((position, flat))
    for kind, members in alike.items():
        if not {"weight", "start"} <= {role for role, _, _ in kind}:
            if kind:
                yield _as_lists(members)
            continue
        held: list[tuple[int, dict[str, Tensor]]] = []
        count = 0
        for position, flat in members:
            for parts in zip(*(torch.split(tensor, PIECE) for tensor in flat.values()), strict=True):
                cut = dict(zip(flat, parts, strict=True))
                if held and count + cut["weight"].numel() > PIECE:
                    yield _as_lists(held)
                    held, count = [], 0
                held.append((position, cut))
                count += cut["weight"].numel()
        if held:
            yield _as_lists(held)


def _as_lists(members: Sequence[tuple[int, dict[str, Tensor]]]) -> tuple[list[int], dict[str, list[Tensor]]]:
    lists = {role: [flat[role] for _, flat in members] for role in members[0][1]}
    return [position for position, _ in members], lists


def _sums_of_piece(names: Sequence[str], of: dict[str, list[Tensor]]) -> Tensor:
    """The sums (S, t) of t parameters on one device, by multi-tensor kernels where there are any."""
    if "start" in of and "weight" in of:
        # In half precision most of a difference would be rounding; a piece is small enough to be widened.
        wide = _accumulator(of["weight"][0].dtype)
        ends = ([tensor.to(wide) for tensor in of[role]] for role in ("weight", "start"))
        of = {**of, "difference": list(torch._foreach_sub(*ends))}
    first = next(iter(of.values()))
    zeros = torch.zeros(len(first), dtype=sum_dtype(first[0].device), device=first[0].device)
    rows = [_row(name, of).to(zeros.dtype) if of.keys() >= set(READS[name]) else zeros for name in names]
    return torch.stack(rows)


def _row(name: str, of: Mapping[str, list[Tensor]]) -> Tensor:
    if name == "l1":
        return torch.stack(torch._foreach_norm(of["gradient"], 1, dtype=_accumulator(of["gradient"][0].dtype)))
    ones, others = (of[role] for role in _FACTORS[name])
    wide = _accumulator(ones[0].dtype)
    if ones is others:
        return torch.stack(torch._foreach_norm(ones, 2, dtype=wide)).to(sum_dtype(ones[0].device)).square()
    return torch.stack([torch.dot(a.to(wide), b.to(wide)) for a, b in zip(ones, others, strict=True)])


def _square_on_cpu(flat: Tensor, buffer: Tensor) -> float:
    if flat.dtype in (torch.float32, torch.float64):
        return _dot(flat)
    # A Python float is a float64: adding the chunks up there costs nothing and loses nothing.
    return sum(_dot(buffer[: chunk.numel()].copy_(chunk)) for chunk in torch.split(flat, CHUNK))


def _dot(flat: Tensor) -> float:
    """Return flat . flat. With few tensor operations: a large model has hundreds of small gradients."""
    if flat.numel() <= SHORT:
        return torch.dot(flat, flat).item()
    left = flat.numel() % ROW
    if left:
        return _dot(flat[:-left]) + _dot(flat[-left:])
    norms = torch.linalg.vector_norm(flat.view(-1, ROW), dim=1)
    return _dot(norms)


def _buffer() -> Tensor:
    return torch.empty(CHUNK, dtype=torch.float32)


def _flat(gradient: Tensor) -> Tensor:
    if gradient.is_sparse:
        # Uncoalesced entries of one index have to be added before they are squared.
        gradient = gradient.coalesce().values()
    if gradient.is_complex():
        gradient = torch.view_as_real(gradient.resolve_conj())
    return (gradient.detach() if gradient.requires_grad else gradient).reshape(-1)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32


def sum_dtype(device: torch.device) -> torch.dtype:
    """The widest floating dtype of a device, which sums are added up in."""
    return torch.float32 if device.type == "mps" else torch.float64


def _by_device_and_dtype(
    gradients: Sequence[Tensor | None],
) -> dict[tuple[torch.device, torch.dtype], list[tuple[int, Tensor]]]:
    groups: dict[tuple[torch.device, torch.dtype], list[tuple[int, Tensor]]] = {}
    for position, gradient in enumerate(gradients):
        if gradient is not None:
            groups.setdefault((gradient.device, gradient.dtype), []).append((position, gradient))
    return groups
