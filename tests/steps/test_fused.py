"""The fused route: the same results as a bare optimizer, with nothing waiting for the device.

The kernels exist on the CPU too, so the route's logic is tested everywhere by letting it take CPU tensors; what only a
GPU can show runs where there is one.
"""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from torch import nn

from localopt import LocalizedOptimizer, Proportional
from localopt.steps.fused import can_fuse
from tests.laws import (
    INFOS,
    LAYERS,
    Scripted,
    assert_same_bits,
    give_gradients,
    option_sets,
    twins,
)

STEPS = 5
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=cuda)])
each_optimizer = pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "Adagrad"])
pytestmark = pytest.mark.filterwarnings("ignore:.*freezes every layer")


@pytest.fixture
def _fused_on_cpu(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    if device == "cpu":
        monkeypatch.setattr("localopt.steps.fused._is_plain", lambda parameter: True)


def fused_option_sets(name: str, device: str) -> list[dict[str, Any]]:
    return [options for options in option_sets(INFOS[name], torch.float32, device) if options.get("fused")]


def by_digit(name: str) -> str:
    return name.split(".")[0]


@devices
@each_optimizer
@pytest.mark.usefixtures("_fused_on_cpu", "poisoned_memory")
def test_a_held_layer_is_a_layer_without_gradients(name: str, device: str) -> None:
    schedule = random.Random(name)
    for options in fused_option_sets(name, device):
        model, inner, twin, oracle = twins(INFOS[name], options, torch.float32, device)
        script = [[float(schedule.random() < 0.5) for _ in range(LAYERS)] for _ in range(STEPS)]
        script[0][:2], script[1][0] = [0.0, 1.0], 1.0  # one layer is frozen on its very first step
        optimizer = LocalizedOptimizer(inner, model, Scripted(script, True), layers=by_digit)
        for step, scales in enumerate(script):
            give_gradients(model, twin)
            for layer, bare in enumerate(oracle):
                if scales[layer] == 0:
                    bare.zero_grad(set_to_none=True)
                bare.step()
            optimizer.step()
            assert_same_bits(model, twin, f"{options}, scales {scales}, step {step}")


@devices
@each_optimizer
@pytest.mark.usefixtures("_fused_on_cpu", "poisoned_memory")
def test_scale_s_is_the_bare_optimizer_with_a_float32_tensor_as_lr(name: str, device: str) -> None:
    scales = [1.0, 0.5, 0.3, 0.0]
    for options in fused_option_sets(name, device):
        model, inner, twin, oracle = twins(INFOS[name], options, torch.float32, device)
        optimizer = LocalizedOptimizer(inner, model, Scripted([scales] * STEPS, False), layers=by_digit)
        for layer, bare in enumerate(oracle):
            group = bare.param_groups[0]
            group["lr"] = torch.tensor(scales[layer], device=device) * group["lr"]
        for step in range(STEPS):
            give_gradients(model, twin)
            oracle[3].zero_grad(set_to_none=True)
            optimizer.step()
            for bare in oracle:
                bare.step()
            assert_same_bits(model, twin, f"{options}, step {step}")


@devices
@each_optimizer
@pytest.mark.usefixtures("_fused_on_cpu")
def test_both_routes_agree_when_clipping(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scales = [1.0, 0.0, 1.0, 1.0]
    for options in fused_option_sets(name, device):
        model, inner, twin, _ = twins(INFOS[name], options, torch.float32, device)
        other = INFOS[name].optim_cls(twin.parameters(), **options)
        policies = [Scripted([scales] * STEPS, True) for _ in range(2)]
        on_device = LocalizedOptimizer(inner, model, policies[0], layers=by_digit, max_grad_norm=0.5)
        on_host = LocalizedOptimizer(other, twin, policies[1], layers=by_digit, max_grad_norm=0.5)
        for _ in range(STEPS):
            give_gradients(model, twin)
            on_device.step()
            with monkeypatch.context() as patched:
                patched.setattr("localopt.steps.fused.can_fuse", lambda optimizer, group: False)
                on_host.step()
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@devices
@each_optimizer
@pytest.mark.usefixtures("_fused_on_cpu")
def test_a_nan_changes_nothing_and_is_counted(name: str, device: str) -> None:
    options = fused_option_sets(name, device)[0]
    model, inner, _, _ = twins(INFOS[name], options, torch.float32, device)
    optimizer = LocalizedOptimizer(inner, model, Scripted([[1.0] * LAYERS] * 2, True), layers=by_digit)
    give_gradients(model)
    optimizer.step()
    before, state = copy.deepcopy(model), copy.deepcopy(inner.state_dict()["state"])
    model.layer(2)[0].grad[0, 0] = float("nan")  # type: ignore[index]
    optimizer.step()
    assert_same_bits(model, before, "after the NaN")
    torch.testing.assert_close(inner.state_dict()["state"], state, rtol=0, atol=0)
    assert optimizer.report().skipped_steps == 1


@devices
@pytest.mark.usefixtures("_fused_on_cpu")
def test_a_tracked_layer_keeps_its_weights_while_its_moments_move_on(device: str) -> None:
    model, inner, twin, oracle = twins(INFOS["AdamW"], {"lr": 0.1, "fused": True}, torch.float32, device)
    optimizer = LocalizedOptimizer(
        inner, model, Scripted([[0.0] + [1.0] * 3] * 2, True), layers=by_digit, frozen_state="track"
    )
    before = [parameter.detach().clone() for parameter in model.layer(0)]
    for _ in range(2):
        give_gradients(model, twin)
        optimizer.step()
        for bare in oracle:
            bare.step()
    for parameter, same, weights in zip(model.layer(0), twin.layer(0), before, strict=True):
        assert torch.equal(parameter, weights)
        torch.testing.assert_close(inner.state[parameter], oracle[0].state[same], rtol=0, atol=0)


def test_sgd_with_dampening_takes_the_other_route_since_a_zero_buffer_is_not_its_first_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("localopt.steps.fused._is_plain", lambda parameter: True)
    parameters = [nn.Parameter(torch.zeros(1))]
    with_dampening = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, dampening=0.5, fused=True)
    without = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, fused=True)
    assert not can_fuse(with_dampening, with_dampening.param_groups[0])
    assert can_fuse(without, without.param_groups[0])


