"""Decay toward the start: its laws, bit for bit over torch's optimizer database, and what checkpoints hold of it."""

from __future__ import annotations

import copy
import io
import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, AdamW

from localopt import AboveMean, AnchorDecay, Everything, Fixed, LocalizedOptimizer, Policy
from localopt.steps.anchor import lerp_cautiously
from tests.laws import INFOS, LAYERS, Layered, Scripted, assert_same_bits, give_gradients, option_sets, twins

STEPS = 4
RATE = 3.0
pytestmark = [
    pytest.mark.usefixtures("poisoned_memory"),
    pytest.mark.filterwarnings("ignore:.*freezes every layer"),  # random schedules do
]
each_optimizer = pytest.mark.parametrize("name", INFOS)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def by_digit(name: str) -> str:
    return name.split(".")[0]


def rate_of(optimizer: torch.optim.Optimizer) -> float:
    return float(optimizer.param_groups[0]["lr"])


@each_dtype
@each_optimizer
def test_a_strength_of_0_is_the_bare_optimizer(name: str, dtype: torch.dtype) -> None:
    for options in option_sets(INFOS[name], dtype):
        model, inner, twin, oracle = twins(INFOS[name], options, dtype)
        policy = Scripted([[1.0] * LAYERS] * STEPS, True)
        optimizer = LocalizedOptimizer(inner, model, policy, layers=by_digit, anchor_decay=0.0)
        for step in range(STEPS):
            give_gradients(model, twin)
            optimizer.step()
            for bare in oracle:
                bare.step()
            assert_same_bits(model, twin, f"{options}, step {step}")


@each_dtype
@each_optimizer
def test_plain_is_the_bare_optimizer_and_then_the_lerp(name: str, dtype: torch.dtype) -> None:
    schedule = random.Random(name)
    for options in option_sets(INFOS[name], dtype):
        model, inner, twin, oracle = twins(INFOS[name], options, dtype)
        start = [parameter.detach().clone() for parameter in twin.parameters()]
        script = [[float(schedule.random() < 0.7) for _ in range(LAYERS)] for _ in range(STEPS)]
        policy = Scripted(script, True)
        optimizer = LocalizedOptimizer(inner, model, policy, layers=by_digit, anchor_decay=RATE)
        where = {id(p): w0 for p, w0 in zip(twin.parameters(), start, strict=True)}
        for step, scales in enumerate(script):
            give_gradients(model, twin)
            optimizer.step()
            for layer, bare in enumerate(oracle):
                if scales[layer] == 0:
                    continue
                bare.step()
                for parameter in twin.layer(layer):
                    parameter.data.lerp_(where[id(parameter)], min(1.0, rate_of(bare) * RATE))
            assert_same_bits(model, twin, f"{options}, scales {scales}, step {step}")


@pytest.mark.parametrize("rule", ["plain", "selective", "cautious"])
@each_optimizer
def test_a_frozen_layer_does_not_move_by_one_bit(name: str, rule: Any) -> None:
    schedule = random.Random(name)
    for options in option_sets(INFOS[name], torch.float32):
        model, inner, _, _ = twins(INFOS[name], options, torch.float32)
        script = [[float(schedule.random() < 0.5) for _ in range(LAYERS)] for _ in range(STEPS)]
        decay = AnchorDecay(1.0, rule=rule)
        optimizer = LocalizedOptimizer(inner, model, Scripted(script, True), layers=by_digit, anchor_decay=decay)
        for scales in script:
            before = copy.deepcopy(model)
            give_gradients(model)
            optimizer.step()
            for layer, scale in enumerate(scales):
                if scale == 0:
                    assert_same_bits(model.get_submodule(str(layer)), before.get_submodule(str(layer)), f"{options}")


