"""Frozen layers that bank their gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from localopt import LocalizedOptimizer
from tests.laws import LAYERS, Layered, Scripted, give_gradients

SCRIPT = [[0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]]


def by_digit(name: str) -> str:
    return name.split(".")[0]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_the_first_moment_of_a_frozen_layer_takes_its_gradients_in_and_nothing_else_moves(
    kind: type[Adam], fused: bool
) -> None:
    model = Layered(torch.float32)
    inner = kind(model.parameters(), lr=0.1, betas=(0.8, 0.99), fused=fused)
    optimizer = LocalizedOptimizer(inner, model, Scripted(SCRIPT, True), layers=by_digit, frozen_state="carry")
    first = next(iter(model.layer(0)))
    before = first.detach().clone()
    banked = torch.zeros_like(first)
    for _ in range(2):
        give_gradients(model)
        assert first.grad is not None
        banked += 0.2 * first.grad
        optimizer.step()
    state = inner.state[first]
    torch.testing.assert_close(state["exp_avg"], banked)
    assert not state["exp_avg_sq"].any()
    assert state["step"] == 0
    assert torch.equal(first, before)
    give_gradients(model)
    optimizer.step()  # its turn: the moment decays as it always does
    assert first.grad is not None
    torch.testing.assert_close(state["exp_avg"], 0.8 * banked + 0.2 * first.grad)
    assert state["step"] == 1
    assert not torch.equal(first, before)


def test_sgd_banks_in_its_momentum() -> None:
    model = Layered(torch.float32)
    inner = SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = LocalizedOptimizer(inner, model, Scripted(SCRIPT, True), layers=by_digit, frozen_state="carry")
    last = next(iter(model.layer(3)))
    total = torch.zeros_like(last)
    for _ in SCRIPT:
        give_gradients(model)
        assert last.grad is not None
        total += last.grad
        optimizer.step()
    torch.testing.assert_close(inner.state[last]["momentum_buffer"], total)


def test_what_is_banked_goes_on_after_a_resume() -> None:
    model = Layered(torch.float32)
    script = SCRIPT * 2
    whole = LocalizedOptimizer(
        AdamW(model.parameters(), lr=0.1), model, Scripted(script, True), layers=by_digit, frozen_state="carry"
    )
    twin = copy.deepcopy(model)
    halves = [
        LocalizedOptimizer(
            AdamW(twin.parameters(), lr=0.1), twin, Scripted(part, True), layers=by_digit, frozen_state="carry"
        )
        for part in (script[:2], script[2:])
    ]
    for step in range(len(script)):
        if step == 2:
            halves[1].load_state_dict(copy.deepcopy(halves[0].state_dict()))
        give_gradients(model, twin)
        whole.step()
        halves[step >= 2].step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("make", [lambda p: SGD(p, lr=0.1), lambda p: RMSprop(p)], ids=["SGD", "RMSprop"])
def test_an_optimizer_whose_momentum_is_not_known_is_refused(make: type[Optimizer]) -> None:
    model = Layered(torch.float32)
    with pytest.raises(ValueError, match=r'frozen_state="carry" banks gradients in the momentum of Adam'):
        LocalizedOptimizer(make(model.parameters()), model, Scripted([[1.0] * LAYERS], True), frozen_state="carry")  # type: ignore[call-arg]
