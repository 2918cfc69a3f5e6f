"""Gradients -> one norm a layer.

For a layer l whose parameters have gradients g_1 .. g_k, its gradient norm is

    N_l = sqrt(||g_1||^2 + ... + ||g_k||^2)

Each gradient is read once. The squares are summed per layer by one padded gather: no atomic additions, so every process
that holds equal gradients gets equal bits and chooses the same layers. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from localopt.steps.sharding import Sharding

# Sizes in elements. A float32 dot product is off by 3e-7 at SHORT (3e-6 if the numbers are bfloat16's) and by ever more
# beyond; a longer gradient is cut into rows, whose norms are short again. Half-precision gradients are widened a chunk
# at a time, in a buffer that stays in cache: to reduce them as they are is twice as fast, and off by 2e-3 at worst.
SHORT = 1 << 17
ROW = 1 << 12
CHUNK = 1 << 20


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
    return norm.to(_sum_dtype(flat.device)).square()


def segments(layer_of: Sequence[int], count: int, device: torch.device | str = "cpu") -> Tensor:
    """Lay out which gradients make up which layer, for :func:`layer_norms`.

    Args:
        layer_of: for each of the T gradients, the index of its layer, 0 <= index < count.
        count: number of layers L.
        device: where the norms are wanted.

    Returns:
        An int64 tensor of shape (L, W), W the largest number of gradients in a layer: row l holds the positions of
        layer l's gradients, padded with T (which :func:`layer_norms` reads as zero).

    Example:
        >>> segments([0, 1, 0], 2)
        tensor([[0, 2],
                [1, 3]])
    """
    members: list[list[int]] = [[] for _ in range(count)]
    for position, layer in enumerate(layer_of):
        members[layer].append(position)
    width = max((len(row) for row in members), default=0)
    padding = len(layer_of)
    rows = [row + [padding] * (width - len(row)) for row in members]
    return torch.tensor(rows, dtype=torch.int64).reshape(count, width).to(device)


def layer_norms(gradients: Sequence[Tensor | None], layout: Tensor, sharding: Sharding | None = None) -> Tensor:
    """Return one gradient norm a layer, in one pass over the gradients.

    Args:
        gradients: the T gradients in the order of ``layer_of``; ``None`` counts as zero.
        layout: what :func:`segments` returned; the norms come out on its device.
        sharding: given if gradients are what this process holds of larger ones; every process then has to call this.

    Returns:
        A float32 tensor of shape (L,), on the device of ``layout``.

    Example:
        >>> layer_norms([torch.tensor([3.0]), None, torch.tensor([4.0])], segments([0, 1, 0], 2))
        tensor([5., 0.])
    """
    squares = _squares(gradients, layout.device)
    if sharding is not None:
        squares = squares * torch.tensor([*sharding.shares, 0.0], dtype=squares.dtype).to(squares.device)
    layers = squares[layout].sum(dim=1)
    return (layers if sharding is None else sharding.sum(layers)).sqrt().float()


def clip_factor(norms: Tensor, scales: Tensor, max_norm: float) -> Tensor:
    """Return what ``torch.nn.utils.clip_grad_norm_`` over the layers to be updated would multiply gradients by.

    Args:
        norms, scales: float32 tensors of shape (L,); layers of scale 0 do not count.
        max_norm: the norm their gradients together are brought down to.

    Returns:
        A 0-d float32 tensor, at most 1.

    Example:
        >>> clip_factor(torch.tensor([3.0, 4.0, 100.0]), torch.tensor([1.0, 1.0, 0.0]), 2.5)
        tensor(0.5000)
    """
    total = torch.where(scales > 0, norms, 0.0).square().sum().sqrt()
    return (max_norm / (total + 1e-6)).clamp(max=1.0)


def reference_layer_norms(gradients: Sequence[Tensor | None], layer_of: Sequence[int], count: int) -> Tensor:
    """Say the same as :func:`layer_norms` in the plainest way, in float64 on the CPU: what the tests compare with."""
    squares = torch.zeros(count, dtype=torch.float64)
    for gradient, layer in zip(gradients, layer_of, strict=True):
        if gradient is not None:
            values = gradient.to_dense() if gradient.is_sparse else gradient
            squares[layer] += values.abs().cpu().double().square().sum()
    return squares.sqrt()


def _squares(gradients: Sequence[Tensor | None], home: torch.device) -> Tensor:
    """Sum of squares of every gradient, then one zero for the padding: shape (T + 1,) on ``home``."""
    if {gradient.device.type for gradient in gradients if gradient is not None} <= {"cpu"}:
        buffer = _buffer()
        values = [0.0 if gradient is None else _square_on_cpu(_flat(gradient), buffer) for gradient in gradients]
        return torch.tensor([*values, 0.0], dtype=torch.float64).to(home)
    zero = torch.zeros((), dtype=_sum_dtype(home), device=home)
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


def _sum_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _by_device_and_dtype(
    gradients: Sequence[Tensor | None],
) -> dict[tuple[torch.device, torch.dtype], list[tuple[int, Tensor]]]:
    groups: dict[tuple[torch.device, torch.dtype], list[tuple[int, Tensor]]] = {}
    for position, gradient in enumerate(gradients):
        if gradient is not None:
            groups.setdefault((gradient.device, gradient.dtype), []).append((position, gradient))
    return groups