def selective_by_hand(weights: list[Tensor], olds: list[Tensor], starts: list[Tensor], gradients: list[Tensor]) -> None:
    """SPD on one layer, in plain float64."""

    def far(parts: list[Tensor]) -> float:
        return sum(float((w.double() - s.double()).square().sum()) for w, s in zip(parts, starts, strict=True)) ** 0.5

    against = sum(
        float((g.double() * (o.double() - s.double())).sum()) for g, o, s in zip(gradients, olds, starts, strict=True)
    )
    if against > 0 and far(weights) > 0:
        share = max(0.0, (far(weights) - far(olds)) / far(weights))
        for weight, start in zip(weights, starts, strict=True):
            weight.lerp_(start, share)


@pytest.mark.parametrize("fused_on_cpu", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda p: AdamW(p, lr=0.1, fused=True),
        lambda p: AdamW(p, lr=0.1, foreach=True),
        lambda p: SGD(p, lr=0.3, momentum=0.9, fused=True),
        lambda p: Adagrad(p, lr=0.1, fused=True),
    ],
    ids=["AdamW fused", "AdamW foreach", "SGD", "Adagrad"],
)
def test_selective_goes_back_where_the_gradient_says_so_by_what_the_step_added(
    make: Callable[..., torch.optim.Optimizer], fused_on_cpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fused_on_cpu:
        monkeypatch.setattr("localopt.steps.fused._is_plain", lambda parameter: True)
    model, twin = Layered(torch.float32), Layered(torch.float32)
    twin.load_state_dict(model.state_dict())
    start = {name: p.detach().clone() for name, p in twin.named_parameters()}
    bare = make(twin.parameters())
    decay = AnchorDecay(1.0, rule="selective")
    optimizer = LocalizedOptimizer(make(model.parameters()), model, Everything(), layers=by_digit, anchor_decay=decay)
    went_back = 0
    for _ in range(12):
        give_gradients(model, twin)
        optimizer.step()
        olds = {name: p.detach().clone() for name, p in twin.named_parameters()}
        bare.step()
        for layer in range(LAYERS):
            names = [name for name in olds if by_digit(name) == str(layer)]
            weights = [twin.get_parameter(name) for name in names]
            gradients = [w.grad for w in weights if w.grad is not None]
            selective_by_hand([w.data for w in weights], [olds[n] for n in names], [start[n] for n in names], gradients)
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=2e-5, atol=2e-6)
        shares = optimizer.report().anchor_shares
        assert shares is not None
        went_back += sum(share > 0 for share in shares)
    assert 5 < went_back < 12 * LAYERS - 5


def test_cautious_goes_back_only_where_the_step_went_toward_the_start() -> None:
    model, twin = Layered(torch.float32), Layered(torch.float32)
    twin.load_state_dict(model.state_dict())
    start = [p.detach().clone() for p in twin.parameters()]
    bare = AdamW(twin.parameters(), lr=0.1)
    optimizer = LocalizedOptimizer(
        AdamW(model.parameters(), lr=0.1), model, Everything(), anchor_decay=AnchorDecay(2.0, rule="cautious")
    )
    for _ in range(5):
        give_gradients(model, twin)
        optimizer.step()
        olds = [p.detach().clone() for p in twin.parameters()]
        bare.step()
        for weight, old, w0 in zip((p.data for p in twin.parameters()), olds, start, strict=True):
            lerp_cautiously(weight, w0, old, 0.2)
        assert_same_bits(model, twin, "cautious")
    moved = torch.tensor([1.0, 1.0])
    lerp_cautiously(moved, torch.tensor([0.0, 2.0]), torch.tensor([1.5, 1.5]), 0.5)
    assert moved.tolist() == [0.5, 1.0]  # the first came nearer to 0, the second went away from 2


