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

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
import torch.distributed as dist
from torch import Tensor, nn

from localopt.errors import InputError
from localopt.tracing.examples import Batch
from localopt.tracing.ghost import Batched
from localopt.tracing.measure import (
    Keep,
    Loss,
    add_up,
    example_name,
    example_squares,
    layer_sums,
    own_loss,
    place,
)
from localopt.tracing.together import shared_errors


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
    batched: Batched,
    loss: Loss | None = None,
    distributed: bool = False,
) -> FirstStep:
    """Measure what a trace by gains is made of.

    It keeps one float32 gradient of everything in ``layer_of``, and that of one batch while it is added.

    Args:
        model: as :func:`localopt.tracing.lending.borrowed` lends it.
        probe: batches of one row.
        reference: likewise.
        layer_of: parameter name -> layer name, for the parameters to measure; every one requires a gradient.
        batched: measures whole batches where it can; what it refuses is measured one by one.
        loss: see :func:`localopt.tracing.trace.trace_layers`.
        distributed: measure every n-th example only, n the number of processes, and put together what all of them
            measured: two all-reduces of one gradient, and one gathering of E * L numbers.

    Raises:
        InputError: a set is empty, or an example has no loss, no labeled token, or a loss or gradient that is not
            finite.
    """
    layers = tuple(dict.fromkeys(layer_of.values()))
    alone = partial(example_squares, model, layer_of=layer_of, loss=loss or own_loss)
    direction, count = _summed_gradients(probe, alone, batched, distributed)
    if distributed:
        count = _reduced(model, layer_of, direction, count)
    if count == 0:
        raise InputError("the probe holds no example")
    totals = {name: summed.abs().sum() / count for name, summed in direction.items()}
    gains = layer_sums(totals, layer_of)[0]
    for summed in direction.values():
        summed.sign_()
    moves = _moves(reference, direction, layer_of, alone, batched, distributed)
    if not len(moves):
        raise InputError("the reference holds no example")
    return FirstStep(layers, gains, moves, count)


def _summed_gradients(
    examples: Iterable[Batch], squares: Callable[..., dict[str, Tensor]], batched: Batched, distributed: bool
) -> tuple[dict[str, Tensor], int]:
    """Sum of the gradients of this process's examples, by parameter, and their number."""
    sums: dict[str, Tensor] = {}
    count = 0
    rank, processes = place(distributed)
    with shared_errors(distributed):
        for group in batched.groups(islice(examples, rank, None, processes)):

            def alone(
                row: int, keep: Keep | None = None, group: Sequence[Batch] = group, first: int = count
            ) -> dict[str, Tensor]:
                name = example_name((first + row) * processes + rank, "probe")
                return squares(group[row], where=name, keep=keep)

            together = batched.gradients(group, alone)
            if together is None:
                for row in range(len(group)):
                    alone(row, partial(add_up, sums))
            else:
                for name in list(together):
                    add_up(sums, name, together.pop(name))
            count += len(group)
    return sums, count


def _moves(
    examples: Iterable[Batch],
    direction: Mapping[str, Tensor],
    layer_of: Mapping[str, str],
    squares: Callable[..., dict[str, Tensor]],
    batched: Batched,
    distributed: bool,
) -> Tensor:
    """How far the step moves the loss of every example by its part in each layer, (E, L) float64."""
    found: list[Tensor] = []
    rank, processes = place(distributed)
    with shared_errors(distributed):
        for group in batched.groups(islice(examples, rank, None, processes)):

            def alone(
                row: int, group: Sequence[Batch] = group, first: int = len(found)
            ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
                products: dict[str, Tensor] = {}
                name = example_name((first + row) * processes + rank, "reference")
                return squares(group[row], where=name, keep=partial(_project, direction, products)), products

            together = batched.products(group, direction, alone)
            parts = [together] if together is not None else (alone(row)[1] for row in range(len(group)))
            for products in parts:
                found += layer_sums(products, layer_of, len(group) if together is not None else 1)
    if not distributed:
        return torch.stack(found) if found else torch.zeros(0)
    everyones: list[list[Tensor]] = [[] for _ in range(processes)]
    dist.all_gather_object(everyones, found)
    total = sum(map(len, everyones))
    return torch.stack([everyones[i % processes][i // processes] for i in range(total)]) if total else torch.zeros(0)


def _project(direction: Mapping[str, Tensor], products: dict[str, Tensor], name: str, gradient: Tensor) -> None:
    if name in direction:
        products[name] = (gradient.to_dense() * direction[name]).sum()


def _reduced(model: nn.Module, layer_of: Mapping[str, str], sums: dict[str, Tensor], count: int) -> int:
    """Add up the sums and the numbers of examples of all processes; a process may have seen no example."""
    everyones: list[int] = [0] * dist.get_world_size()
    dist.all_gather_object(everyones, count)
    for name in layer_of:
        if name not in sums:
            parameter = model.get_parameter(name)
            sums[name] = torch.zeros_like(parameter, dtype=torch.promote_types(parameter.dtype, torch.float32))
        dist.all_reduce(sums[name])
    return sum(everyones)
