"""What a localized step does beside the laws: clipping, steps that are not numbers, reports, wrong arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import ASGD, LBFGS, SGD, Adam, AdamW, Rprop
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from localopt import AboveMean, AnchorDecay, Everything, Fixed, LocalizedOptimizer, Proportional
from localopt.policies import Pinned, Smoothed
from tests.laws import LAYERS, Layered, Scripted, assert_same_bits, give_gradients

MAKERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW fused": lambda parameters: AdamW(parameters, lr=0.1, fused=True),
    "AdamW foreach": lambda parameters: AdamW(parameters, lr=0.1, foreach=True),
    "SGD": lambda parameters: SGD(parameters, lr=0.1, momentum=0.9),
}
each_maker = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def model_and_twin() -> tuple[Layered, Layered]:
    model, twin = Layered(torch.float32), Layered(torch.float32)
    twin.load_state_dict(model.state_dict())
    return model, twin


# -- which layers -----------------------------------------------------------------------------------------------------


def test_unasked_every_layer_is_updated_and_decays_selectively_toward_its_start() -> None:
    model, twin = model_and_twin()
    optimizer = LocalizedOptimizer(SGD(model.parameters(), lr=0.1, momentum=0.9), model, layers="block")
    inner = SGD(twin.parameters(), lr=0.1, momentum=0.9)
    decay = AnchorDecay(1.0, rule="selective")
    asked = LocalizedOptimizer(inner, twin, Everything(), layers="block", anchor_decay=decay)
    shares = []
    for _ in range(6):
        give_gradients(model, twin)
        optimizer.step()
        asked.step()
        shares.append(optimizer.report().anchor_shares)
        assert len(optimizer.report().updated) == LAYERS
    assert_same_bits(model, twin, "as asked for")
    assert any(share > 0 for step in shares for share in step or ())
    assert repr(optimizer) == repr(asked)


def test_a_policy_that_is_given_comes_without_decay_and_a_decay_without_a_policy_is_of_everything() -> None:
    model = Layered(torch.float32)
    chosen = LocalizedOptimizer(AdamW(model.parameters()), model, AboveMean())
    assert chosen.anchor_decay == AnchorDecay(0.0)
    decaying = LocalizedOptimizer(AdamW(model.parameters()), model, anchor_decay=25)
    assert (decaying.policy, decaying.anchor_decay) == (Everything(), AnchorDecay(25))
    bare = LocalizedOptimizer(AdamW(model.parameters()), model, anchor_decay=0)
    give_gradients(model)
    bare.step()
    assert bare.report().anchor_shares is None


def test_above_mean_updates_the_layers_with_a_norm_of_at_least_the_mean() -> None:
    model = Layered(torch.float32)
    optimizer = LocalizedOptimizer(SGD(model.parameters(), lr=0.1), model, AboveMean(), layers="block")
    for layer in range(LAYERS):
        for parameter in model.layer(layer):
            parameter.grad = torch.full_like(parameter, 10.0 if layer == 2 else 0.1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer.step()
    assert optimizer.report().updated == ("2",)
    changed = {name.split(".")[0] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"2"}


@pytest.mark.filterwarnings("ignore:.*freezes every layer")
@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=LAYERS, max_size=LAYERS), st.integers(0, 2**16))
def test_a_frozen_layer_does_not_change_by_one_bit(scales: list[float], seed: int) -> None:
    torch.manual_seed(seed)
    model, twin = model_and_twin()
    inner = AdamW(model.parameters(), lr=0.1, weight_decay=0.1, fused=True)
    optimizer = LocalizedOptimizer(inner, model, Scripted([[1.0] * LAYERS, scales], True), layers="block")
    give_gradients(model)
    optimizer.step()
    twin.load_state_dict(model.state_dict())
    give_gradients(model)
    optimizer.step()
    for layer, scale in enumerate(scales):
        same = all(torch.equal(a, b) for a, b in zip(model.layer(layer), twin.layer(layer), strict=True))
        assert same == (scale == 0.0)


def test_a_function_of_the_norms_is_a_policy() -> None:
    model = Layered(torch.float32)
    seen: list[Tensor] = []

    def remember(norms: Tensor) -> Tensor:
        seen.append(norms)
        return torch.full_like(norms, 0.5)

    optimizer = LocalizedOptimizer(AdamW(model.parameters()), model, remember, layers="block")
    give_gradients(model)
    expected = [math.sqrt(sum(float(p.grad.square().sum()) for p in model.layer(i))) for i in range(LAYERS)]
    optimizer.step()
    torch.testing.assert_close(seen[-1], torch.tensor(expected))
    assert optimizer.report().scales == (0.5,) * LAYERS


def test_names_given_to_the_optimizer_make_the_model_unnecessary() -> None:
    model, twin = model_and_twin()
    named = LocalizedOptimizer(AdamW(model.named_parameters(), lr=0.1), layers="block")
    given_model = LocalizedOptimizer(AdamW(twin.parameters(), lr=0.1), twin, layers="block")
    give_gradients(model, twin)
    named.step()
    given_model.step()
    assert named.report() == given_model.report()
    assert_same_bits(model, twin, "named")


def test_dropped_layers_never_get_a_state() -> None:
    model = Layered(torch.float32)
    policy = Fixed({"0": 1.0, "1": 0.0, "2": 1.0, "3": 0.0})
    inner = AdamW(model.parameters())
    give_gradients(model)
    inner.step()
    optimizer = LocalizedOptimizer(inner, model, policy, layers="block", frozen_state="drop")
    give_gradients(model)
    optimizer.step()
    assert {layer for layer in range(LAYERS) for p in model.layer(layer) if p in optimizer.state} == {0, 2}


# -- clipping ---------------------------------------------------------------------------------------------------------


@each_maker
@pytest.mark.parametrize("max_norm", [0.05, 1.0, 1e6])
def test_clipping_equals_clip_grad_norm_over_the_layers_that_are_updated(make: Any, max_norm: float) -> None:
    model, twin = model_and_twin()
    scales = [1.0, 0.0, 1.0, 1.0]
    optimizer = LocalizedOptimizer(
        make(model.parameters()), model, Scripted([scales] * 4, True), layers="block", max_grad_norm=max_norm
    )
    bare = make(twin.parameters())
    for _ in range(4):
        give_gradients(model, twin)
        for parameter in twin.layer(1):
            parameter.grad = None
        total = clip_grad_norm_(twin.parameters(), max_norm)
        bare.step()
        optimizer.step()
        assert optimizer.report().total_norm == pytest.approx(total.item(), rel=1e-5)
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@each_maker
def test_an_infinite_maximum_asks_for_norms_and_clips_nothing(make: Any) -> None:
    model, twin = model_and_twin()
    policy = Fixed({str(layer): 1.0 for layer in range(LAYERS)})
    optimizer = LocalizedOptimizer(make(model.parameters()), model, policy, layers="block", max_grad_norm=math.inf)
    bare = make(twin.parameters())
    give_gradients(model, twin)
    optimizer.step()
    bare.step()
    assert_same_bits(model, twin, "no clipping")
    assert optimizer.report().norms is not None


# -- gradients that are not numbers, or nothing -----------------------------------------------------------------------


@each_maker
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_with_a_norm_that_is_not_finite_changes_nothing_and_is_counted(make: Any, value: float) -> None:
    model, twin = model_and_twin()
    policy = Smoothed(AboveMean(), 0.5)
    optimizer = LocalizedOptimizer(make(model.parameters()), model, policy, layers="block")
    give_gradients(model)
    optimizer.step()
    twin.load_state_dict(model.state_dict())
    state = {key: tensor.clone() for key, tensor in policy.state_dict().items()}
    give_gradients(model)
    model.layer(1)[0].grad[0, 0] = value  # type: ignore[index]
    optimizer.step()
    assert_same_bits(model, twin, "skipped")
    torch.testing.assert_close(policy.state_dict(), state, rtol=0, atol=0)
    report = optimizer.report()
    assert (report.skipped_steps, report.share_updated) == (1, 0.0)


def test_nonfinite_raise_names_the_layer_and_changes_nothing() -> None:
    model, twin = model_and_twin()
    optimizer = LocalizedOptimizer(AdamW(model.parameters()), model, layers="block", nonfinite="raise")
    give_gradients(model)
    optimizer.step()
    before = optimizer.report()
    twin.load_state_dict(model.state_dict())
    give_gradients(model)
    model.layer(3)[0].grad[0, 0] = math.nan  # type: ignore[index]
    with pytest.raises(FloatingPointError, match=r"gradient norm of 3 \(nan\)"):
        optimizer.step()
    assert_same_bits(model, twin, "raised")
    assert optimizer.report() == before


def test_a_constant_policy_takes_no_norms_unless_they_are_asked_for() -> None:
    model = Layered(torch.float32)
    policy = Fixed({str(layer): 1.0 for layer in range(LAYERS)})
    optimizer = LocalizedOptimizer(AdamW(model.parameters()), model, policy, layers="block")
    give_gradients(model)
    optimizer.step()
    assert optimizer.report().norms is None
    assert optimizer.report().total_norm is None


def test_zero_gradients_are_a_step_of_the_bare_optimizer() -> None:
    model, twin = model_and_twin()
    policy = Smoothed(AboveMean(), 0.5)
    optimizer = LocalizedOptimizer(AdamW(model.parameters(), lr=0.1), model, policy, layers="block")
    bare = AdamW(twin.parameters(), lr=0.1)
    state = {key: tensor.clone() for key, tensor in policy.state_dict().items()}
    give_gradients(model, twin, scale=0.0)
    optimizer.step()
    bare.step()
    assert_same_bits(model, twin, "zero gradients")
    torch.testing.assert_close(policy.state_dict(), state, rtol=0, atol=0)


# -- reports ----------------------------------------------------------------------------------------------------------


def test_a_report_before_the_first_step_is_an_error() -> None:
    model = Layered(torch.float32)
    with pytest.raises(RuntimeError, match="call step"):
        LocalizedOptimizer(AdamW(model.parameters()), model).report()


def test_a_report_says_what_share_of_the_parameters_was_updated() -> None:
    model = Layered(torch.float32)
    optimizer = LocalizedOptimizer(
        AdamW(model.parameters()), model, Scripted([[0.0, 0.0, 0.0, 1.0]], True), layers="block"
    )
    give_gradients(model)
    optimizer.step()
    report = optimizer.report()
    sizes = [sum(p.numel() for p in model.layer(layer)) for layer in range(LAYERS)]
    assert report.share_updated == pytest.approx(sizes[3] / sum(sizes))
    assert report.total_norm == pytest.approx(report.norms[3])  # type: ignore[index]
    assert "1 of 4 layers updated" in str(report)


def test_freezing_everything_is_said_once() -> None:
    model = Layered(torch.float32)
    optimizer = LocalizedOptimizer(AdamW(model.parameters()), model, Scripted([[0.0] * LAYERS] * 3, True))
    with pytest.warns(UserWarning, match="freezes every layer") as caught:
        for _ in range(3):
            give_gradients(model)
            optimizer.step()
    assert len(caught) == 1
    assert caught[0].filename == __file__


# -- what cannot work -------------------------------------------------------------------------------------------------


def assert_refused(match: str, *arguments: Any, error: type[Exception] = ValueError, **options: Any) -> None:
    with pytest.raises(error, match=match):
        LocalizedOptimizer(*arguments, **options)


def test_optimizers_that_cannot_be_localized_are_refused_with_what_to_use_instead() -> None:
    model = Layered(torch.float32)
    assert_refused("use AdamW or SGD", LBFGS(model.parameters()), model)
    assert_refused("differentiable", Adam(model.parameters(), differentiable=True), model)
    assert_refused("does not use lr", Rprop(model.parameters()), model, Proportional())
    assert_refused("does not use lr", ASGD(model.parameters()), model, Proportional())
    assert_refused("localized already", LocalizedOptimizer(AdamW(model.parameters()), model), model)
    assert_refused("wraps a torch optimizer", model, error=TypeError)


def test_arguments_that_make_no_sense_are_refused() -> None:
    model = Layered(torch.float32)
    inner = AdamW(model.parameters())
    assert_refused("max_grad_norm must be", inner, model, max_grad_norm=0.0)
    assert_refused("max_grad_norm must be", inner, model, max_grad_norm="1")
    assert_refused("frozen_state must be one of 'hold', 'track', 'carry', 'drop'", inner, model, frozen_state="keep")
    assert_refused("nonfinite must be one of", inner, model, nonfinite="ignore")
    assert_refused("decides at every step", inner, model, AboveMean(), frozen_state="drop")
    assert_refused("policy must be callable", inner, model, 3, error=TypeError)
    assert_refused(r"give an instance of it, AboveMean\(\)", inner, model, AboveMean, error=TypeError)
    assert_refused("policy is given as policy=", inner, AboveMean(), error=TypeError)
    assert_refused("carry no parameter names", inner)
    assert_refused("sublayer", inner, model, layers="sublayers")


def test_parameters_of_another_model_are_refused() -> None:
    model, other = model_and_twin()
    assert_refused("8 of the optimizer's 8 parameters are not in Layered", AdamW(model.parameters()), other)


def test_scales_that_are_no_scales_are_refused_before_a_parameter_changes() -> None:
    for scales, message in [
        ([math.nan] + [1.0] * 3, "not finite numbers >= 0"),
        ([-1.0] + [1.0] * 3, "not finite numbers >= 0"),
        ([1.0] * 3, r"shape \(3,\)"),
    ]:
        model, twin = model_and_twin()
        optimizer = LocalizedOptimizer(AdamW(model.parameters()), model, Scripted([scales], False), layers="block")
        give_gradients(model)
        with pytest.raises(ValueError, match=message):
            optimizer.step()
        assert_same_bits(model, twin, message)


def test_on_the_fused_route_a_scale_that_is_no_number_does_not_reach_the_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("localopt.steps.fused._is_plain", lambda parameter: True)
    model, twin = model_and_twin()
    policy = Scripted([[math.nan, 1.0, 1.0, -1.0]], False)
    optimizer = LocalizedOptimizer(AdamW(model.parameters(), fused=True), model, policy, layers="block")
    give_gradients(model)
    optimizer.step()
    changed = [not torch.equal(model.layer(i)[0], twin.layer(i)[0]) for i in range(LAYERS)]
    assert changed == [False, True, True, False]
    with pytest.raises(ValueError, match="not finite numbers >= 0"):
        optimizer.report()


def test_an_optimizer_that_updates_during_the_backward_pass_is_refused() -> None:
    dummy = LayerWiseDummyOptimizer(optimizer_dict={})
    assert_refused("during the backward pass", dummy, nn.Linear(2, 2))


def test_a_model_rebuilt_after_the_optimizer_was_made_is_noticed_at_the_first_step() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    optimizer = LocalizedOptimizer(AdamW(model.parameters()), model)
    for i in range(2):
        model[i] = nn.Linear(4, 4)
    model(torch.ones(1, 4)).sum().backward()
    with pytest.raises(RuntimeError, match=r"none of the optimizer's 4 parameters has a gradient.*was rebuilt"):
        optimizer.step()


def test_a_step_without_any_gradient_is_said_once() -> None:
    model = nn.Linear(4, 1)
    optimizer = LocalizedOptimizer(AdamW(model.parameters()), model)
    with pytest.warns(UserWarning, match="no parameter has a gradient") as said:
        optimizer.step()
        optimizer.step()
    assert [warning.filename for warning in said] == [__file__]


def test_pinned_layers_keep_their_scale() -> None:
    model = Layered(torch.float32)
    policy = Pinned(AboveMean(), always=["0"], never=["3"])
    optimizer = LocalizedOptimizer(AdamW(model.parameters()), model, policy, layers="block")
    give_gradients(model)
    optimizer.step()
    assert (optimizer.report().scales[0], optimizer.report().scales[3]) == (1.0, 0.0)
