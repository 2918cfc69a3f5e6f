"""Parameter groups added later: trained, named and saved like the first ones, or refused with nothing changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from localopt import Fixed, LocalizedOptimizer
from localopt.policies import AboveMean, Smoothed
from tests.runs import backward, every_layer


def three_layers() -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))


def part(model: nn.Sequential, layer: int, named: bool) -> list[Any]:
    pairs = list(model[layer].named_parameters(prefix=str(layer)))
    return list(pairs) if named else [parameter for _, parameter in pairs]


def partly_wrapped(
    model: nn.Sequential, named: bool, policy: Any = every_layer, show_model: bool = True
) -> LocalizedOptimizer:
    """Wrap an optimizer that holds all layers but number 1."""
    inner = torch.optim.AdamW(part(model, 0, named) + part(model, 2, named), lr=0.1)
    return LocalizedOptimizer(inner, model if show_model else None, policy)


@pytest.mark.parametrize("groups", ["named", "unnamed"])
@pytest.mark.parametrize("added", ["named", "unnamed", "generator", "one tensor"])
def test_a_group_added_later_is_trained_with_its_own_layers(groups: str, added: str) -> None:
    model = three_layers()
    optimizer = partly_wrapped(model, groups == "named")
    given: Any = part(model, 1, added == "named")
    expected = len(given)
    if added == "generator":
        given = iter(given)
    elif added == "one tensor":
        given, expected = given[0], 1
    optimizer.add_param_group({"params": given, "lr": 0.5})
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = model[1].weight.detach().clone()
    optimizer.step()
    assert optimizer.report().names == ("0", "1", "2")
    assert not torch.equal(model[1].weight, before)
    assert optimizer.param_groups[1]["lr"] == 0.5
    assert len(optimizer.param_groups[1]["params"]) == expected
    names = [group.get("param_names") for group in optimizer.param_groups]
    if groups == "named":
        assert names == [["0.weight", "0.bias", "2.weight", "2.bias"], ["1.weight", "1.bias"][:expected]]
    else:
        assert names == [None, None]


def test_names_alone_are_enough_for_a_group_added_later() -> None:
    model = three_layers()
    optimizer = partly_wrapped(model, named=True, show_model=False)
    optimizer.add_param_group({"params": part(model, 1, named=True)})
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert sorted(optimizer.report().names) == ["0", "1", "2"]


def test_an_average_goes_on_for_old_layers_when_a_group_is_added() -> None:
    model = three_layers()
    policy = Smoothed(AboveMean(), 0.9)
    optimizer = partly_wrapped(model, False, policy)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    old = policy.state_dict()["average"].tolist()
    optimizer.add_param_group({"params": part(model, 1, named=False)})
    assert policy.state_dict()["average"].tolist() == [old[0], 0.0, old[1]]
    assert optimizer.param_groups[0]["localopt"]["layers"] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("params", "error"),
    [
        (lambda model: [nn.Parameter(torch.zeros(2))], ValueError),  # not in the model
        (lambda model: set(model[1].parameters()), TypeError),  # of no certain order
        (lambda model: part(model, 0, named=False), ValueError),  # in the optimizer already
    ],
    ids=["stranger", "set", "twice"],
)
def test_a_group_that_cannot_be_added_changes_nothing(params: Any, error: type[Exception]) -> None:
    model = three_layers()
    optimizer = partly_wrapped(model, False)
    with pytest.raises(error):
        optimizer.add_param_group({"params": params(model)})
    assert len(optimizer.param_groups) == 1
    backward(model)
    optimizer.step()
    assert optimizer.report().names == ("0", "2")


def test_a_group_whose_layers_the_policy_does_not_know_changes_nothing() -> None:
    model = three_layers()
    optimizer = partly_wrapped(model, False, Fixed({"0": 1.0, "2": 0.5}))
    with pytest.raises(ValueError, match="Layers without a scale"):
        optimizer.add_param_group({"params": part(model, 1, named=False)})
    backward(model)
    optimizer.step()
    assert optimizer.report().names == ("0", "2")


def test_a_group_without_names_is_refused_where_no_model_gives_them() -> None:
    model = three_layers()
    optimizer = partly_wrapped(model, named=True, show_model=False)
    with pytest.raises(ValueError, match="no parameter names"):
        optimizer.add_param_group({"params": part(model, 1, named=False)})
    assert len(optimizer.param_groups) == 1


def test_a_step_after_parameters_were_added_behind_its_back_says_so() -> None:
    model = three_layers()
    optimizer = partly_wrapped(model, False)
    optimizer.inner.add_param_group({"params": part(model, 1, named=False)})
    with pytest.raises(RuntimeError, match="add_param_group"):
        optimizer.step()
