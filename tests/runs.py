"""Small models, and whole training runs that can be compared to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from localopt import LocalizedOptimizer
from localopt.policies import AboveMean, Every, Fixed, HighestSNR, Policy, RandomLayers, Smoothed
from tests.laws import assert_same_bits


def every_layer(norms: Tensor) -> Tensor:
    return torch.ones_like(norms)


def two_layers() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))


def backward(model: nn.Module, step: int = 0) -> Tensor:
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
    loss: Tensor = model(inputs).square().mean()
    loss.backward()
    return loss


LAYERS = ("0", "2", "4")
INNER: dict[str, Callable[[Any], Optimizer]] = {
    "AdamW fused": lambda parameters: AdamW(parameters, lr=0.05, fused=True),
    "AdamW foreach": lambda parameters: AdamW(parameters, lr=0.05, foreach=True),
    "SGD with momentum": lambda parameters: SGD(parameters, lr=0.05, momentum=0.9),
    "SGD": lambda parameters: SGD(parameters, lr=0.05),
}
POLICIES: dict[str, Callable[[], Policy]] = {
    "AboveMean": AboveMean,
    "Smoothed": lambda: Smoothed(AboveMean(), 0.9),
    "RandomLayers": lambda: RandomLayers(2, every=2),
    "Every": lambda: Every(AboveMean(), 3),
    "Fixed": lambda: Fixed(dict(zip(LAYERS, (1.0, 0.0, 0.5), strict=True))),
    "HighestSNR": lambda: HighestSNR(0.5),
}
STATEFUL = ("Smoothed", "RandomLayers", "Every", "HighestSNR")
each_inner = pytest.mark.parametrize("inner", INNER)
each_policy = pytest.mark.parametrize("policy", POLICIES)

Run = tuple[nn.Module, LocalizedOptimizer]


def new_run(inner: str = "AdamW foreach", policy: str = "Smoothed", seed: int = 0) -> Run:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    return model, LocalizedOptimizer(INNER[inner](model.parameters()), model, POLICIES[policy]())


def train(model: nn.Module, optimizer: Optimizer, start: int, stop: int) -> None:
    for step in range(start, stop):
        optimizer.zero_grad()
        inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        model(inputs).square().mean().backward()
        optimizer.step()


def assert_same(actual: Any, expected: Any, path: str = "") -> None:
    """Equal to the bit, tensors within dicts and lists too."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys(), path
        for key in expected:
            assert_same(actual[key], expected[key], f"{path}[{key!r}]")
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, msg=lambda message: f"{path}: {message}")
    elif isinstance(expected, list):
        assert_same(dict(enumerate(actual)), dict(enumerate(expected)), path)
    else:
        assert actual == expected, path


def assert_same_run(actual: Run, expected: Run) -> None:
    assert_same_bits(actual[0], expected[0], "weights")
    mine, theirs = actual[1].state_dict(), expected[1].state_dict()
    # torch's flat form gives parameters without state an empty one.
    assert_same({**mine, "state": {key: state for key, state in mine["state"].items() if state}}, theirs)
