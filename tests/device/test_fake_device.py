"""A whole step on a CUDA device that is not there: it reads nothing, mixes no devices and allocates no more each time.

Every call of the step is logged under FakeTensorMode, where a read by the host raises.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer

import localopt.policies
from benchmarks.speed.fake_device import Recorded, fake_cuda, give_gradients, module_of
from localopt import AnchorDecay, LocalizedOptimizer
from localopt.policies import (
    AboveMean,
    Agreement,
    Cyclic,
    Every,
    Everything,
    Fixed,
    GainOverDamage,
    HighestSNR,
    LayerDecay,
    LossScaled,
    Pinned,
    Proportional,
    Quantile,
    RandomLayers,
    RelativeChange,
    RelativeTo,
    Smoothed,
    TopK,
)
from localopt.signals import SIGNALS, LayerSignals

LAYERS = ("layers.0", "layers.1", "layers.2")
SHAPES: dict[str, tuple[int, ...]] = {f"{layer}.matrix": (300 + i, 70) for i, layer in enumerate(LAYERS)}
SHAPES |= {f"{layer}.vector": (70,) for layer in LAYERS}
SMALLEST_MATRIX = 4 * 300 * 70

FUSED: dict[str, Callable[[Any], Optimizer]] = {
    "AdamW": lambda p: AdamW(p, lr=0.1, fused=True),
    "AdamW amsgrad": lambda p: AdamW(p, lr=0.1, fused=True, amsgrad=True),
    "Adam": lambda p: Adam(p, lr=0.1, weight_decay=0.1, fused=True),
    "SGD": lambda p: SGD(p, lr=0.1, momentum=0.9, fused=True),
    "Adagrad": lambda p: Adagrad(p, lr=0.1, fused=True),
}
TRACE: Any = SimpleNamespace(layers=LAYERS, reference_norms=torch.tensor([1.0, 2.0, 3.0]), holds_gains=False)
GAINS: Any = SimpleNamespace(layers=LAYERS, reference_norms=torch.tensor([1.0, 2.0, 3.0]), holds_gains=True)
POLICIES: dict[str, Callable[[], Any]] = {
    "AboveMean": AboveMean,
    "Agreement": Agreement,
    "Cyclic": lambda: Cyclic(2, order="random"),
    "Every": lambda: Every(Smoothed(AboveMean(), 0.9), 2),
    "Everything": Everything,
    "Fixed": lambda: Fixed(dict(zip(LAYERS, (1.0, 0.5, 0.0), strict=True))),
    "GainOverDamage": lambda: GainOverDamage(GAINS),
    "HighestSNR": lambda: HighestSNR(0.5),
    "LayerDecay": lambda: LayerDecay(0.9),
    "LossScaled": lambda: LossScaled(AboveMean()),
    "Pinned": lambda: Pinned(TopK(1), always="layers.0", never="layers.2"),
    "Proportional": lambda: Proportional("mean"),
    "Quantile": lambda: Quantile(0.5),
    "RandomLayers": lambda: RandomLayers(2, every=3),
    "RelativeChange": RelativeChange,
    "RelativeTo": lambda: RelativeTo(TRACE, AboveMean()),
    "Smoothed": lambda: Smoothed(AboveMean(), 0.9),
    "TopK": lambda: TopK(2),
}


class OnEverySignal:
    """A policy that is called with all signals there are."""

    needs = SIGNALS

    def __call__(self, signals: LayerSignals) -> torch.Tensor:
        return torch.stack([getattr(signals, name) for name in SIGNALS]).sum(0).clamp(0.0, 1.0)


def by_block(name: str) -> str:
    return name.rsplit(".", 1)[0]


def steps(optimizer: LocalizedOptimizer, module: nn.Module, count: int = 4) -> list[Recorded]:
    """Step, each time with new gradients, and return what was called in each step."""
    logs = []
    for step in range(count):
        give_gradients(module)
        optimizer.observe(2.0 + step)
        with Recorded() as recorded:
            optimizer.step()
        logs.append(recorded)
    return logs


def localized(
    module: nn.Module, policy: Any, make: Callable[[Any], Optimizer] = FUSED["AdamW"], **options: Any
) -> LocalizedOptimizer:
    return LocalizedOptimizer(make(module.parameters()), module, policy, layers=by_block, **options)


def assert_on_the_device_alone(logs: list[Recorded]) -> None:
    """No step makes or takes a tensor of the host, and each does what the one before it did."""
    for recorded in logs:
        elsewhere = [call for call in recorded.calls if not call.devices <= {"cuda"}]
        assert not elsewhere
        assert recorded.kernels
    for recorded in logs[2:]:  # the first steps make the optimizer's state, and momenta are there from the second on
        assert recorded.outline() == logs[1].outline()


def test_no_policy_is_forgotten_here() -> None:
    assert set(POLICIES) == set(localopt.policies.__all__) - {"Policy"}


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "HighestSNR"])
def test_no_policy_waits_for_the_device(name: str) -> None:
    with fake_cuda():
        module = module_of(SHAPES)
        optimizer = localized(module, POLICIES[name](), max_grad_norm=1.0)
        assert_on_the_device_alone(steps(optimizer, module))


@pytest.mark.parametrize("name", ["Everything", "Fixed", "LayerDecay"])
def test_a_constant_policy_that_measures_nothing_steps_by_what_it_knew_from_the_start(name: str) -> None:
    with fake_cuda():
        module = module_of(SHAPES)
        assert_on_the_device_alone(steps(localized(module, POLICIES[name]()), module))


def test_a_policy_that_looks_at_weights_looks_before_the_model_moves_to_the_device() -> None:
    on_host = nn.Module()
    for layer in LAYERS:
        on_host.register_parameter(layer.replace(".", "_"), nn.Parameter(torch.randn(6, 5)))
    names = [layer.replace(".", "_") for layer in LAYERS]
    with torch.no_grad():
        optimizer = LocalizedOptimizer(
            AdamW(on_host.parameters(), fused=True), on_host, HighestSNR(0.5), layers="parameter", max_grad_norm=1.0
        )
    with fake_cuda():
        module = module_of(dict.fromkeys(names, (6, 5)))
        optimizer.param_groups[0]["params"] = list(module.parameters())  # as frameworks do when they move a model
        assert_on_the_device_alone(steps(optimizer, module)[1:])


@pytest.mark.parametrize("policy", [AboveMean, Proportional], ids=lambda policy: policy.__name__)
@pytest.mark.parametrize("decay", [0.0, 25.0, "selective", "cautious"])
@pytest.mark.parametrize("name", FUSED)
def test_a_fused_step_with_clipping_and_decay_toward_the_start(name: str, decay: Any, policy: Any) -> None:
    anchor = AnchorDecay(1.0, rule=decay) if isinstance(decay, str) else decay
    with fake_cuda():
        module = module_of(SHAPES)
        optimizer = localized(module, policy(), FUSED[name], max_grad_norm=1.0, anchor_decay=anchor)
        logs = steps(optimizer, module)
        assert_on_the_device_alone(logs)
        if decay in (0.0, 25.0):
            assert logs[-1].largest < SMALLEST_MATRIX  # a warm step allocates numbers a layer or a tensor, no weights


@pytest.mark.parametrize("frozen_state", ["hold", "track"])
def test_frozen_state_is_decided_on_the_device(frozen_state: Any) -> None:
    with fake_cuda():
        module = module_of(SHAPES)
        assert_on_the_device_alone(steps(localized(module, AboveMean(), frozen_state=frozen_state), module))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_all_signals_are_taken_without_a_read(dtype: torch.dtype) -> None:
    with fake_cuda():
        module = module_of(SHAPES, dtype)
        assert_on_the_device_alone(steps(localized(module, OnEverySignal()), module))


def test_a_loss_on_the_device_stays_there() -> None:
    with fake_cuda():
        module = module_of(SHAPES)
        optimizer = localized(module, LossScaled())
        give_gradients(module)
        optimizer.observe(torch.empty((), device="cuda", dtype=torch.bfloat16))
        with Recorded() as recorded:
            optimizer.step()
        assert_on_the_device_alone([recorded])


def test_foreach_adamw_takes_the_split_route_which_reads_the_scales() -> None:
    with fake_cuda():
        module = module_of(SHAPES)
        optimizer = localized(module, AboveMean(), lambda p: AdamW(p, lr=0.1, foreach=True))
        give_gradients(module)
        with pytest.raises(DataDependentOutputException):
            optimizer.step()


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Adagrad"])
def test_kernels_grow_with_layers_and_not_with_tensors(name: str) -> None:
    def kernels(layers: int, tensors: int) -> int:
        with fake_cuda():
            module = module_of({f"layers.{i}.{j}": (9, 7) for i in range(layers) for j in range(tensors)})
            return len(steps(localized(module, AboveMean(), FUSED[name], max_grad_norm=1.0), module)[-1].kernels)

    assert kernels(8, 1) == kernels(8, 16)
    assert kernels(8, 1) - kernels(4, 1) == 4  # one fused call a layer


def test_the_recorder_sees_a_tensor_of_the_host_and_what_is_allocated() -> None:
    with fake_cuda(), Recorded() as recorded:
        here, there = torch.empty(4, device="cuda"), torch.empty(4)
        _ = here.add(there.to("cuda:0")).view(2, 2)
    assert [call.name for call in recorded.calls if "cpu" in call.devices] == [
        "aten.empty.memory_format",
        "aten._to_copy.default",
    ]
    assert [(call.name, call.made) for call in recorded.kernels][-1] == ("aten.add.Tensor", (16,))
    assert recorded.largest == 16
