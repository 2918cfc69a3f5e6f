"""What the laws of the optimizer are checked with: every option set of torch's optimizers, and a bare one as oracle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.testing._internal.common_optimizers import (
    OptimizerInfo,
    _get_optim_inputs_including_global_cliquey_kwargs,
    optim_db,
)

LAYERS = 4
# LBFGS is refused, SparseAdam takes only sparse gradients: each has tests of its own.
INFOS = {info.optim_cls.__name__: info for info in optim_db if info.optim_cls.__name__ not in ("LBFGS", "SparseAdam")}


class Scripted:
    """A policy that returns the scales written down for each step."""

    def __init__(self, script: Sequence[Sequence[float]], binary: bool) -> None:
        self.script = [torch.tensor(scales) for scales in script]
        self.binary = binary
        self.calls = 0

    def __call__(self, norms: Tensor) -> Tensor:
        self.calls += 1
        return self.script[self.calls - 1]


class Layered(nn.Module):
    """Four layers "0" to "3", each a matrix (and, unless `matrices_only`, a vector)."""

    def __init__(self, dtype: torch.dtype, device: str = "cpu", matrices_only: bool = False) -> None:
        super().__init__()
        options: dict[str, Any] = {"dtype": dtype, "device": device}
        for layer in range(LAYERS):
            module = nn.Module()
            module.matrix = nn.Parameter(torch.randn(3, 4 + layer, **options))
            if not matrices_only:
                module.vector = nn.Parameter(torch.randn(5, **options))
            self.add_module(str(layer), module)

    def layer(self, layer: int) -> list[nn.Parameter]:
        return list(self.get_submodule(str(layer)).parameters())


def option_sets(info: OptimizerInfo, dtype: torch.dtype, device: str = "cpu") -> Iterator[dict[str, Any]]:
    """Every set of options in torch's own database, plain, foreach and fused."""
    inputs = _get_optim_inputs_including_global_cliquey_kwargs(device, dtype, info, skip=("differentiable",))
    for entry in inputs:
        options = dict(entry.kwargs)
        # torch's fused SGD does not update half-precision parameters on a CPU as it should (pytorch issue 191763):
        # two bare optimizers disagree there, so there is nothing to compare with.
        broken = info.optim_cls is torch.optim.SGD and options.get("fused") and dtype.itemsize == 2 and device == "cpu"
        if not broken:
            yield options


def twins(
    info: OptimizerInfo, options: dict[str, Any], dtype: torch.dtype, device: str = "cpu"
) -> tuple[Layered, Optimizer, Layered, list[Optimizer]]:
    """A model with its optimizer, and an equal model with the oracle: one bare optimizer a layer."""
    model = Layered(dtype, device, matrices_only=info.optim_cls.__name__ == "Muon")
    twin = Layered(dtype, device, matrices_only=info.optim_cls.__name__ == "Muon")
    twin.load_state_dict(model.state_dict())
    oracle = [info.optim_cls(twin.layer(layer), **fresh(options)) for layer in range(LAYERS)]
    return model, info.optim_cls(model.parameters(), **fresh(options)), twin, oracle


def fresh(options: dict[str, Any]) -> dict[str, Any]:
    """The options with tensors (such as lr) of their own."""
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in options.items()}


def give_gradients(*models: nn.Module, scale: float = 1.0) -> None:
    """Give the models equal random gradients."""
    for parameters in zip(*(model.parameters() for model in models), strict=True):
        gradient = torch.randn_like(parameters[0]) * scale
        for parameter in parameters:
            parameter.grad = gradient.clone()


def assert_same_bits(actual: nn.Module, expected: nn.Module, message: str) -> None:
    """Equal parameters, NaN equal to NaN."""
    for (name, a), b in zip(actual.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=lambda m, n=name: f"{message}, {n}: {m}")


def assert_same_state(actual: Optimizer, model: nn.Module, expected: Sequence[Optimizer], twin: nn.Module) -> None:
    """Equal optimizer state for every parameter, NaN equal to NaN; no state equals no state."""
    merged = {parameter: state for optimizer in expected for parameter, state in optimizer.state.items()}
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        mine, theirs = dict(actual.state.get(a, {})), dict(merged.get(b, {}))
        assert mine.keys() == theirs.keys()
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)
