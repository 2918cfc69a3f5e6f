"""What a checkpoint says of the policy is checked before it is loaded; the errors are those that are documented."""

from __future__ import annotations

import contextlib
import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from localopt.signals import clip_factor, layer_norms
from tests.runs import STATEFUL, assert_same, assert_same_run, each_policy, new_run, train

THING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just(math.nan),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, entry in inner for place in places(entry, (*path, key)))]


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    value[path[0]] = put(value[path[0]], path[1:], new)
    return value


@pytest.mark.parametrize("policy", STATEFUL)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_mutated_policy_entry_is_a_value_error_that_changes_nothing_or_a_state_that_can_be(
    policy: str, data: st.DataObject
) -> None:
    model, optimizer = new_run(policy=policy)
    train(model, optimizer, 0, 3)
    before = copy.deepcopy(optimizer.state_dict())
    damaged = copy.deepcopy(before)
    entry = damaged["param_groups"][0]["localopt"]
    path = data.draw(st.sampled_from(places(entry)))
    damaged["param_groups"][0]["localopt"] = put(entry, path, data.draw(THING))
    try:
        optimizer.load_state_dict(damaged)
    except ValueError:
        assert_same(copy.deepcopy(optimizer.state_dict()), before)
    with contextlib.suppress(ValueError):  # of a negative scale, which a step refuses
        train(model, optimizer, 3, 4)
    state = optimizer.state_dict()["param_groups"][0]["localopt"]["state"]
    assert all(torch.as_tensor(values).isfinite().all() for values in state.values())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300])
def test_state_that_is_not_finite_is_refused(bad: float) -> None:
    _, optimizer = new_run(policy="Smoothed")
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["localopt"]["state"]["average"][0] = bad
    with pytest.raises(ValueError, match="'average' holds a number that cannot be"):
        optimizer.load_state_dict(saved)


@each_policy
def test_skipped_steps_are_counted_on_after_a_resume(policy: str) -> None:
    model, optimizer = new_run(policy=policy)
    train(model, optimizer, 0, 2)
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, math.nan)
        optimizer.step()
    expected = 0 if policy in ("Fixed", "HighestSNR") else 3  # which take no norms, and so skip nothing
    assert optimizer.report().skipped_steps == expected
    other = new_run(policy=policy)
    other[0].load_state_dict(model.state_dict())
    other[1].load_state_dict(copy.deepcopy(optimizer.state_dict()))
    if expected:
        train(*other, 5, 6)
        assert other[1].report().skipped_steps == 3
        train(model, optimizer, 5, 6)
        assert (
            other[1].state_dict()["param_groups"][0]["localopt"]
            == optimizer.state_dict()["param_groups"][0]["localopt"]
        )


def test_a_run_with_skipped_steps_loads_into_one_without_and_back() -> None:
    model, optimizer = new_run(policy="AboveMean")
    fresh = copy.deepcopy(optimizer.state_dict())
    assert "localopt" not in fresh["param_groups"][0]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, math.inf)
    optimizer.step()
    optimizer.load_state_dict(fresh)
    train(model, optimizer, 0, 1)
    assert optimizer.report().skipped_steps == 0
    assert_same_run((model, optimizer), trained_once())


def trained_once() -> Any:
    run = new_run(policy="AboveMean")
    train(*run, 0, 1)
    return run


@pytest.mark.parametrize("size", [1e-30, 1e-23, 1e-19, 1e-3, 1e18, 1e19, 1e30])
def test_norms_at_the_ends_of_float32_are_those_of_clip_grad_norm(size: float) -> None:
    parameters = [nn.Parameter(torch.zeros(4)) for _ in range(2)]
    for parameter in parameters:
        parameter.grad = torch.full((4,), size)
    gradients = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
    norms = layer_norms(gradients, torch.tensor([[0], [1]]))
    factor = clip_factor(norms, torch.ones(2), 1.0)
    total = nn.utils.clip_grad_norm_(parameters, 1.0)
    torch.testing.assert_close(norms.square().sum().sqrt(), total, rtol=1e-3, atol=0)
    torch.testing.assert_close(gradients[0] * factor, parameters[0].grad, rtol=1e-5, atol=0)
