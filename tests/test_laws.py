"""The laws every wrapped optimizer obeys, bit for bit, over all option sets of torch's own optimizer database."""

from __future__ import annotations

import random

import pytest
import torch

from localopt import LocalizedOptimizer
from tests.laws import (
    INFOS,
    LAYERS,
    Scripted,
    assert_same_bits,
    assert_same_state,
    give_gradients,
    option_sets,
    twins,
)

STEPS = 5
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
everywhere = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_optimizer = pytest.mark.parametrize("name", INFOS)
pytestmark = [
    pytest.mark.usefixtures("poisoned_memory"),
    pytest.mark.filterwarnings("ignore:.*freezes every layer"),  # random schedules do
]


def by_digit(name: str) -> str:
    return name.split(".")[0]


@everywhere
@each_optimizer
def test_all_scales_one_is_the_bare_optimizer(name: str, dtype: torch.dtype) -> None:
    for options in option_sets(INFOS[name], dtype):
        model, inner, twin, oracle = twins(INFOS[name], options, dtype)
        optimizer = LocalizedOptimizer(inner, model, Scripted([[1.0] * LAYERS] * STEPS, True), layers=by_digit)
        for step in range(STEPS):
            give_gradients(model, twin)
            optimizer.step()
            for bare in oracle:
                bare.step()
            assert_same_bits(model, twin, f"{options}, step {step}")
        assert_same_state(optimizer, model, oracle, twin)


@everywhere
@each_optimizer
def test_a_held_layer_is_a_layer_without_gradients(name: str, dtype: torch.dtype) -> None:
    schedule = random.Random(name)
    for options in option_sets(INFOS[name], dtype):
        model, inner, twin, oracle = twins(INFOS[name], options, dtype)
        script = [[float(schedule.random() < 0.5) for _ in range(LAYERS)] for _ in range(STEPS)]
        script[0][:2] = [0.0, 1.0]  # one layer is frozen on its very first step
        script[1][0] = 1.0
        optimizer = LocalizedOptimizer(inner, model, Scripted(script, True), layers=by_digit)
        for step, scales in enumerate(script):
            give_gradients(model, twin)
            for layer, bare in enumerate(oracle):
                if scales[layer] == 0:
                    bare.zero_grad(set_to_none=True)
                bare.step()
            optimizer.step()
            assert_same_bits(model, twin, f"{options}, scales {scales}, step {step}")
        assert_same_state(optimizer, model, oracle, twin)


@everywhere
@pytest.mark.parametrize("name", [name for name in INFOS if name not in ("Rprop", "ASGD")])
def test_scale_s_is_the_bare_optimizer_at_lr_times_s(name: str, dtype: torch.dtype) -> None:
    scales = [1.0, 0.5, 0.3, 0.0]
    for options in option_sets(INFOS[name], dtype):
        model, inner, twin, oracle = twins(INFOS[name], options, dtype)
        optimizer = LocalizedOptimizer(inner, model, Scripted([scales] * STEPS, False), layers=by_digit)
        for layer, bare in enumerate(oracle):
            # A policy's scales are float32 numbers.
            bare.param_groups[0]["lr"] = bare.param_groups[0]["lr"] * torch.tensor(scales[layer]).item()
        for step in range(STEPS):
            give_gradients(model, twin)
            oracle[3].zero_grad(set_to_none=True)
            optimizer.step()
            for bare in oracle:
                bare.step()
            assert_same_bits(model, twin, f"{options}, step {step}")
        assert_same_state(optimizer, model, oracle, twin)


@everywhere
@each_optimizer
def test_a_tracked_layer_keeps_its_weights_while_its_state_moves_on(name: str, dtype: torch.dtype) -> None:
    for options in option_sets(INFOS[name], dtype):
        model, inner, twin, oracle = twins(INFOS[name], options, dtype)
        script = [[1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]
        optimizer = LocalizedOptimizer(inner, model, Scripted(script, True), layers=by_digit, frozen_state="track")
        for step, scales in enumerate(script):
            give_gradients(model, twin)
            before = {parameter: parameter.detach().clone() for parameter in twin.parameters()}
            optimizer.step()
            for layer, bare in enumerate(oracle):
                bare.step()
                if scales[layer] == 0:
                    for parameter in twin.layer(layer):
                        parameter.data.copy_(before[parameter])
            assert_same_bits(model, twin, f"{options}, step {step}")
        assert_same_state(optimizer, model, oracle, twin)
