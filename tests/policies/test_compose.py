from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from localopt.policies import AboveMean, Every, Fixed, HighestSNR, Pinned, Proportional, RelativeTo, Smoothed, TopK
from localopt.policies.protocol import bind, inspect, is_binary, is_constant

CPU = torch.device("cpu")
NAMES = ("a", "b", "c")

rows_of_norms = st.lists(st.lists(st.floats(2**-10, 2**10, width=32), min_size=3, max_size=3), min_size=1, max_size=12)


class Seen:
    """A policy that keeps the norms it was shown and answers with them."""

    def __init__(self) -> None:
        self.norms: list[list[float]] = []

    def __call__(self, norms: Tensor) -> Tensor:
        self.norms.append(norms.tolist())
        return norms.clone()


def trace(**reference_norms: float) -> SimpleNamespace:
    return SimpleNamespace(layers=tuple(reference_norms), reference_norms=torch.tensor(list(reference_norms.values())))


def run(policy: Smoothed | Every | Pinned | RelativeTo, rows: Sequence[Sequence[float]]) -> list[list[float]]:
    policy.bind(NAMES, CPU)
    return [policy(torch.tensor(row)).tolist() for row in rows]


@given(rows_of_norms, st.floats(0, 0.99))
def test_smoothed_shows_the_bias_corrected_average(rows: list[list[float]], beta: float) -> None:
    shown = run(Smoothed(Seen(), beta=beta), rows)
    for step in range(1, len(rows) + 1):
        weights = [(1 - beta) * beta ** (step - 1 - past) for past in range(step)]
        for layer in range(3):
            total = sum(weight * row[layer] for weight, row in zip(weights, rows[:step], strict=True))
            assert shown[step - 1][layer] == pytest.approx(total / (1 - beta**step), rel=1e-4)


@given(rows_of_norms)
def test_smoothing_with_beta_zero_changes_nothing(rows: list[list[float]]) -> None:
    assert run(Smoothed(Seen(), beta=0.0), rows) == rows


@given(st.floats(2**-10, 2**10, width=32), st.floats(0, 0.999), st.integers(1, 50))
def test_the_average_of_a_constant_norm_is_that_norm_from_the_first_step(norm: float, beta: float, steps: int) -> None:
    shown = run(Smoothed(Seen(), beta=beta), [[norm] * 3] * steps)
    assert shown == [[pytest.approx(norm, rel=1e-4)] * 3] * steps


@pytest.mark.parametrize("beta", [-0.1, 1.0, float("nan")])
def test_smoothed_refuses_a_beta_that_averages_nothing(beta: float) -> None:
    with pytest.raises(ValueError, match="beta"):
        Smoothed(AboveMean(), beta=beta)


@given(rows_of_norms, st.integers(1, 5))
def test_every_holds_the_scales_of_steps_0_n_2n(rows: list[list[float]], n: int) -> None:
    seen = Seen()
    assert run(Every(seen, n=n), rows) == [rows[step - step % n] for step in range(len(rows))]
    assert seen.norms == rows  # it watches in between


def test_scales_handed_out_by_every_do_not_change_later() -> None:
    policy = Every(Seen(), n=1)
    policy.bind(NAMES, CPU)
    scales = policy(torch.tensor([1.0, 2.0, 3.0]))
    policy(torch.tensor([7.0, 8.0, 9.0]))
    assert scales.tolist() == [1, 2, 3]


@pytest.mark.parametrize(("n", "error"), [(0, ValueError), (2.5, TypeError), (True, TypeError)])
def test_every_refuses_a_period_that_is_no_number_of_steps(n: int, error: type[Exception]) -> None:
    with pytest.raises(error, match="n must be"):
        Every(AboveMean(), n=n)


def test_layers_keep_their_averages_when_layers_are_added_and_reordered() -> None:
    seen = Seen()
    policy = Smoothed(seen, beta=0.5)
    policy.bind(("a", "b"), CPU)
    policy(torch.tensor([1.0, 4.0]))
    policy.bind(("b", "new", "a"), CPU)
    policy(torch.tensor([4.0, 6.0, 4.0]))
    assert seen.norms[-1] == pytest.approx([4.0, 6.0, 3.0])  # a: (0.5 * 0.5 * 1 + 0.5 * 4) / 0.75


def test_layers_keep_their_held_scales_when_layers_are_added_and_reordered() -> None:
    policy = Every(Proportional(), n=3)
    policy.bind(("a", "b"), CPU)
    policy(torch.tensor([1.0, 4.0]))
    policy.bind(("b", "new", "a"), CPU)
    ones = torch.ones(3)
    assert policy(ones).tolist() == [1, 1, 0.25]
    assert policy(ones).tolist() == [1, 1, 0.25]
    assert policy(ones * torch.tensor([1, 2, 1])).tolist() == [0.5, 1, 0.5]  # the fourth step since the first binding