@pytest.mark.parametrize("rule", ["plain", "selective", "cautious"])
def test_both_routes_agree(rule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localopt.steps.fused._is_plain", lambda parameter: True)
    models = [Layered(torch.float32) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    script = [[1.0, 0.5, 0.0, 1.0], [0.0, 1.0, 1.0, 0.3]] * 4
    optimizers = [
        LocalizedOptimizer(
            AdamW(model.parameters(), lr=0.1, fused=True),
            model,
            Scripted(script, False),
            layers=by_digit,
            anchor_decay=AnchorDecay(0.8, rule=rule),
        )
        for model in models
    ]
    for _ in script:
        give_gradients(*models)
        optimizers[0].step()
        with monkeypatch.context() as patched:
            patched.setattr("localopt.steps.fused.can_fuse", lambda optimizer, group: False)
            optimizers[1].step()
        for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_a_step_that_is_not_a_number_pulls_nothing() -> None:
    model = Layered(torch.float32)
    decay = AnchorDecay(1.0, rule="selective")
    optimizer = LocalizedOptimizer(AdamW(model.parameters(), lr=0.1), model, Everything(), anchor_decay=decay)
    give_gradients(model)
    optimizer.step()
    before = copy.deepcopy(model)
    give_gradients(model)
    next(model.parameters()).grad.fill_(float("nan"))  # type: ignore[union-attr]
    optimizer.step()
    assert_same_bits(model, before, "skipped")
    assert optimizer.report().skipped_steps == 1


# -- the start --------------------------------------------------------------------------------------------------------


def run(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        give_gradients(model)
        optimizer.step()


def localized(model: nn.Module, policy: Policy | None = None, **options: Any) -> LocalizedOptimizer:
    decay = AnchorDecay(1.0, rule="selective", **options)
    return LocalizedOptimizer(
        AdamW(model.parameters(), lr=0.1), model, policy or AboveMean(), layers=by_digit, anchor_decay=decay
    )


def reloaded(state: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_a_resumed_run_pulls_to_the_same_start_bit_for_bit() -> None:
    whole = Layered(torch.float32)
    halves = copy.deepcopy(whole)
    run(whole, localized(whole), range(10))
    first = localized(halves)
    run(halves, first, range(5))
    saved = reloaded({"model": halves.state_dict(), "optimizer": first.state_dict()})
    again = Layered(torch.float32)
    again.load_state_dict(saved["model"])
    second = localized(again)  # made from the weights of step 5, which are not the start
    second.load_state_dict(saved["optimizer"])
    run(again, second, range(5, 10))
    assert_same_bits(again, whole, "resumed")


def test_a_checkpoint_loaded_into_the_bare_optimizer_before_it_is_wrapped_keeps_its_start() -> None:
    whole = Layered(torch.float32)
    halves = copy.deepcopy(whole)
    run(whole, localized(whole, Everything()), range(10))
    first = localized(halves, Everything())
    run(halves, first, range(5))
    inner = AdamW(halves.parameters(), lr=0.1)
    inner.load_state_dict(reloaded(first.state_dict()))
    decay = AnchorDecay(1.0, rule="selective")
    second = LocalizedOptimizer(inner, halves, Everything(), layers=by_digit, anchor_decay=decay)
    run(halves, second, range(5, 10))
    assert_same_bits(halves, whole, "resumed")


def test_a_checkpoint_without_a_start_is_refused_and_nothing_changes() -> None:
    model = Layered(torch.float32)
    bare = AdamW(model.parameters(), lr=0.1)
    run(model, bare, range(2))
    optimizer = localized(model)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match="holds no start of the anchor decay for 8 of 8 parameters"):
        optimizer.load_state_dict(bare.state_dict())
    assert optimizer.state_dict()["param_groups"] == before["param_groups"]


def test_a_checkpoint_of_another_start_than_the_one_given_is_refused() -> None:
    model = Layered(torch.float32)
    optimizer = localized(model)
    run(model, optimizer, range(2))
    other = localized(model, start={name: torch.zeros_like(p) for name, p in model.named_parameters()})
    with pytest.raises(ValueError, match="decayed toward another start than AnchorDecay"):
        other.load_state_dict(optimizer.state_dict())


def test_an_optimizer_without_anchor_decay_says_that_it_has_no_use_for_a_start() -> None:
    model = Layered(torch.float32)
    optimizer = localized(model)
    run(model, optimizer, range(2))
    plain = LocalizedOptimizer(AdamW(model.parameters(), lr=0.1), model, AboveMean(), layers=by_digit)
    with pytest.warns(UserWarning, match="start of an anchor decay, for which this optimizer has no use"):
        plain.load_state_dict(optimizer.state_dict())
    assert all("localopt_start" not in state for state in plain.state_dict()["state"].values())


def test_weights_loaded_after_the_optimizer_was_wrapped_are_noticed() -> None:
    model, loaded = Layered(torch.float32), Layered(torch.float32)
    optimizer = LocalizedOptimizer(SGD(model.parameters(), lr=0.1), model)
    model.load_state_dict({name: value + 1 for name, value in loaded.state_dict().items()})
    saved = optimizer.state_dict()
    give_gradients(model)
    with pytest.warns(UserWarning, match="no longer those that the optimizer was wrapped with") as said:
        optimizer.step()
    assert said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()  # said once
        resumed = LocalizedOptimizer(SGD(model.parameters(), lr=0.1), model)
        resumed.load_state_dict(saved)  # a checkpoint's start is another on purpose
        resumed.step()


def test_the_start_may_be_an_earlier_checkpoint() -> None:
    model = Layered(torch.float32)
    start = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    optimizer = LocalizedOptimizer(
        SGD(model.parameters(), lr=0.5), model, Everything(), anchor_decay=AnchorDecay(1.0, start=start)
    )
    before = [p.detach().clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter, old in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.detach(), old / 2)


def test_only_parameters_that_can_be_trained_have_a_start() -> None:
    model = Layered(torch.float32)
    for parameter in model.layer(0):
        parameter.requires_grad_(False)
    optimizer = localized(model)
    assert set(optimizer.state_dict()["state"]) == {2, 3, 4, 5, 6, 7}


def test_a_start_in_bfloat16_is_taken_where_it_is_exact_and_refused_where_it_is_not() -> None:
    model = Layered(torch.float32)
    with pytest.raises(ValueError, match=r"would change the start of '0.matrix'"):
        localized(model, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    twin = copy.deepcopy(model)
    narrow, wide = localized(model, dtype=torch.bfloat16), localized(twin)
    run(model, narrow, range(6))
    run(twin, wide, range(6))
    assert_same_bits(model, twin, "bfloat16 start")


def test_parameters_added_later_begin_where_they_are_then() -> None:
    model = Layered(torch.float32)
    optimizer = LocalizedOptimizer(
        SGD([*model.layer(0), *model.layer(1)], lr=0.5), model, Everything(), layers=by_digit, anchor_decay=1.0
    )
    optimizer.add_param_group({"params": [*model.layer(2), *model.layer(3)]})
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    for parameter, old in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.detach(), old - 0.25)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AnchorDecay(-1.0), "must be finite and >= 0, not -1.0"),
        (lambda: AnchorDecay(float("nan")), "must be finite and >= 0, not nan"),
        (lambda: AnchorDecay(1.5, rule="selective"), r"must be in \[0, 1\], not 1.5"),
        (lambda: AnchorDecay(1.0, rule="sometimes"), "rule must be 'plain', 'selective' or 'cautious'"),  # type: ignore[arg-type]
    ],
)
def test_a_decay_that_cannot_be_is_refused(make: Callable[[], AnchorDecay], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_start_of_another_model_is_refused_before_anything_is_changed() -> None:
    model = Layered(torch.float32)
    with pytest.raises(ValueError, match=r"the start of the anchor decay has no '0.matrix'; it has weight"):
        localized(model, start={"weight": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"the start of '0.matrix' has shape \(3,\), the parameter \(3, 4\)"):
        localized(model, start={name: torch.zeros(3) for name, _ in model.named_parameters()})


def test_a_constant_policy_needs_no_signals_for_a_plain_decay() -> None:
    model = Layered(torch.float32)
    policy = Fixed({str(layer): float(layer > 0) for layer in range(LAYERS)})
    optimizer = LocalizedOptimizer(AdamW(model.parameters()), model, policy, layers=by_digit, anchor_decay=1.0)
    give_gradients(model)
    optimizer.step()
    assert optimizer.report().norms is None