def test_on_a_cpu_the_split_route_is_taken() -> None:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], fused=True)
    assert not can_fuse(optimizer, optimizer.param_groups[0])


@cuda
@pytest.mark.parametrize("policy", [None, Proportional()], ids=["AboveMean", "Proportional"])
@each_optimizer
def test_a_whole_step_with_clipping_never_waits_for_the_device(name: str, policy: Any) -> None:
    model, inner, _, _ = twins(INFOS[name], {"lr": 0.1, "fused": True}, torch.float32, "cuda")
    arguments = () if policy is None else (policy,)
    optimizer = LocalizedOptimizer(inner, model, *arguments, layers=by_digit, max_grad_norm=1.0)
    give_gradients(model)
    optimizer.step()
    give_gradients(model)
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert optimizer.report().total_norm


@cuda
def test_a_step_replays_from_a_cuda_graph_while_the_learning_rate_changes() -> None:
    rate = torch.tensor(0.1, device="cuda")
    options = {"lr": rate, "fused": True, "capturable": True}
    model, inner, twin, _ = twins(INFOS["AdamW"], options, torch.float32, "cuda")
    rate = inner.param_groups[0]["lr"]
    eager = LocalizedOptimizer(
        torch.optim.AdamW(twin.parameters(), lr=rate, fused=True, capturable=True), twin, layers=by_digit
    )
    optimizer = LocalizedOptimizer(inner, model, layers=by_digit, max_grad_norm=1.0)
    eager.max_grad_norm = 1.0
    give_gradients(model, twin)
    warm_up = torch.cuda.Stream()
    with torch.cuda.stream(warm_up):
        optimizer.step()
        eager.step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for factor in (1.0, 0.5, 0.1):
        rate.fill_(0.1 * factor)
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            gradient = torch.randn_like(a)
            a.grad.copy_(gradient)  # type: ignore[union-attr]
            b.grad.copy_(gradient)  # type: ignore[union-attr]
        graph.replay()
        eager.step()
        assert_same_bits(model, twin, f"learning rate times {factor}")