def test_pinned_sets_its_layers_and_hides_them_from_the_policy() -> None:
    seen = Seen()
    policy = Pinned(seen, always=["*norm", "lm_*"], never="*.embed*")
    policy.bind(["model.embed_tokens", "model.layers.0.mlp", "model.norm", "lm_head"], CPU)
    assert policy(torch.tensor([8.0, 2.0, 9.0, 7.0])).tolist() == [0, 2, 1, 1]
    assert seen.norms == [[0, 2, 0, 0]]


@given(st.lists(st.floats(2**-20, 2**20, width=32), min_size=3, max_size=3), st.floats(2**-20, 2**20, width=32))
def test_the_norm_of_a_pinned_layer_changes_nothing(norms: list[float], other: float) -> None:
    policy = Pinned(AboveMean(), always="b")
    policy.bind(NAMES, CPU)
    changed = [norms[0], other, norms[2]]
    assert torch.equal(policy(torch.tensor(norms)), policy(torch.tensor(changed)))


def test_pinned_with_nothing_pinned_is_the_policy_itself() -> None:
    norms = [1.0, 5.0, 3.0]
    assert run(Pinned(AboveMean()), [norms]) == [AboveMean()(torch.tensor(norms)).tolist()]


def test_a_pattern_that_matches_no_layer_is_an_error_that_lists_the_layers() -> None:
    with pytest.raises(ValueError, match=r"'norm' of never matches no layer.*'model\.norm'"):
        Pinned(AboveMean(), never=["norm"]).bind(["model.norm"], CPU)


def test_a_layer_pinned_both_ways_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match=r"both.*\['lm_head'\]"):
        Pinned(AboveMean(), always="*head", never="lm*").bind(["lm_head", "mlp"], CPU)


def test_a_refused_pattern_leaves_the_policy_inside_unbound() -> None:
    inside = Smoothed(AboveMean(), beta=0.5)
    with pytest.raises(ValueError, match="no layer"):
        Pinned(inside, always="x").bind(NAMES, CPU)
    assert inside.state_dict() == {}


def test_relative_to_divides_by_the_reference_norm_of_the_same_layer() -> None:
    policy = RelativeTo(trace(c=4.0, unused=0.0, a=1.0, b=2.0), Seen())
    assert run(policy, [[1.0, 3.0, 1.0], [0.0, 1.0, 8.0]]) == [[1, 1.5, 0.25], [0, 0.5, 2]]


def test_relative_to_gives_the_rule_of_the_paper() -> None:
    policy = RelativeTo(trace(a=100.0, b=1.0, c=1.0), AboveMean())
    assert run(policy, [[110.0, 3.0, 1.0]]) == [[0, 1, 0]]  # R = 1.1, 3, 1 with mean 1.7, though a's norm is largest


def test_relative_to_names_the_layers_the_trace_does_not_have() -> None:
    with pytest.raises(ValueError, match=r"no layers \['b', 'c'\]; it has \['a', 'x'\]"):
        run(RelativeTo(trace(a=1.0, x=1.0), AboveMean()), [])


@pytest.mark.parametrize("norm", [0.0, float("nan"), float("inf")])
def test_relative_to_names_the_layers_without_a_usable_reference_norm(norm: float) -> None:
    with pytest.raises(ValueError, match=r"\{'b': .*\}.*requires_grad_"):
        run(RelativeTo(trace(a=1.0, b=norm, c=2.0), AboveMean()), [])


def test_a_policy_around_another_promises_what_that_one_promises() -> None:
    for inside, binary, constant in [
        (AboveMean(), True, False),
        (Proportional(), False, False),
        (Fixed({"a": 0.5}), False, True),
        (Fixed({"a": 1}), True, True),
    ]:
        around = Pinned(Every(inside, n=2), always="a")
        assert is_binary(around) is binary
        assert is_constant(around) is constant


def test_a_policy_deep_inside_is_bound_and_sees_the_weights() -> None:
    names = ["layers.0.mlp", "layers.1.mlp", "norm"]
    inside = HighestSNR(0.5)
    policy = Pinned(Every(inside, n=2), never="norm")
    bind(policy, names, CPU)
    inspect(policy, {name: [torch.randn(5, 5)] for name in names})
    assert policy(torch.ones(3)).sum() == 1
    assert inside(torch.ones(3)).sum() == 2


def test_a_number_of_layers_counts_only_layers_that_are_not_pinned() -> None:
    policy = Pinned(TopK(1), always="c")
    assert run(policy, [[1.0, 2.0, 3.0]]) == [[0, 1, 1]]
