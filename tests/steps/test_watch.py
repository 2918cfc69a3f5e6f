"""A localized optimizer says the truth about what it trained, and refuses to train the wrong thing."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from localopt import AboveMean, Fixed, LocalizedOptimizer, Smoothed
from tests.laws import assert_same_bits
from tests.runs import backward, every_layer, two_layers
from tests.tiny_models import VOCABULARY, llama


def second_only(norms: Tensor) -> Tensor:
    return (torch.arange(len(norms)) == 1).float()


# -- what was trained -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [every_layer, Fixed({"0": 1.0, "2": 1.0})], ids=["by norms", "Fixed"])
def test_a_step_without_gradients_reports_that_nothing_was_updated(policy: Any) -> None:
    model = two_layers()
    optimizer = LocalizedOptimizer(AdamW(model.parameters()), model, policy)
    with pytest.warns(UserWarning, match="no parameter has a gradient"):
        optimizer.step()
    report = optimizer.report()
    assert (report.updated, report.share_updated, report.without_gradient) == ((), 0.0, ("0", "2"))
    assert str(report).startswith("0 of 2 layers updated (0% of parameters)")


def test_the_share_counts_only_what_had_a_gradient_when_it_was_stepped() -> None:
    model = two_layers()
    model[0].weight.requires_grad_(False)
    for parameter in model[2].parameters():
        parameter.requires_grad_(False)
    optimizer = LocalizedOptimizer(AdamW(model.parameters()), model, Fixed({"0": 1.0, "2": 1.0}))
    backward(model)
    optimizer.step()
    optimizer.zero_grad()
    report = optimizer.report()
    assert report.updated == ("0",)
    assert report.share_updated == 4 / 25  # the bias of the first layer
    assert "no gradient" in str(report)


def learn(model: Any, optimizer: LocalizedOptimizer) -> None:
    tokens = torch.randint(VOCABULARY, (2, 8))
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()


def test_an_optimizer_made_before_the_adapters_is_refused() -> None:
    peft = pytest.importorskip("peft")
    model = llama()
    optimizer = LocalizedOptimizer(AdamW(model.parameters()), model)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(RuntimeError, match=r"gradient any more, while 4 others .*lora_A.*adapters were added"):
        learn(adapted, optimizer)


def test_a_head_made_after_the_optimizer_is_named_once() -> None:
    model = llama()
    optimizer = LocalizedOptimizer(AdamW(model.parameters()), model, AboveMean())
    model.resize_token_embeddings(VOCABULARY + 3)
    with pytest.warns(UserWarning, match=r"1 parameters .*\(lm_head\.weight\)") as said:
        learn(model, optimizer)
        learn(model, optimizer)
    assert [warning.filename for warning in said] == [__file__]
    assert optimizer.report().without_gradient == ("lm_head",)  # the old head, which the model no longer has


def test_a_model_resized_after_its_optimizer_cannot_decay_toward_what_it_was() -> None:
    model = llama()
    optimizer = LocalizedOptimizer(AdamW(model.parameters()), model)
    model.resize_token_embeddings(VOCABULARY + 3)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"'model\.embed_tokens\.weight' had shape .* Wrap the optimizer after"):
        learn(model, optimizer)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_two_localized_optimizers_on_one_model_say_nothing_of_each_other() -> None:
    model = two_layers()
    both = [LocalizedOptimizer(SGD(model[i].parameters(), lr=0.1), model) for i in (0, 2)]
    backward(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for optimizer in both:
            optimizer.step()
    assert [optimizer.report().names for optimizer in both] == [("0",), ("2",)]


# -- what stands where ------------------------------------------------------------------------------------------------


def reverse(optimizer: LocalizedOptimizer) -> None:
    optimizer.param_groups.reverse()


def swap_within(optimizer: LocalizedOptimizer) -> None:
    optimizer.param_groups[0]["params"].reverse()


@pytest.mark.parametrize("change", [reverse, swap_within])
def test_reordered_groups_are_refused_before_a_frozen_layer_moves(change: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    groups = [{"params": list(layer.parameters())} for layer in model]
    optimizer = LocalizedOptimizer(SGD(groups, lr=0.1), model, second_only)
    backward(model)
    optimizer.step()
    before = copy.deepcopy(model)
    change(optimizer)
    with pytest.raises(RuntimeError, match="stand elsewhere in the parameter groups"):
        optimizer.step()
    assert_same_bits(model, before, "reordered")


def test_groups_reordered_before_the_first_step_are_refused_too() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    groups = [{"params": list(layer.parameters())} for layer in model]
    optimizer = LocalizedOptimizer(SGD(groups, lr=0.1), model, second_only)
    optimizer.param_groups.reverse()
    backward(model)
    with pytest.raises(RuntimeError, match="stand elsewhere"):
        optimizer.step()


def test_groups_taken_out_and_put_back_are_refused_with_a_word_of_what_to_do() -> None:
    model = two_layers()
    groups = [{"params": list(model[i].parameters())} for i in (0, 2)]
    optimizer = LocalizedOptimizer(SGD(groups, lr=0.1), model)
    taken = optimizer.param_groups.pop()
    with pytest.raises(RuntimeError, match="wrap the optimizer again"):
        optimizer.add_param_group(taken)
    backward(model)
    with pytest.raises(RuntimeError, match=r"held \[2, 2\] .* hold \[2\] now"):
        optimizer.step()


def test_a_policy_with_state_in_two_optimizers_is_refused_when_the_first_goes_on() -> None:
    models, policy = [two_layers(), two_layers()], Smoothed(AboveMean(), 0.9)
    first = LocalizedOptimizer(SGD(models[0].parameters(), lr=0.1), models[0], policy)
    backward(models[0])
    first.step()
    second = LocalizedOptimizer(SGD(models[1].parameters(), lr=0.1), models[1], policy)
    with pytest.raises(RuntimeError, match=r"given to another LocalizedOptimizer too.*copy\.deepcopy"):
        first.step()
    backward(models[1])
    second.step()
    del second
    first.step()  # wrapped again, and the other one dropped: as a notebook does


def test_a_policy_without_state_may_serve_any_number_of_optimizers() -> None:
    policy = AboveMean()
    for model in (two_layers(), two_layers()):
        optimizer = LocalizedOptimizer(SGD(model.parameters(), lr=0.1), model, policy)
        backward(model)
        optimizer.step()
        assert len(optimizer.report().updated) == 1  # one of two layers is below their mean


# -- copies, meta, inference ------------------------------------------------------------------------------------------


def test_a_copy_of_model_and_optimizer_knows_the_copied_model() -> None:
    model = two_layers()
    optimizer = LocalizedOptimizer(SGD(model[0].parameters(), lr=0.1), model, every_layer)
    twin, copied = copy.deepcopy((model, optimizer))
    copied.add_param_group({"params": list(twin[2].parameters())})
    backward(twin)
    copied.step()
    assert copied.report().updated == ("0", "2")
    assert not torch.equal(twin[2].weight, model[2].weight)


def test_a_constant_policy_on_parameters_without_data_trains_once_they_have_some() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = LocalizedOptimizer(SGD(model.parameters(), lr=0.1), model, Fixed({"0": 0.0, "2": 1.0}))
    model.to_empty(device="cpu")
    model.load_state_dict(two_layers().state_dict())
    for group in optimizer.param_groups:  # as accelerate does
        group["params"][:] = list(model.parameters())
    backward(model)
    optimizer.step()
    assert optimizer.report().updated == ("2",)
    assert torch.equal(model[0].weight, two_layers()[0].weight)


def test_parameters_without_data_decay_toward_what_they_hold_at_the_first_step() -> None:
    def train(model: nn.Module, optimizer: LocalizedOptimizer) -> None:
        for step in range(12):
            optimizer.zero_grad()
            backward(model, step)
            optimizer.step()
            back.append(sum(optimizer.report().anchor_shares or ()))

    back: list[float] = []
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = LocalizedOptimizer(AdamW(model.parameters(), lr=0.3), model)
    model.to_empty(device="cpu")
    twin = two_layers()
    model.load_state_dict(twin.state_dict())
    for group in optimizer.param_groups:  # as accelerate does
        group["params"][:] = list(model.parameters())
    expected = LocalizedOptimizer(AdamW(twin.parameters(), lr=0.3), twin)
    train(model, optimizer)
    train(twin, expected)
    assert any(back)
    torch.testing.assert_close(optimizer.state_dict()["state"], expected.state_dict()["state"], rtol=0, atol=0)
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), rtol=0, atol=0)
    again = LocalizedOptimizer(AdamW(twin.parameters(), lr=0.3), twin)
    again.load_state_dict(optimizer.state_dict())
    torch.testing.assert_close(again.state_dict()["state"], expected.state_dict()["state"], rtol=0, atol=0)


def test_a_wrapper_made_in_inference_mode_trains() -> None:
    model = two_layers()
    with torch.inference_mode():
        optimizer = LocalizedOptimizer(SGD(model.parameters(), lr=0.1), model, Smoothed(AboveMean(), 0.9))
    for step in range(2):
        backward(model, step)
        optimizer.step()
    assert optimizer.report().updated


def test_hooks_before_loading_see_the_checkpoint_first() -> None:
    model = two_layers()
    optimizer = LocalizedOptimizer(SGD(model.parameters(), lr=0.1), model, Smoothed(AboveMean(), 0.9))
    saved = {"wrapped": optimizer.state_dict()}
    optimizer.register_load_state_dict_pre_hook(lambda _, state: state["wrapped"])
    optimizer.load_state_dict(saved)


# -- clipping by two sides --------------------------------------------------------------------------------------------


def run(clip: float | None, max_grad_norm: float | None, steps: int = 12) -> list[str]:
    model = two_layers()
    optimizer = LocalizedOptimizer(SGD(model.parameters(), lr=1e-3), model, max_grad_norm=max_grad_norm)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(steps):
            optimizer.zero_grad()
            backward(model, step)
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
    assert all(warning.filename == __file__ for warning in caught)
    return [str(warning.message) for warning in caught]


def test_gradients_that_come_clipped_to_an_optimizer_that_clips_are_said_once() -> None:
    messages = run(clip=0.01, max_grad_norm=0.5)
    assert len(messages) == 1
    assert "the same norm, 0.01: they were clipped before" in messages[0]
    assert "to 0.5 over the layers it updates" in messages[0]


def test_clipping_by_one_side_says_nothing() -> None:
    assert run(clip=0.01, max_grad_norm=None) == []
    assert run(clip=None, max_grad_norm=0.5) == []
    assert run(clip=None, max_grad_norm=1e-3) == []


@pytest.mark.filterwarnings("error")
def test_steps_that_are_no_numbers_tell_nothing_of_clipping() -> None:
    model = two_layers()
    optimizer = LocalizedOptimizer(SGD(model.parameters(), lr=1e-3), model, max_grad_norm=0.5)
    for step in range(10):
        optimizer.zero_grad()
        backward(model, step)
        first = next(model.parameters())
        assert first.grad is not None
        first.grad[0] = math.nan if step < 9 else 1.0
        optimizer.step()
    assert optimizer.report().skipped_steps == 9


def test_the_same_batch_again_and_again_is_no_clipping() -> None:
    model = two_layers()
    optimizer = LocalizedOptimizer(SGD(model.parameters(), lr=1e-9), model, max_grad_norm=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(12):
            optimizer.zero_grad()
            backward(model)
            optimizer.step()
