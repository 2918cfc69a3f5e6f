"""Learning-rate schedulers drive a localized optimizer as they drive the bare one."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.swa_utils import SWALR

from localopt import LocalizedOptimizer
from tests.laws import assert_same_bits
from tests.runs import backward, every_layer, two_layers

Make = Callable[[Optimizer], Any]

SCHEDULERS: dict[str, Make] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3], 0.5),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 2),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.5, 1.0, 3),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 5, 2.0),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.5),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=2),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=10),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.5, 2), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, 2), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "SWALR": lambda o: SWALR(o, swa_lr=0.01, anneal_epochs=3),
}


def trajectory(model: nn.Module, optimizer: Optimizer, scheduler: Any) -> list[tuple[float, Any]]:
    """Train five steps; the learning rate and the momentum, cycled or not, of each."""
    seen = []
    with warnings.catch_warnings():
        warnings.filterwarnings("error", r"(?s).*lr_scheduler\.step")
        for step in range(5):
            optimizer.zero_grad()
            backward(model, step)
            optimizer.step()
            # The metric gets worse, so that a plateau is seen.
            scheduler.step(step) if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else scheduler.step()
            seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"]))
    return seen


def test_no_scheduler_of_torch_is_left_out() -> None:
    bases = {"LRScheduler", "_LRScheduler"}
    known = {
        name
        for name, value in vars(lr_scheduler).items()
        if inspect.isclass(value) and issubclass(value, lr_scheduler.LRScheduler)
    }
    assert known - bases == SCHEDULERS.keys() - {"SWALR"}


@pytest.mark.parametrize("made_on", ["wrapper", "inner"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_acts_as_on_the_bare_optimizer(name: str, made_on: str) -> None:
    model, twin = two_layers(), two_layers()
    inner, bare = (torch.optim.AdamW(m.parameters(), lr=0.1) for m in (model, twin))
    if made_on == "inner":
        scheduler = SCHEDULERS[name](inner)
        optimizer = LocalizedOptimizer(inner, model, every_layer)
    else:
        optimizer = LocalizedOptimizer(inner, model, every_layer)
        scheduler = SCHEDULERS[name](optimizer)
    expected = trajectory(twin, bare, SCHEDULERS[name](bare))
    assert trajectory(model, optimizer, scheduler) == expected
    assert len({lr for lr, _ in expected}) > 1, "a rate that never changes shows nothing"
    assert_same_bits(model, twin, name)


@pytest.mark.parametrize("made_on", ["wrapper", "inner"])
def test_a_scheduler_stepped_before_the_optimizer_still_warns(made_on: str) -> None:
    model = two_layers()
    optimizer = LocalizedOptimizer(torch.optim.AdamW(model.parameters()), model)
    scheduler = lr_scheduler.StepLR(optimizer if made_on == "wrapper" else optimizer.inner, 1)
    with pytest.warns(UserWarning, match=r"before `optimizer.step\(\)`"):
        scheduler.step()
