"""What the backward pass of one batch has shown of each parameter's gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from localopt.tracing.ghost import rules


class Collected(Protocol):
    """Takes what passes by, parameter by parameter; N positions an example."""

    def looked_up(self, name: str, ids: Tensor) -> None:
        """Note in the forward pass that rows ``ids``, (B, N), of a matrix are used."""

    def matrix(self, name: str, inputs: rules.Rows, gradient: Tensor, transposed: bool) -> None:
        """Take the gradient of what a linear map of ``inputs`` put out; its weight may be kept as (d_in, d_out)."""

    def lookup(self, name: str, gradient: Tensor, padding: int | None) -> None:
        """Take the gradient of what was looked up; the row ``padding`` gets none."""

    def add(self, name: str, values: Tensor, shape: torch.Size) -> None:
        """Take gradients at every position, (B, ..., *shape) or (B * N, *shape), of a parameter of that shape."""

    def results(self) -> dict[str, Tensor]:
        """One number an example, (B,), for each of the parameters that got a gradient."""


class Squares:
    """Squared norms ||g(x)||^2 of every parameter's gradient. Those of what is small come in parts, and are kept.

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

    def results(self) -> dict[str, Tensor]:
        found = self._squares | {name: rules.squares(value) for name, value in self._gradients.items()}
        return {name: square.clamp(min=0) for name, square in found.items()}  # a sum of products may be just below

    def looked_up(self, name: str, ids: Tensor) -> None:
        self._ids[name] = ids

    def matrix(self, name: str, inputs: rules.Rows, gradient: Tensor, transposed: bool) -> None:
        outputs = rules.rows(gradient, self._batch)
        self._squares[name] = rules.matrix(inputs, outputs)
        if name in self._ids:
            index = self._ids[name][:, None, :].expand(-1, outputs.shape[1], -1)
            gathered = outputs.gather(2, index).to(rules.wide(outputs.dtype))
            self._heads[name] = rules.rows(inputs.source, self._batch), gathered
        inputs.release()

    def lookup(self, name: str, gradient: Tensor, padding: int | None) -> None:
        ids = self._ids[name]
        values = _without_padding(rules.rows(gradient, self._batch), ids, padding)
        square = rules.lookup(ids, values)
        if name in self._heads:
            inputs, gathered = self._heads.pop(name)
            square = square + self._squares[name] + 2 * rules.contraction(rules.products(inputs, values), gathered)
        self._squares[name] = square

    def add(self, name: str, values: Tensor, shape: torch.Size) -> None:
        gradient = rules.summed(values, self._batch, shape)
        self._gradients[name] = self._gradients[name] + gradient if name in self._gradients else gradient


class Along:
    """Inner products <g(x), u> of every parameter's gradient with a direction, whose parts just add up.

    Args:
        batch: number of examples B.
        directions: u by parameter, of its shape; what has none is left out.
    """

    def __init__(self, batch: int, directions: Mapping[str, Tensor]) -> None:
        self._batch, self._directions = batch, directions
        self._ids: dict[str, Tensor] = {}
        self._products: dict[str, Tensor] = {}

    def results(self) -> dict[str, Tensor]:
        return self._products

    def looked_up(self, name: str, ids: Tensor) -> None:
        self._ids[name] = ids

    def matrix(self, name: str, inputs: rules.Rows, gradient: Tensor, transposed: bool) -> None:
        if name in self._directions:
            direction = self._directions[name]
            a, b = rules.rows(inputs.source, self._batch), rules.rows(gradient, self._batch)
            self._take(name, rules.along(a, b, direction.t() if transposed else direction))
        inputs.release()

    def lookup(self, name: str, gradient: Tensor, padding: int | None) -> None:
        if name in self._directions:
            ids = self._ids[name]
            values = _without_padding(rules.rows(gradient, self._batch), ids, padding)
            self._take(name, rules.lookup_along(ids, values, self._directions[name]))

    def add(self, name: str, values: Tensor, shape: torch.Size) -> None:
        if name in self._directions:
            self._take(name, rules.inner(rules.summed(values, self._batch, shape), self._directions[name]))

    def _take(self, name: str, products: Tensor) -> None:
        self._products[name] = self._products[name] + products if name in self._products else products


def _without_padding(values: Tensor, ids: Tensor, padding: int | None) -> Tensor:
    return values if padding is None else values.masked_fill((ids == padding)[..., None], 0)
