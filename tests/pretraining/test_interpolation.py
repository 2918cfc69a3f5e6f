"""Between the start of a training and its end: both ends to the bit, and as far as a budget allows."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from localopt import interpolate, partition, share_within
from tests.laws import assert_same_bits
from tests.tiny_lm import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float16])


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def trained(dtype: torch.dtype = torch.float32, tied: bool = True) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model some way from its start, and the start; its first block frozen."""
    model = tiny_model(TOKENIZER, tied=tied).to(dtype)
    start = copied(model)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".layers.0." in name:
            parameter.requires_grad_(False)
        else:
            parameter.data += (0.1 * torch.randn(parameter.shape, generator=generator)).to(dtype)
    return model, start


def same(model: nn.Module, expected: dict[str, Tensor]) -> None:
    found = model.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
        assert torch.equal(found[name].signbit(), tensor.signbit()), name


# -- interpolate -------------------------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("tied", [True, False])
def test_share_0_is_the_start_and_share_1_the_end_bit_for_bit(dtype: torch.dtype, tied: bool) -> None:
    model, start = trained(dtype, tied)
    end = copied(model)
    interpolate(model, start, 1)
    same(model, end)
    interpolate(model, start, 0)
    same(model, start)


@DTYPES
@given(share=st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_a_share_is_the_weighted_mean_rounded_once(dtype: torch.dtype, share: float) -> None:
    model, start = trained(dtype)
    end = copied(model)
    interpolate(model, start, share)
    epsilon = torch.finfo(dtype).eps
    for name, found in model.state_dict().items():
        exact = (1 - share) * start[name].double() + share * end[name].double()
        slack = epsilon * exact.abs() + 1e-6 * (start[name].double().abs() + end[name].double().abs())
        assert bool(((found.double() - exact).abs() <= slack + torch.finfo(dtype).tiny).all()), name


def test_frozen_weights_and_their_flags_stay() -> None:
    model, start = trained()
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    interpolate(model, start, 0.3)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    for name, parameter in model.named_parameters():
        if not flags[name]:
            assert torch.equal(parameter, start[name])


def test_tied_weights_stay_tied() -> None:
    model, start = trained()
    interpolate(model, start, 0.5)
    tied = model.get_input_embeddings().weight, model.get_output_embeddings().weight  # type: ignore[operator]
    assert tied[0] is tied[1]
    assert not torch.equal(tied[0], start["lm_head.weight"])


def test_a_copy_of_what_is_trained_is_start_enough() -> None:
    model, whole = trained()
    other, _ = trained()
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    interpolate(model, whole, 0.4)
    interpolate(other, {name: whole[name] for name in names}, 0.4)
    assert_same_bits(model, other, "weights")


def test_each_layer_may_have_a_share_of_its_own() -> None:
    model, start = trained()
    end = copied(model)
    layer_of = partition(name for name, _ in model.named_parameters())
    moved = dict.fromkeys(layer for layer in layer_of.values() if ".layers.0." not in layer)
    shares = {layer: number / (len(moved) - 1) for number, layer in enumerate(moved)}
    interpolate(model, start, shares)
    for name, parameter in model.named_parameters():
        share = shares.get(layer_of[name], 0.0)
        torch.testing.assert_close(parameter.detach(), torch.lerp(start[name], end[name], share))


def test_buffers_in_the_start_move_and_counters_do_not() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    start = copied(model)
    model(torch.randn(8, 3))
    mean = model[1].running_mean.clone()  # type: ignore[union-attr, operator]
    interpolate(model, start, 0.5)
    torch.testing.assert_close(model[1].running_mean, 0.5 * mean)
    assert model[1].num_batches_tracked == 1


Change = Callable[[dict[str, Tensor]], object]
EMBEDDING = "model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda start: start.update(other=torch.ones(1)), "does not have: other: give the same model's"),
        (lambda start: start.update({EMBEDDING: torch.ones(2)}), r"embed_tokens.weight has shape \(2,\), the model"),
        (
            lambda start: start.pop("model.norm.weight"),
            r"lacks weights that may have been trained: model\.norm\.weight",
        ),
        (lambda start: start.update({"lm_head.weight": start[EMBEDDING] + 1}), "are one weight of the model, but not"),
    ],
)
def test_a_start_of_another_model_is_refused_and_nothing_moves(change: Change, message: str) -> None:
    model, start = trained()
    end = copied(model)
    change(start)
    with pytest.raises(ValueError, match=message):
        interpolate(model, start, 0.5)
    with pytest.raises(ValueError, match=message):
        share_within(model, start, lambda _: 0.0, 0.1)
    same(model, end)


