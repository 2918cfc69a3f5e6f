"""Activations and gradients of outputs -> squared norms of each example's gradient, or how far it goes one way.

B examples of N positions each; every result has shape (B,), float64 where the device has it. Sums are accumulated in
float32 or wider whatever the dtype of the model.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from localopt.sums import squared_norm

CHUNK = 1 << 22
"""Elements of scratch space that a rule may take for the examples it handles at once; a single one may need more."""


class Rows:
    """What goes into linear maps, (B, N, d), with its Gram matrices: made once for all the maps that read it."""

    def __init__(self, values: Tensor) -> None:
        self.source = values  # as long as it lives, no other tensor has its id
        self.readers = 0
        self._gram: Tensor | None = None

    def gram(self, batch: int) -> Tensor:
        """(a_t . a_t') for every example, (B, N, N)."""
        if self._gram is None:
            self._gram = gram(rows(self.source, batch))
        return self._gram

    def release(self) -> None:
        """Forget everything once the last reader has called this."""
        self.readers -= 1
        if self.readers == 0:
            self._gram = None
            del self.source


def rows(values: Tensor, batch: int) -> Tensor:
    """(B, ..., d) or (B * N, d) -> (B, N, d)."""
    return values.reshape(batch, -1, values.shape[-1])


def gram(values: Tensor) -> Tensor:
    """Inner products of the positions of each example: (B, N, d) -> (B, N, N).

    Examples:
        >>> gram(torch.tensor([[[1.0, 2.0], [0.0, 3.0]]]))
        tensor([[[5., 6.],
                 [6., 9.]]])
    """
    return products(values, values)


def products(left: Tensor, right: Tensor) -> Tensor:
    """Inner products between positions of each example: (B, N, d), (B, M, d) -> (B, N, M)."""
    if left.dtype == wide(left.dtype):
        return torch.bmm(left, right.transpose(1, 2))
    parts = chunks(left.shape[0], left[0].numel() + right[0].numel())
    return torch.cat([torch.bmm(_widened(left[i]), _widened(right[i]).transpose(1, 2)) for i in parts])


def matrix(inputs: Rows, outputs: Tensor) -> Tensor:
    """||sum over t of b_t a_t^T||^2, by the Gram matrices or by the outer products, whichever are fewer operations.

    Args:
        inputs: a, (B, N, d_in).
        outputs: b, (B, N, d_out).
    """
    batch, positions, width = outputs.shape
    into = inputs.source.shape[-1]
    if positions * (into + width) <= into * width:
        return contraction(inputs.gram(batch), gram(outputs))
    a, total = rows(inputs.source, batch), []
    for part in chunks(batch, into * width):
        gradients = torch.bmm(_widened(outputs[part]).transpose(1, 2), _widened(a[part]))
        total += [squared_norm(gradient) for gradient in gradients]
    return torch.stack(total)


def lookup(ids: Tensor, outputs: Tensor) -> Tensor:
    """Squared norm of an embedding's gradient: the positions that look up one row of it are added before squaring.

    Args:
        ids: (B, N) int64.
        outputs: gradients of what was looked up, (B, N, d).

    Examples:
        >>> lookup(torch.tensor([[7, 7], [7, 8]]), torch.ones(2, 2, 1)).tolist()
        [4.0, 2.0]
    """
    batch, positions = ids.shape
    span = int(ids.max()) + 1
    own = ids + span * torch.arange(batch, device=ids.device)[:, None]
    found, where = torch.unique(own, return_inverse=True)
    values = _widened(outputs).reshape(batch * positions, -1)
    sums = values.new_zeros(len(found), values.shape[1]).index_add_(0, where.flatten(), values)
    each = squares(sums)
    return each.new_zeros(batch).index_add_(0, found // span, each)


def along(inputs: Tensor, outputs: Tensor, direction: Tensor) -> Tensor:
    """<sum over t of b_t a_t^T, U> = sum over t of b_t . U a_t for every example, (B,): no gradient is made.

    Args:
        inputs: a, (B, N, d_in).
        outputs: b, (B, N, d_out).
        direction: U, (d_out, d_in).

    Examples:
        >>> along(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0]]]), torch.tensor([[1.0, -1.0]])).tolist()
        [-3.0]
    """
    if inputs.shape[-1] > outputs.shape[-1]:  # the shorter side is what comes out of the product
        through, other, wanted = inputs, outputs, direction.t()
    else:
        through, other, wanted = outputs, inputs, direction
    parts = chunks(len(inputs), inputs[0].numel() + outputs[0].numel())
    return torch.cat([inner(torch.matmul(_widened(through[i]), wanted), _widened(other[i])) for i in parts])


def lookup_along(ids: Tensor, outputs: Tensor, direction: Tensor) -> Tensor:
    """Inner product of an embedding's gradient with U: ``ids`` (B, N), ``outputs`` (B, N, d), U (V, d) -> (B,)."""
    return inner(_widened(outputs), direction[ids])


def inner(gradients: Tensor, others: Tensor) -> Tensor:
    """Sum over all but the first dimension of the product, (B,)."""
    product = gradients * others
    return product.flatten(1).sum(1, dtype=_exact(product))


def contraction(left: Tensor, right: Tensor) -> Tensor:
    """Sum over both positions of the product of two (B, N, M) tensors; the second is used up."""
    return right.mul_(left).sum(dim=(1, 2), dtype=_exact(right))


def summed(values: Tensor, batch: int, shape: torch.Size) -> Tensor:
    """Gradients at every position, (B, ..., *shape) or (B * N, *shape), -> gradient of every example, (B, *shape)."""
    return values.reshape(batch, -1, *shape).sum(1, dtype=wide(values.dtype))


def squares(gradients: Tensor) -> Tensor:
    """(B, ...) -> (B,)."""
    norms: Tensor = torch.linalg.vector_norm(gradients.reshape(len(gradients), -1), dim=1)
    return norms.to(_exact(norms)).square()


def chunks(count: int, each: int) -> Iterator[slice]:
    """Slices of ``count`` examples that need ``each`` elements of scratch space apiece."""
    step = max(1, CHUNK // max(1, each))
    return (slice(start, start + step) for start in range(0, count, step))


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype to add up in."""
    return torch.promote_types(dtype, torch.float32)


def _widened(values: Tensor) -> Tensor:
    return values.to(wide(values.dtype))


def _exact(values: Tensor) -> torch.dtype:
    return torch.float32 if values.device.type == "mps" else torch.float64
