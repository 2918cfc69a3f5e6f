"""Rules on other signals than norms: alone against their formulas, in an optimizer against numbers taken by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import SGD, Adagrad, AdamW

from localopt import (
    AboveMean,
    Agreement,
    AnchorDecay,
    Every,
    Everything,
    GainOverDamage,
    LayerSignals,
    LocalizedOptimizer,
    LossScaled,
    Pinned,
    Proportional,
    RelativeChange,
    RelativeTo,
    Smoothed,
)
from localopt.policies.protocol import needs
from localopt.signals import SIGNALS
from tests.laws import LAYERS, Layered, give_gradients

CPU = torch.device("cpu")
NAMES = tuple(str(layer) for layer in range(LAYERS))


def by_digit(name: str) -> str:
    return name.split(".")[0]


def damages(values: list[float], holds_gains: bool = True) -> Any:
    return SimpleNamespace(layers=NAMES, reference_norms=torch.tensor(values), holds_gains=holds_gains)


class Looking:
    """A policy that keeps what it was shown, and trains everything."""

    def __init__(self, *wanted: str) -> None:
        self.needs = wanted
        self.seen: list[LayerSignals] = []

    def __call__(self, signals: LayerSignals) -> Tensor:
        self.seen.append(signals)
        return torch.ones_like(signals.values[self.needs[0]])


def test_every_signal_is_what_it_says() -> None:
    model = Layered(torch.float32)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    policy = Looking(*SIGNALS)
    optimizer = LocalizedOptimizer(
        AdamW(model.parameters(), lr=0.1), model, policy, layers=by_digit, anchor_decay=AnchorDecay(0.0)
    )
    for step in range(3):
        give_gradients(model)
        before = {name: p.detach().double().clone() for name, p in model.named_parameters()}
        momenta = {
            name: optimizer.state[p]["exp_avg"].double().clone() if step else torch.zeros_like(before[name])
            for name, p in model.named_parameters()
        }
        gradients = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
        optimizer.observe(torch.tensor(2.5))
        optimizer.step()
        signals = policy.seen[-1]
        for layer in range(LAYERS):
            names = [name for name in before if by_digit(name) == str(layer)]

            def whole(values: dict[str, Tensor], names: list[str] = names) -> Tensor:
                return torch.cat([values[name].flatten() for name in names])

            g, w, m = whole(gradients), whole(before), whole(momenta)
            away = w - torch.cat([start[name].double().flatten() for name in names])
            expected = {
                "norm": g.norm(),
                "l1": g.abs().sum(),
                "weight": w.norm(),
                "drift": away.norm(),
                "pullback": g @ away,
                "momentum": m.norm(),
                "agreement": g @ m,
                "size": torch.tensor(float(len(g))),
                "loss": torch.tensor(2.5),
            }
            for name, value in expected.items():
                torch.testing.assert_close(signals.values[name][layer].double(), value.double(), rtol=1e-5, atol=1e-6)


def test_only_the_signals_a_policy_needs_are_taken_and_another_is_an_error_that_says_what_to_declare() -> None:
    signals = LayerSignals({"norm": torch.ones(2)})
    with pytest.raises(
        AttributeError, match=r"no signal 'l1' was taken in this step: declare it: needs = \('l1', ...\)"
    ):
        _ = signals.l1
    with pytest.raises(AttributeError, match="signals are norm, l1"):
        _ = signals.norms
    model = Layered(torch.float32)
    policy = Looking("l1")
    optimizer = LocalizedOptimizer(AdamW(model.parameters()), model, policy, layers=by_digit)
    give_gradients(model)
    optimizer.step()
    assert set(policy.seen[-1].values) == {"norm", "l1"}  # norms say whether a step counts


def test_gain_over_damage_trains_where_a_step_wins_more_than_it_costs() -> None:
    policy = GainOverDamage(damages([1.0, 10.0, 1.0, 10.0]))
    policy.bind(NAMES, CPU)
    scales = policy(LayerSignals({"l1": torch.tensor([2.0, 10.0, 0.5, 40.0])}))
    assert scales.tolist() == [1.0, 0.0, 0.0, 1.0]  # gains over damages 2, 1, .5, 4; mean 1.875
    rates = GainOverDamage(damages([1.0, 10.0, 1.0, 10.0]), Proportional())
    rates.bind(NAMES, CPU)
    assert rates(LayerSignals({"l1": torch.tensor([2.0, 10.0, 0.5, 40.0])})).tolist() == [0.5, 0.25, 0.125, 1.0]
    assert policy.binary
    assert not rates.binary


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (GainOverDamage(damages([1.0] * 4, holds_gains=False)), 'trace with score="gains"'),
        (GainOverDamage(damages([1.0, 0.0, math.inf, 1.0])), r"divided by the damages \{'1': 0.0, '2': inf\}"),
        (GainOverDamage(SimpleNamespace(layers=("0",), reference_norms=torch.ones(1), holds_gains=True)), "no layers"),
        (RelativeChange(Smoothed(AboveMean(), beta=0.5)), "takes a rule without state"),
        (Smoothed(RelativeChange(), beta=0.5), "called with the signals norm, l1, weight instead"),
        (RelativeTo(damages([1.0] * 4, holds_gains=False), RelativeChange()), "instead: use it without RelativeTo"),
    ],
)
def test_what_cannot_be_bound_is_refused_when_the_optimizer_is_wrapped(policy: Any, message: str) -> None:
    model = Layered(torch.float32)
    with pytest.raises(ValueError, match=message):
        LocalizedOptimizer(AdamW(model.parameters()), model, policy, layers=by_digit)


def test_relative_change_leaves_out_layers_with_large_weights_and_layers_of_zeros() -> None:
    signals = LayerSignals({"l1": torch.tensor([4.0, 4.0, 4.0]), "weight": torch.tensor([1.0, 8.0, 0.0])})
    assert RelativeChange()(signals).tolist() == [1.0, 0.0, 0.0]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-3, 3, width=32), min_size=3, max_size=3))
def test_agreement_is_a_cosine_cut_off_at_zero(cosines: list[float]) -> None:
    cosine = torch.tensor(cosines).clamp(-1, 1)
    signals = LayerSignals(
        {"norm": torch.full((3,), 2.0), "momentum": torch.full((3,), 3.0), "agreement": 6.0 * cosine}
    )
    torch.testing.assert_close(Agreement(proportional=True)(signals), cosine.clamp(min=0))
    assert torch.equal(Agreement()(signals), (cosine > 0).float())


def test_a_layer_without_momentum_or_gradient_agrees_or_rests() -> None:
    signals = {"norm": torch.tensor([1.0, 0.0]), "momentum": torch.zeros(2), "agreement": torch.zeros(2)}
    assert Agreement()(LayerSignals(signals)).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("make", [lambda p: SGD(p, lr=0.1), lambda p: Adagrad(p, lr=0.1)], ids=["SGD", "Adagrad"])
def test_agreement_with_an_optimizer_without_momentum_is_refused(make: Callable[[Any], torch.optim.Optimizer]) -> None:
    model = Layered(torch.float32)
    with pytest.raises(ValueError, match=r"needs the momentum of the optimizer, and .* keeps none here"):
        LocalizedOptimizer(make(model.parameters()), model, Agreement())


def test_the_rate_falls_on_batches_of_high_loss_and_an_average_batch_is_trained_at_the_users_rate() -> None:
    model, twin = Layered(torch.float32), Layered(torch.float32)
    twin.load_state_dict(model.state_dict())
    optimizer = LocalizedOptimizer(SGD(model.parameters(), lr=0.1), model, LossScaled(), layers=by_digit)
    bare = SGD(twin.parameters(), lr=0.1)
    for loss, scale in ((4.0, 1.0), (4.0, 1.0), (16.0, math.sqrt(8 / 16)), (1.0, 1.0)):
        give_gradients(model, twin)
        optimizer.observe(loss)
        optimizer.step()
        bare.param_groups[0]["lr"] = 0.1 * scale
        bare.step()
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p, q)


def test_a_loss_that_was_never_told_is_an_error_before_anything_is_changed() -> None:
    model = Layered(torch.float32)
    optimizer = LocalizedOptimizer(SGD(model.parameters(), lr=0.1), model, LossScaled(), layers=by_digit)
    before = [p.detach().clone() for p in model.parameters()]
    give_gradients(model)
    with pytest.raises(ValueError, match=r"call optimizer.observe\(loss\) before every step"):
        optimizer.step()
    optimizer.observe(1.0)
    optimizer.step()
    with pytest.raises(ValueError, match="was not told"):  # a loss is that of one step
        optimizer.step()
    assert not torch.equal(before[0], next(model.parameters()))


def test_the_loss_of_a_closure_need_not_be_told() -> None:
    model = Layered(torch.float32)
    optimizer = LocalizedOptimizer(SGD(model.parameters(), lr=0.1), model, LossScaled(), layers=by_digit)

    def closure() -> Tensor:
        give_gradients(model)
        return torch.tensor(3.0)

    assert optimizer.step(closure) == 3.0
    assert optimizer.report().signals["loss"] == (3.0,) * LAYERS


def test_a_loss_that_is_not_a_number_skips_the_step() -> None:
    model = Layered(torch.float32)
    optimizer = LocalizedOptimizer(SGD(model.parameters(), lr=0.1), model, LossScaled(), layers=by_digit)
    before = [p.detach().clone() for p in model.parameters()]
    give_gradients(model)
    optimizer.observe(float("nan"))
    optimizer.step()
    assert optimizer.report().skipped_steps == 1
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert optimizer.policy.state_dict()["losses"].tolist() == [0.0, 0.0]  # type: ignore[attr-defined]


def test_drift_without_a_decay_is_measured_from_where_the_optimizer_was_wrapped() -> None:
    model = Layered(torch.float32)
    policy = Looking("drift")
    optimizer = LocalizedOptimizer(SGD(model.parameters(), lr=0.1), model, policy, layers=by_digit)
    for _ in range(2):
        give_gradients(model)
        optimizer.step()
    assert policy.seen[0].drift.tolist() == [0.0] * LAYERS
    assert min(policy.seen[1].drift.tolist()) > 0


def test_composed_policies_pass_signals_on() -> None:
    model = Layered(torch.float32)
    policy = Pinned(Every(RelativeChange(), n=2), never="0")
    assert needs(policy) == ("norm", "l1", "weight")
    optimizer = LocalizedOptimizer(AdamW(model.parameters(), lr=0.1), model, policy, layers=by_digit)
    give_gradients(model)
    optimizer.step()
    report = optimizer.report()
    ratios = [a / b for a, b in zip(report.signals["l1"], report.signals["weight"], strict=True)]
    mean = sum(ratios[1:]) / 3
    assert list(report.scales) == [0.0, *(float(ratio >= mean) for ratio in ratios[1:])]


def test_everything_is_the_bare_optimizer() -> None:
    model, twin = Layered(torch.float32), Layered(torch.float32)
    twin.load_state_dict(model.state_dict())
    optimizer = LocalizedOptimizer(AdamW(model.parameters(), lr=0.1), model, Everything())
    bare = AdamW(twin.parameters(), lr=0.1)
    for _ in range(2):
        give_gradients(model, twin)
        optimizer.step()
        bare.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
