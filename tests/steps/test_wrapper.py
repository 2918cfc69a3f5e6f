"""A localized optimizer is a real torch.optim.Optimizer: to schedulers, hooks, profilers and training loops."""

from __future__ import annotations

import gc
import inspect
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from localopt import LocalizedOptimizer
from localopt.policies import AboveMean, Smoothed
from localopt.steps.wrapper import OptimizerWrapper
from tests.runs import backward, every_layer, two_layers


def first_layer(norms: Tensor) -> Tensor:
    return (torch.arange(len(norms)) == 0).float()


def wrapped(policy: Any = every_layer, **options: Any) -> tuple[nn.Sequential, LocalizedOptimizer]:
    model = two_layers()
    return model, LocalizedOptimizer(torch.optim.AdamW(model.parameters(), lr=0.1, **options), model, policy)


# -- an optimizer -----------------------------------------------------------------------------------------------------


def test_it_is_a_torch_optimizer_and_shows_the_wrapped_ones_objects() -> None:
    _, optimizer = wrapped()
    assert isinstance(optimizer, Optimizer)
    optimizer.load_state_dict(optimizer.state_dict())  # which replaces the lists
    optimizer.zero_grad()
    assert optimizer.param_groups is optimizer.inner.param_groups
    assert optimizer.state is optimizer.inner.state
    assert optimizer.defaults is optimizer.inner.defaults


@pytest.mark.parametrize("name", ["param_groups", "state", "defaults"])
def test_what_is_assigned_to_it_is_assigned_to_the_wrapped_one(name: str) -> None:
    _, optimizer = wrapped()
    new = type(getattr(optimizer, name))()
    setattr(optimizer, name, new)
    assert getattr(optimizer.inner, name) is new


def test_every_public_method_it_overrides_has_torchs_signature() -> None:
    def shape(method: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
        return [(p.name, p.kind, p.default) for p in inspect.signature(method).parameters.values()]

    overridden = {
        name
        for cls in (OptimizerWrapper, LocalizedOptimizer)
        for name, value in vars(cls).items()
        if inspect.isfunction(value) and not name.startswith("_") and hasattr(Optimizer, name)
    }
    assert overridden == {"step", "zero_grad", "state_dict", "load_state_dict", "add_param_group"}
    for name in overridden:
        assert shape(getattr(LocalizedOptimizer, name)) == shape(getattr(Optimizer, name)), name


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_resets_gradients_as_asked(set_to_none: bool) -> None:
    model, optimizer = wrapped()
    backward(model)
    optimizer.zero_grad(set_to_none=set_to_none)
    for parameter in model.parameters():
        assert (parameter.grad is None) if set_to_none else not parameter.grad.any()


def test_the_closure_runs_once_with_gradients_on_and_before_the_norms_are_taken() -> None:
    model, optimizer = wrapped()
    calls = []

    def closure() -> float:
        optimizer.zero_grad()
        calls.append(torch.is_grad_enabled())
        return backward(model).item()

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert calls == [True]
    assert loss == pytest.approx(backward(two_layers()).item())
    assert all(norm > 0 for norm in optimizer.report().norms or ())


def test_a_step_without_closure_returns_none() -> None:
    model, optimizer = wrapped()
    backward(model)
    assert optimizer.step() is None


# -- hooks and profilers ----------------------------------------------------------------------------------------------


def test_every_step_hook_fires_once_a_step_wherever_it_was_registered() -> None:
    model, optimizer = wrapped(first_layer)
    fired: list[tuple[str, Optimizer]] = []

    def note(where: str) -> Callable[..., None]:
        return lambda optimizer, *_: fired.append((where, optimizer))

    handles = [
        optimizer.register_step_pre_hook(note("pre, wrapper")),
        optimizer.inner.register_step_pre_hook(note("pre, inner")),
        register_optimizer_step_pre_hook(note("pre, global")),
        optimizer.register_step_post_hook(note("post, wrapper")),
        optimizer.inner.register_step_post_hook(note("post, inner")),
        register_optimizer_step_post_hook(note("post, global")),
    ]
    backward(model)
    optimizer.step()
    for handle in handles:
        handle.remove()
    optimizer.step()
    expected = ["pre, global", "pre, wrapper", "pre, inner", "post, wrapper", "post, inner", "post, global"]
    assert fired == [(where, optimizer) for where in expected]


def test_a_step_hook_may_change_the_arguments() -> None:
    model, optimizer = wrapped()
    optimizer.register_step_pre_hook(lambda _, args, kwargs: (args, {"closure": lambda: backward(model).item()}))
    assert optimizer.step() == pytest.approx(backward(two_layers()).item())


def test_every_state_dict_hook_fires_once_and_may_replace_the_state_dict() -> None:
    _, optimizer = wrapped()
    fired = []
    optimizer.register_state_dict_pre_hook(lambda _: fired.append("before saving"))
    optimizer.inner.register_state_dict_post_hook(lambda _, state: fired.append("saved") or {**state, "extra": 1})
    optimizer.register_load_state_dict_pre_hook(lambda _, state: fired.append(f"loading {state.pop('extra')}"))
    optimizer.inner.register_load_state_dict_post_hook(lambda _: fired.append("loaded"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert fired == ["before saving", "saved", "loading 1", "loaded"]


def test_a_profiler_sees_one_optimizer_step() -> None:
    model, optimizer = wrapped(lambda norms: torch.tensor([1.0, 0.5]))  # two calls of the wrapped one's kernels
    backward(model)
    with torch.autograd.profiler.profile() as profile:
        optimizer.step()
    steps = [event.name for event in profile.function_events if event.name.startswith("Optimizer.step")]
    assert steps == ["Optimizer.step#LocalizedOptimizer.step"]


# -- memory -----------------------------------------------------------------------------------------------------------


def test_the_optimizer_does_not_keep_the_model_alive() -> None:
    model, optimizer = wrapped(Smoothed(AboveMean(), 0.9))
    backward(model)
    optimizer.step()
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_parameters_swapped_in_place_are_followed_and_the_old_ones_freed() -> None:
    model, optimizer = wrapped(first_layer)
    backward(model)
    optimizer.step()
    old = [weakref.ref(parameter) for parameter in model.parameters()]
    new = [nn.Parameter(parameter.detach().clone()) for parameter in model.parameters()]
    before = [parameter.detach().clone() for parameter in new]
    optimizer.param_groups[0]["params"][:] = new  # as sharding does
    optimizer.state.clear()
    del model
    gc.collect()
    assert [parameter() for parameter in old] == [None] * 4
    for parameter in new:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert optimizer.report().norms == pytest.approx((20**0.5, 5**0.5))
    moved = [not torch.equal(a, b) for a, b in zip(new, before, strict=True)]
    assert moved == [True, True, False, False]
