from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from localopt.policies import AboveMean, Cyclic, Every, Pinned, Policy, RandomLayers, Smoothed, TopK
from localopt.policies.protocol import bind, inspect, is_binary, is_constant, load_state, ranks, state_tensors

CPU = torch.device("cpu")
NAMES = ("a", "b", "c", "d", "e")
STATEFUL: dict[str, Callable[[], Policy]] = {
    "Smoothed": lambda: Smoothed(AboveMean(), beta=0.8),
    "Every": lambda: Every(AboveMean(), n=4),
    "RandomLayers": lambda: RandomLayers(2, every=3, seed=5),
    "Cyclic": lambda: Cyclic(every=2, order="random"),
    "nested": lambda: Pinned(Every(Smoothed(TopK(2), beta=0.5), n=2), always="a"),
}


def half(norms: Tensor) -> Tensor:
    return torch.full_like(norms, 0.5)


def norms_of(step: int) -> Tensor:
    return torch.rand(len(NAMES), generator=torch.Generator().manual_seed(step))


def test_a_plain_function_is_a_policy() -> None:
    bind(half, NAMES, CPU)
    inspect(half, {})
    load_state(half, {})
    assert isinstance(half, Policy)
    assert not is_binary(half)
    assert not is_constant(half)
    assert state_tensors(half) == {}
    policy = Pinned(Every(half, n=2), never="b")
    policy.bind(NAMES, CPU)
    assert policy(torch.ones(5)).tolist() == [0.5, 0, 0.5, 0.5, 0.5]
    assert not is_binary(policy)


@pytest.mark.parametrize("name", STATEFUL)
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_policy_goes_on_from_its_saved_state_as_if_never_stopped(name: str, steps: int) -> None:
    whole, first, second = (STATEFUL[name]() for _ in range(3))
    for policy in (whole, first, second):
        bind(policy, NAMES, CPU)
    for step in range(steps):
        whole(norms_of(step))
        first(norms_of(step))
    saved = json.dumps({key: tensor.tolist() for key, tensor in state_tensors(first).items()})
    load_state(second, json.loads(saved))
    for step in range(steps, steps + 12):
        assert torch.equal(whole(norms_of(step)), second(norms_of(step)))


@pytest.mark.parametrize("name", STATEFUL)
def test_putting_the_live_state_back_undoes_a_step(name: str) -> None:
    policy = STATEFUL[name]()
    bind(policy, NAMES, CPU)
    policy(norms_of(0))
    live = state_tensors(policy)
    before = {key: tensor.clone() for key, tensor in live.items()}
    once = policy(norms_of(1)).clone()
    assert any(not torch.equal(tensor, before[key]) for key, tensor in live.items())
    for key, tensor in live.items():
        tensor.copy_(before[key])
    assert torch.equal(policy(norms_of(1)), once)


@pytest.mark.parametrize("name", STATEFUL)
def test_state_tensors_are_vectors_so_that_they_can_be_saved_as_lists(name: str) -> None:
    policy = STATEFUL[name]()
    bind(policy, NAMES, CPU)
    assert {tensor.ndim for tensor in state_tensors(policy).values()} == {1}


def test_state_of_a_nested_policy_has_dotted_names() -> None:
    policy = STATEFUL["nested"]()
    bind(policy, NAMES, CPU)
    assert set(state_tensors(policy)) == {
        "policy.held",
        "policy.steps",
        "policy.policy.average",
        "policy.policy.weight",
    }


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"average": [1.0, 1.0]}, r"has \['average'\].*keeps \['average', 'weight'\]"),
        ({"average": [1.0, 1.0], "weight": [1.0]}, r"'weight' has shape \(1,\).*keeps \(2,\)"),
        ({"average": [1.0], "weight": [1.0], "more": [1.0]}, "more"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_before_anything_changes(
    state: dict[str, Sequence[float]], message: str
) -> None:
    policy = Smoothed(AboveMean(), beta=0.5)
    policy.bind(("a", "b"), CPU)
    policy(torch.tensor([1.0, 3.0]))
    before = {key: tensor.clone() for key, tensor in policy.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        policy.load_state_dict(state)
    assert all(torch.equal(tensor, before[key]) for key, tensor in policy.state_dict().items())


def test_a_stateless_policy_refuses_a_state() -> None:
    with pytest.raises(ValueError, match=r"AboveMean\(\) keeps \[\]"):
        load_state(AboveMean(), {"average": [1.0]})


def test_the_first_of_equal_scores_ranks_first() -> None:
    assert ranks(torch.tensor([1.0, 3.0, 1.0, 3.0])).tolist() == [2, 0, 3, 1]
