"""Model + probe + reference -> gains and damages: where a step wins much on the probe and costs the reference little.

Let g be the mean gradient of the loss over the probe. The first step of Adam goes along -u with u = sign(g), whatever
the size of the gradients. Per unit of learning rate, and for layer l alone,

    gain_l   = <g, u>_l = ||g_l||_1                       the fall of the probe's loss, to first order
    damage_l = mean over x in the reference of <g(x), u>_l^2      how far the loss of each example is moved, squared

Near a minimum a step moves the loss by its square, so over rates s_l the step  sum s_l gain_l - c/2 sum s_l^2 damage_l
is best at  s_l = gain_l / (c damage_l).  The trace holds gains and damages where others hold norms, so its R_l is that
ratio, and what is done with R (freezing what lies below the mean, rates in proportion) is done with it.

Norms do not see whether the two gradients point the same way; this does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from localopt.errors import InputError
from localopt.tracing.examples import Batch
from localopt.tracing.measure import (
    Keep,
    Loss,
    add_up,
    example_name,
    example_squares,
    own_loss,
)


@dataclass(frozen=True, eq=False)
class FirstStep:
    """How losses move along -u, per unit of learning rate.

    Attributes:
        layers: the L layer names.
        gains: fall of the probe's mean loss by the part of the step in each layer, float64 of shape (L,).
        moves: fall of the loss of each of E examples of the reference, likewise, (E, L).
        examples: of the probe.
    """

    layers: tuple[str, ...]
    gains: Tensor
    moves: Tensor
    examples: int

    @property
    def damages(self) -> Tensor:
        """Mean over the reference of the squared moves, (L,)."""
        return self.moves.square().mean(0)


def first_step(
    model: nn.Module,
    probe: Iterable[Batch],
    reference: Iterable[Batch],
    layer_of: Mapping[str, str],
    *,
    loss: Loss | None = None,
) -> FirstStep:
    """Measure what a trace by gains is made of, one backward pass an example.

    It keeps one float32 gradient of everything in ``layer_of``.

    Args:
        model: as :func:`localopt.tracing.lending.borrowed` lends it.
        probe, reference: batches of one row.
        layer_of: parameter name -> layer name, for the parameters to measure; every one requires a gradient.
        loss: see :func:`localopt.tracing.trace.trace_layers`.

    Raises:
        InputError: an example has no loss, no labeled token, or a loss or gradient that is not finite.
    """
    layers = list(dict.fromkeys(layer_of.values()))
    place = {layer: i for i, layer in enumerate(layers)}
    direction: dict[str, Tensor] = {}
    gains = torch.zeros(len(layers), dtype=torch.float64)
    moves: list[Tensor] = []

    def measure(example: Batch, number: int, of: str, keep: Keep) -> None:
        name = example_name(number, of)
        example_squares(model, example, layer_of, loss or own_loss, name, keep)

    def project(name: str, gradient: Tensor) -> None:
        if name in direction:
            moves[-1][place[layer_of[name]]] += (gradient.to_dense() * direction[name]).sum().item()

    count = 0
    for example in probe:
        measure(example, count, "probe", partial(add_up, direction))
        count += 1
    for name, summed in direction.items():
        gains[place[layer_of[name]]] += summed.abs().sum().item() / max(count, 1)
        summed.sign_()
    for example in reference:
        moves.append(torch.zeros(len(layers), dtype=torch.float64))
        measure(example, len(moves) - 1, "reference", project)
    for of, examples in (("probe", count), ("reference", len(moves))):
        if examples == 0:
            raise InputError(f"the {of} holds no example")
    return FirstStep(tuple(layers), gains, torch.stack(moves), count)