def test_a_start_that_is_no_copy_is_refused() -> None:
    model, _ = trained()
    with pytest.raises(ValueError, match="is the model's own tensor, which training changes too: keep a copy"):
        interpolate(model, model.state_dict(), 0.5)


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan, {"model.norm": 2.0}])
def test_a_share_outside_the_way_is_refused(share: float) -> None:
    model, start = trained()
    end = copied(model)
    with pytest.raises(ValueError, match=r"of the way must be in \[0, 1\]"):
        interpolate(model, start, share)
    same(model, end)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"model.norm": 0.5}, "moved and have none: model.embed_tokens, model.layers.1.attention"),
        ({"lm_head": 0.5}, "shares of no layer of the model: lm_head"),
    ],
)
def test_shares_must_be_those_of_the_layers_that_moved(shares: dict[str, float], message: str) -> None:
    model, start = trained()
    with pytest.raises(ValueError, match=message):
        interpolate(model, start, shares)


# -- share_within ------------------------------------------------------------------------------------------------------


class Line(nn.Module):
    """One weight, from 0 to 1: the share itself."""

    def __init__(self) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.ones(()))


@given(
    steps=st.lists(st.floats(-1, 1), min_size=2, max_size=9),
    rise=st.floats(0.01, 2),
    resolution=st.sampled_from([1.0, 1 / 3, 1 / 64, 1e-4]),
)
def test_the_share_found_is_within_the_budget_whatever_the_path(
    steps: list[float], rise: float, resolution: float
) -> None:
    def curve(share: float) -> float:
        place = share * (len(steps) - 1)
        low = min(int(place), len(steps) - 2)
        return steps[low] + (place - low) * (steps[low + 1] - steps[low])

    model = Line()
    found = share_within(model, {"at": torch.zeros(())}, lambda m: curve(m.at.item()), rise, resolution=resolution)
    scores = dict(found.path)
    assert found.score == scores[found.share] == curve(model.at.item())
    assert found.score - found.start_score <= rise
    assert list(scores) == sorted(scores)
    assert (found.share == 1) == (scores[1.0] - scores[0.0] <= rise)
    if found.share < 1:  # the next share that was tried is beyond the budget, and not far
        beyond = min(share for share in scores if share > found.share)
        assert scores[beyond] - scores[0.0] > rise
        assert beyond - found.share <= resolution


@given(edge=st.floats(0, 0.999), power=st.sampled_from([1, 2, 5]))
def test_on_a_path_that_only_rises_it_is_the_largest_share(edge: float, power: int) -> None:
    model = Line()
    rise = edge**power
    if rise == 0:
        return
    found = share_within(model, {"at": torch.zeros(())}, lambda m: m.at.item() ** power, rise, resolution=2**-20)
    assert found.share == pytest.approx(edge, abs=2**-19)


def test_an_end_within_the_budget_is_kept_after_two_evaluations() -> None:
    model, start = trained()
    end = copied(model)
    found = share_within(model, start, lambda _: 1.0, 0.01)
    assert found.share == 1
    assert found.path == ((0.0, 1.0), (1.0, 1.0))
    same(model, end)


def test_a_budget_that_no_share_holds_ends_at_the_start_bit_for_bit() -> None:
    model, start = trained(torch.bfloat16)
    found = share_within(
        model, start, lambda m: float(not torch.equal(m.state_dict()[EMBEDDING], start[EMBEDDING])), 0.1
    )
    assert found.share == 0
    assert [score for _, score in found.path] == [0.0] + [1.0] * 7
    same(model, start)


def test_the_end_can_be_had_again_bit_for_bit() -> None:
    model, start = trained(torch.bfloat16)
    end = copied(model)
    distance = lambda m: sum((w.float() - start[n].float()).norm().item() for n, w in m.state_dict().items())  # noqa: E731
    found = share_within(model, start, distance, rise=1.0)
    assert 0 < found.share < 1
    interpolate(model, found.end, 0)
    same(model, end)


def test_a_diverged_end_is_beyond_any_budget() -> None:
    model = Line()
    found = share_within(model, {"at": torch.zeros(())}, lambda m: math.nan if m.at.item() > 0.6 else m.at.item(), 0.5)
    assert found.share == 0.5


def test_a_score_that_fails_leaves_the_model_at_the_end() -> None:
    model, start = trained()
    end = copied(model)

    def score(_: nn.Module) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        share_within(model, start, score, 0.1)
    same(model, end)


@pytest.mark.parametrize("rise", [0.0, -0.1, math.nan, math.inf])
def test_a_budget_that_cannot_be_is_refused(rise: float) -> None:
    model, start = trained()
    end = copied(model)
    with pytest.raises(ValueError, match="must be a number of nats a token above 0"):
        share_within(model, start, lambda _: 0.0, rise)
    same(model, end)


def test_a_start_without_a_finite_score_is_refused() -> None:
    model, start = trained()
    end = copied(model)
    with pytest.raises(ValueError, match="the score of the start is nan"):
        share_within(model, start, lambda _: math.nan, 0.1)
    same(model, end)
