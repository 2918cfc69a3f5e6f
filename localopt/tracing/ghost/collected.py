"""What the backward pass of one batch has shown of each parameter's gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from localopt.tracing.ghost import rules


class Collected:
    """Squared norms of matrices; gradients of what is small, which may come in parts.

    A matrix comes once, but for an embedding that is the head as well. Its gradient is the sum of both, so

        ||G_in + G_out||^2 = ||G_in||^2 + ||G_out||^2 + 2 sum over s, t of b_t[id_s] (a_t . c_s)

    with a_t what goes into the head, b_t the gradient of the logits, c_s the gradient of what position s looked up.

    Args:
        batch: number of examples B.
    """

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._ids: dict[str, Tensor] = {}
        self._heads: dict[str, tuple[Tensor, Tensor]] = {}
        self._squares: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}

    def squares(self) -> dict[str, Tensor]:
        """Squared gradient norms, (B,) each, of the parameters that got a gradient."""
        return self._squares | {name: rules.squares(value) for name, value in self._gradients.items()}

    def looked_up(self, name: str, ids: Tensor) -> None:
        """Note in the forward pass that rows ``ids``, (B, N), of a matrix are used."""
        self._ids[name] = ids

    def matrix(self, name: str, inputs: rules.Rows, gradient: Tensor) -> None:
        """Take the gradient of what a linear map of ``inputs`` put out."""
        outputs = rules.rows(gradient, self._batch)
        self._squares[name] = rules.matrix(inputs, outputs)
        if name in self._ids:
            index = self._ids[name][:, None, :].expand(-1, outputs.shape[1], -1)
            gathered = outputs.gather(2, index).to(rules.wide(outputs.dtype))
            self._heads[name] = rules.rows(inputs.source, self._batch), gathered
        inputs.release()

    def lookup(self, name: str, gradient: Tensor, padding: int | None) -> None:
        """Take the gradient of what was looked up; the row ``padding`` gets none."""
        ids, values = self._ids[name], rules.rows(gradient, self._batch)
        if padding is not None:
            values = values.masked_fill((ids == padding)[..., None], 0)
        square = rules.lookup(ids, values)
        if name in self._heads:
            inputs, gathered = self._heads.pop(name)
            square = square + self._squares[name] + 2 * rules.contraction(rules.products(inputs, values), gathered)
        self._squares[name] = square

    def add(self, name: str, values: Tensor, shape: torch.Size) -> None:
        """Take gradients at every position, (B, ..., *shape) or (B * N, *shape), of a parameter of that shape."""
        gradient = rules.summed(values, self._batch, shape)
        self._gradients[name] = self._gradients[name] + gradient if name in self._gradients else gradient
