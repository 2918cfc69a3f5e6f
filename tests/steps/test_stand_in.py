"""During a step everyone sees the user's groups, and what the wrapped optimizer writes down is not lost."""

from __future__ import annotations

import copy
import io
import signal
import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from localopt import AboveMean, Fixed, LocalizedOptimizer, Proportional
from tests.laws import assert_same_bits
from tests.runs import backward, two_layers


class Counting(SGD):
    """Counts its steps in its groups, as most optimizers of other packages do, and in itself."""

    steps = 0

    def step(self, closure: Any = None) -> None:
        self.steps += 1
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
            group.setdefault("seen", []).append(group["k"])
            group["lr"] = group["initial"] / group["k"]
        super().step()


def counting(model: Any, groups: int = 1) -> Counting:
    parts = [model.parameters()] if groups == 1 else [model[0].parameters(), model[2].parameters()]
    return Counting([{"params": part, "initial": 0.1} for part in parts], lr=0.1)


def freezing(model: Any, optimizer: Optimizer, layer: int) -> None:
    backward(model)
    for parameter in model[layer].parameters():
        parameter.grad = None
    optimizer.step()


@pytest.mark.parametrize("groups", [1, 2])
def test_what_an_optimizer_remembers_in_its_groups_is_what_it_would_be_without_the_wrapper(groups: int) -> None:
    model, twin = two_layers(), two_layers()
    optimizer = LocalizedOptimizer(counting(model, groups), model, Fixed({"0": 1.0, "2": 0.0}))
    bare = counting(twin, groups)
    for _ in range(3):
        backward(model)
        optimizer.step()
        freezing(twin, bare, layer=2)
        model.zero_grad()
        twin.zero_grad()
    for mine, theirs in zip(optimizer.param_groups, bare.param_groups, strict=True):
        assert {k: v for k, v in mine.items() if k != "params"} == {k: v for k, v in theirs.items() if k != "params"}
    assert optimizer.inner.steps == bare.steps == 3  # type: ignore[attr-defined]
    assert_same_bits(model, twin, "counted")


def test_values_that_a_group_cannot_keep_are_refused() -> None:
    model = two_layers()
    optimizer = LocalizedOptimizer(counting(model), model, Proportional())
    backward(model)
    with pytest.raises(RuntimeError, match=r'Counting wrote "lr" into its parameter groups'):
        optimizer.step()


def test_a_step_that_calls_the_step_of_its_base_fires_hooks_once() -> None:
    model, fired = two_layers(), []
    optimizer = LocalizedOptimizer(counting(model), model)
    optimizer.register_step_pre_hook(lambda *_: fired.append("pre"))
    backward(model)
    optimizer.step()
    assert fired == ["pre"]


def test_a_checkpoint_taken_by_a_signal_within_a_step_loads() -> None:
    saved: list[dict[str, Any]] = []
    model = two_layers()

    class Interrupted(SGD):
        def step(self, closure: Any = None) -> None:
            signal.raise_signal(signal.SIGUSR1)
            super().step()

    optimizer = LocalizedOptimizer(Interrupted(model.parameters(), lr=0.1, momentum=0.9), model)
    before = signal.signal(signal.SIGUSR1, lambda *_: saved.append(copy.deepcopy(optimizer.state_dict())))
    try:
        for step in range(3):
            backward(model, step)
            optimizer.step()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert [len(state["param_groups"][0]["params"]) for state in saved] == [4, 4, 4]
    for state in saved:
        fresh = two_layers()
        LocalizedOptimizer(SGD(fresh.parameters(), lr=0.1), fresh).load_state_dict(state)


def test_checkpoints_taken_by_another_thread_while_it_trains_all_load() -> None:
    model, stop, saved = two_layers(), threading.Event(), []
    optimizer = LocalizedOptimizer(AdamW(model.parameters(), lr=0.01), model, AboveMean())
    backward(model)
    optimizer.inner.step()  # every parameter has its state: a dictionary that grows cannot be read by another thread

    def save() -> None:
        while not stop.is_set():
            saved.append(optimizer.state_dict()["param_groups"])

    thread = threading.Thread(target=save)
    thread.start()
    for step in range(150):
        backward(model, step)
        optimizer.step()
    stop.set()
    thread.join()
    assert saved
    assert {len(groups[0]["params"]) for groups in saved} == {4}
    assert {len(groups) for groups in saved} == {1}


def test_a_step_that_fails_leaves_the_groups_in_place() -> None:
    class Failing(SGD):
        def step(self, closure: Any = None) -> None:
            raise ArithmeticError("no")

    model = two_layers()
    optimizer = LocalizedOptimizer(Failing(model.parameters(), lr=0.1), model)
    groups = optimizer.param_groups
    backward(model)
    with pytest.raises(ArithmeticError):
        optimizer.step()
    assert optimizer.param_groups is groups
    assert len(groups[0]["params"]) == 4


# -- numbers that a gradient scaler sets ------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["wrapper", "wrapped"])
@pytest.mark.parametrize("policy", [AboveMean(), Fixed({"0": 1.0, "2": 0.5})], ids=["AboveMean", "Fixed"])
def test_a_gradient_scale_set_on_either_is_undone_before_norms_are_taken(policy: Any, where: str) -> None:
    model, twin = two_layers(), two_layers()
    optimizer = LocalizedOptimizer(AdamW(model.parameters(), lr=0.1, fused=True), model, copy.deepcopy(policy))
    other = LocalizedOptimizer(AdamW(twin.parameters(), lr=0.1, fused=True), twin, copy.deepcopy(policy))
    holder: Any = optimizer if where == "wrapper" else optimizer.inner
    for step in range(2):
        model.zero_grad()
        twin.zero_grad()
        backward(model, step)
        backward(twin, step)
        for parameter in model.parameters():
            parameter.grad *= 1024.0  # type: ignore[operator]
        holder.grad_scale, holder.found_inf = torch.tensor(1024.0), torch.tensor(0.0)
        optimizer.step()
        other.step()
    assert optimizer.report().norms == other.report().norms
    assert_same_bits(model, twin, "scaled")


@pytest.mark.parametrize("policy", [AboveMean(), Fixed({"0": 1.0, "2": 0.5})], ids=["AboveMean", "Fixed"])
def test_an_overflow_set_on_the_wrapper_skips_the_step(policy: Any) -> None:
    model, before = two_layers(), two_layers()
    optimizer: Any = LocalizedOptimizer(AdamW(model.parameters(), lr=0.1, fused=True), model, policy)
    backward(model)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(1.0)
    optimizer.step()
    assert_same_bits(model, before, "overflown")
    assert optimizer.report().skipped_steps == 1
    assert optimizer.report().updated == ()
    optimizer.grad_scale, optimizer.found_inf = None, None
    optimizer.step()
    assert optimizer.report().updated


def test_tensors_remembered_in_a_group_move_on_once() -> None:
    class InPlace(SGD):
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                group.setdefault("count", torch.zeros(()))
                group["count"] += 1
            super().step()

    model = two_layers()
    optimizer = LocalizedOptimizer(InPlace(model.parameters(), lr=0.1), model, lambda norms: torch.tensor([1.0, 0.5]))
    for step in range(3):
        backward(model, step)
        optimizer.step()
    count: Tensor = optimizer.param_groups[0]["count"]
    assert count.item() == 3
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
