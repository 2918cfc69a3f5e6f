"""Model + probe + reference -> LayerTrace: where a step wins much on the probe and costs the reference little.

Let g be the mean gradient of the loss over the probe. The first step of Adam goes along -u with u = sign(g), whatever
the size of the gradients. Per unit of learning rate, and for layer l alone,

    gain_l   = <g, u>_l = ||g_l||_1                       the fall of the probe's loss, to first order
    damage_l = mean over x in the reference of <g(x), u>_l^2      how far the loss of each example is moved, squared

Near a minimum a step moves the loss by its square, so over rates s_l the step  sum s_l gain_l - c/2 sum s_l^2 damage_l
is best at  s_l = gain_l / (c damage_l).  The trace holds gains and damages where others hold norms, so its R_l is that
ratio, and what is done with R (freezing what lies below the mean, rates in proportion) is done with it.

Norms, which `trace_layers` measures, do not see whether the two gradients point the same way; this does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from localopt.layers import Layers
from localopt.tracing.examples import one_by_one
from localopt.tracing.layer_trace import LayerTrace
from localopt.tracing.measure import Loss, add_up, borrowed, example_name, example_squares, own_loss
from localopt.tracing.trace import described, opened, progress_bar, trained_layers


def trace_gains(
    model: nn.Module,
    probe: Iterable[Any],
    reference: Iterable[Any],
    *,
    layers: Layers = "sublayer",
    loss: Loss | None = None,
    progress: bool = False,
) -> LayerTrace:
    """Measure what a first step of Adam on each layer would win on ``probe`` and move on ``reference``.

    One backward pass an example, and memory for one float32 gradient of the whole model. Everything else, the model
    given back as it was included, is as in :func:`localopt.trace_layers`.

    Args:
        model: as for :func:`localopt.trace_layers`.
        probe: likewise.
        reference: likewise; ordinary text, with the loss on every token, is what this was tried with.
        layers: likewise.
        loss: likewise.
        progress: likewise.

    Returns:
        A trace whose ``probe_norms`` are the gains and whose ``reference_norms`` are the damages (its metadata says
        ``"average": "gains"``): ``frozen_parameters()``, ``adaptive_learning_rates()`` and ``freeze(model)`` choose by
        gain over damage. It cannot serve :class:`~localopt.RelativeTo`, which needs norms.

    Raises:
        InputError, ValueError: as :func:`localopt.trace_layers` does.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> def squared_error(model, batch):
        ...     return (model(batch[0]) - batch[1]).square().mean()
        >>> probe, reference = [[(torch.randn(4, 2), torch.randn(4, 1))] for _ in range(2)]
        >>> trace = trace_gains(model, probe, reference, loss=squared_error)
        >>> trace.metadata["average"], trace.frozen_parameters().scales.keys()
        ('gains', dict_keys(['0', '1']))
    """
    step = first_step(model, probe, reference, layers=layers, loss=loss, progress=progress)
    counts = {"probe": step.examples, "reference": len(step.moves)}
    about = described(model, layers, "gains", "one by one: gains need the gradients themselves", counts)
    return LayerTrace(step.layers, step.gains.float(), step.moves.square().mean(0).float(), about)


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


def first_step(
    model: nn.Module,
    probe: Iterable[Any],
    reference: Iterable[Any],
    *,
    layers: Layers = "sublayer",
    loss: Loss | None = None,
    progress: bool = False,
) -> FirstStep:
    """Measure what :func:`trace_gains` makes a trace of; arguments and errors are the same."""
    layer_of = trained_layers(model, layers)
    names = tuple(dict.fromkeys(layer_of.values()))
    place = {layer: i for i, layer in enumerate(names)}
    direction: dict[str, Tensor] = {}
    gains = torch.zeros(len(names), dtype=torch.float64)
    moves: list[Tensor] = []

    def project(name: str, gradient: Tensor) -> None:
        if name in direction:
            moves[-1][place[layer_of[name]]] += (gradient.to_dense() * direction[name]).sum().item()

    count = 0
    with borrowed(model), progress_bar(progress) as bar:
        sides = opened(probe, reference)
        items, total = sides["probe"]
        for count, example in enumerate(one_by_one(bar.track(items, total=total, description="probe"), "probe"), 1):
            where = example_name(count - 1, "probe")
            example_squares(model, example, layer_of, loss or own_loss, where, partial(add_up, direction))
        for name, summed in direction.items():
            gains[place[layer_of[name]]] += summed.abs().sum().item() / count
            summed.sign_()
        items, total = sides["reference"]
        for example in one_by_one(bar.track(items, total=total, description="reference"), "reference"):
            where = example_name(len(moves), "reference")
            moves.append(torch.zeros(len(names), dtype=torch.float64))
            example_squares(model, example, layer_of, loss or own_loss, where, project)
    return FirstStep(names, gains, torch.stack(moves), count)
