"""What is timed: each contender does one whole optimizer step on a workload's gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, AdamW

from benchmarks.speed.workloads import Workload
from localopt import Fixed, LocalizedOptimizer
from localopt.signals import layer_norms
from localopt.steps.layout import segments

MAX_NORM = 1e-3  # far below the gradients' norm: every step clips


@dataclass(frozen=True)
class Contender:
    """A step to time, on fresh gradients of all layers or of the layers ``only``."""

    name: str
    workload: Workload
    step: Callable[[], Any]
    only: Collection[str] | None = None


class Chosen:
    """A policy that asks for norms every step, as the online rule does, and then updates a set known beforehand."""

    binary = True

    def __init__(self, layers: Collection[str]) -> None:
        self.layers = layers

    def bind(self, names: tuple[str, ...], device: torch.device) -> None:
        self.scales = torch.tensor([float(name in self.layers) for name in names], device=device)

    def __call__(self, norms: Tensor) -> Tensor:
        return self.scales * (norms > 0)


def core(workload: Workload, inner: AdamW, share: float) -> Iterator[Contender]:
    """Fused AdamW and ours around the same fused AdamW (one set of moments, so that large models fit)."""
    chosen, _ = workload.choose(share)
    parameters = list(workload.parameters.values())
    fixed = Fixed({name: float(name in chosen) for name in workload.layers})
    ours: dict[str, dict[str, Any]] = {
        "online": {"policy": Chosen(chosen)},
        "online + clip": {"policy": Chosen(chosen), "max_grad_norm": MAX_NORM},
        "fixed": {"policy": fixed},
        "fixed + clip": {"policy": fixed, "max_grad_norm": MAX_NORM},
    }
    yield Contender("AdamW fused", workload, inner.step)
    yield Contender("clip + AdamW fused", workload, clipped(inner.step, parameters))
    for name, options in ours.items():
        yield Contender(name, workload, LocalizedOptimizer(inner, **options).step)
    yield Contender("AdamW fused, chosen layers alone", workload, inner.step, only=chosen)
    yield Contender("norms", workload, _norms(workload))


def of_torch(workload: Workload) -> Iterator[Contender]:
    """The other optimizers of torch, each alone and behind ``clip_grad_norm_``."""
    parameters = list(workload.parameters.values())
    ways: dict[str, dict[str, Any]] = {
        "fused": {"fused": True},
        "foreach": {"foreach": True},
        "plain": {"foreach": False},
    }
    for way, options in ways.items():
        made = {f"SGD momentum {way}": SGD(parameters, lr=1e-5, momentum=0.9, **options)}
        if way != "fused":
            made[f"AdamW {way}"] = AdamW(parameters, lr=1e-5, **options)  # type: ignore[assignment]
        for name, optimizer in made.items():
            yield Contender(name, workload, optimizer.step)
            yield Contender(f"clip + {name}", workload, clipped(optimizer.step, parameters))
    yield Contender("torch._foreach_norm", workload, lambda: torch._foreach_norm([p.grad for p in parameters]))


def masked(workload: Workload, share: float) -> Contender:
    """Localization as it is often written: read each layer's norm on the host, zero the gradients of the others.

    (Which is also wrong: Adam's momentum and weight decay still move the zeroed layers.)
    """
    chosen, _ = workload.choose(share)
    layers: dict[str, list[Tensor]] = {}
    for name, layer in workload.layer_of.items():
        layers.setdefault(layer, []).append(workload.parameters[name])
    optimizer = AdamW(workload.parameters.values(), lr=1e-5, fused=True)

    def step() -> None:
        for layer, parameters in layers.items():
            norm = math.sqrt(sum(p.grad.norm().item() ** 2 for p in parameters if p.grad is not None))
            if layer not in chosen and norm > 0:
                for parameter in parameters:
                    if parameter.grad is not None:
                        parameter.grad.zero_()
        optimizer.step()

    return Contender("masked by hand", workload, step)


def schedule_free(workload: Workload) -> Contender:
    """AdamW without a schedule, of the package schedulefree."""
    from schedulefree import AdamWScheduleFree

    optimizer = AdamWScheduleFree(workload.parameters.values(), lr=1e-5)
    optimizer.train()
    return Contender("schedulefree AdamW", workload, optimizer.step)


def eight_bit(workload: Workload) -> Contender:
    """AdamW with 8-bit moments, of the package torchao."""
    from torchao.optim import AdamW8bit

    return Contender("torchao AdamW8bit", workload, AdamW8bit(workload.parameters.values(), lr=1e-5).step)


def badam(workload: Workload) -> Contender:
    """One block at a time, of the package badam."""
    from badam import BlockOptimizer

    blocks = sorted({".".join(name.split(".")[:3]) + "." for name in workload.parameters if ".layers." in name})
    optimizer = BlockOptimizer(
        base_optimizer=AdamW(workload.parameters.values(), lr=1e-5, fused=True),
        named_parameters_list=list(workload.parameters.items()),
        block_prefix_list=[[block] for block in blocks],
        switch_block_every=10**9,
        verbose=0,
    )
    return Contender("BAdam", workload, optimizer.step)


def _norms(workload: Workload) -> Callable[[], Tensor]:
    index = {name: i for i, name in enumerate(workload.layers)}
    layer_of = [index[layer] for layer in workload.layer_of.values()]
    layout = segments(layer_of, len(index), workload.noise.device)
    return lambda: layer_norms([parameter.grad for parameter in workload.parameters.values()], layout)


def clipped(step: Callable[[], Any], parameters: list[Any]) -> Callable[[], None]:
    def clip_and_step() -> None:
        clip_grad_norm_(parameters, MAX_NORM)
        step()

    return clip_and_step
