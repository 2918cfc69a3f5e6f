"""Whatever parameters and gradients the wrapped optimizer steps, a localized one measures and steps too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, AdamW, Optimizer, SparseAdam

from localopt import Fixed, LocalizedOptimizer
from localopt.signals import reference_layer_norms
from tests.laws import assert_same_bits

Make = Callable[[Any], Optimizer]


class Two(nn.Module):
    """Two layers "a" and "b" of one parameter each."""

    def __init__(self, first: Tensor, second: Tensor) -> None:
        super().__init__()
        for name, value in (("a", first), ("b", second)):
            module = nn.Module()
            module.weight = nn.Parameter(value.clone(memory_format=torch.preserve_format))
            self.add_module(name, module)


def by_module(name: str) -> str:
    return name.split(".")[0]


def second_only(norms: Tensor) -> Tensor:
    return torch.tensor([0.0, 1.0])


second_only.binary = True


def transposed() -> Tensor:
    return torch.randn(3, 5).t()


TENSORS: dict[str, Callable[[], Tensor]] = {
    "float64": lambda: torch.randn(3, 5, dtype=torch.float64),
    "complex64": lambda: torch.randn(3, 5, dtype=torch.complex64),
    "complex128": lambda: torch.randn(3, 5, dtype=torch.complex128),
    "bfloat16": lambda: torch.randn(3, 5, dtype=torch.bfloat16),
    "float16": lambda: torch.randn(3, 5, dtype=torch.float16),
    "not contiguous": transposed,
    "of no element": lambda: torch.randn(0, 5),
    "of no dimension": lambda: torch.randn(()),
}


@pytest.mark.parametrize("max_grad_norm", [None, 0.1], ids=["free", "clipped"])
@pytest.mark.parametrize("make", [lambda p: AdamW(p, lr=0.1), lambda p: SGD(p, lr=0.1, momentum=0.9)])
@pytest.mark.parametrize("kind", TENSORS)
def test_parameters_of_every_kind(kind: str, make: Make, max_grad_norm: float | None) -> None:
    first, second = TENSORS[kind](), torch.randn(4)
    model, twin = Two(first, second), Two(first, second)
    optimizer = LocalizedOptimizer(
        make(model.parameters()), model, second_only, layers=by_module, max_grad_norm=max_grad_norm
    )
    bare = make(twin.parameters())
    for _ in range(3):
        gradients = [torch.randn_like(p) for p in model.parameters()]
        for own, other, gradient in zip(model.parameters(), twin.parameters(), gradients, strict=True):
            own.grad, other.grad = gradient.clone(), gradient.clone()
        expected = reference_layer_norms(gradients, [0, 1], 2).tolist()
        optimizer.step()
        assert optimizer.report().norms == pytest.approx(expected, rel=1e-5)
        if max_grad_norm is not None:
            nn.utils.clip_grad_norm_([twin.b.weight], max_grad_norm)
        twin.a.weight.grad = None
        bare.step()
        for own, other in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(own, other, rtol=0 if max_grad_norm is None else 1e-5, atol=1e-7)
    assert torch.equal(model.a.weight.detach(), first)


SPARSE: dict[str, Make] = {
    "SparseAdam": lambda p: SparseAdam(p, lr=0.1),
    "SGD": lambda p: SGD(p, lr=0.1),
    "Adagrad": lambda p: Adagrad(p, lr=0.1),
}


class Embeddings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Embedding(6, 3, sparse=True)
        self.second = nn.Embedding(6, 3, sparse=True)

    def backward(self) -> None:
        self.zero_grad()
        twice = torch.tensor([0, 2, 2, 2])  # uncoalesced: the gradients of one row come apart
        (self.first(twice).square().sum() + self.second(twice[1:]).sum()).backward()


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("max_grad_norm", [None, 0.1], ids=["free", "clipped"])
@pytest.mark.parametrize("name", SPARSE)
def test_sparse_gradients(name: str, max_grad_norm: float | None) -> None:
    model, twin = Embeddings(), Embeddings()
    optimizer = LocalizedOptimizer(SPARSE[name](model.parameters()), model, second_only, max_grad_norm=max_grad_norm)
    bare = SPARSE[name](twin.parameters())
    for _ in range(3):
        model.backward()
        twin.backward()
        gradients = [p.grad.to_dense() for p in twin.parameters()]
        optimizer.step()
        assert optimizer.report().norms == pytest.approx([gradient.norm().item() for gradient in gradients])
        twin.first.weight.grad = None
        if max_grad_norm is not None:
            sparse = twin.second.weight.grad
            twin.second.weight.grad = sparse * (max_grad_norm / (gradients[1].norm() + 1e-6))
        bare.step()
        for own, other in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(own, other, rtol=0 if max_grad_norm is None else 1e-6, atol=1e-7)


@pytest.mark.parametrize("max_grad_norm", [None, 0.1], ids=["free", "clipped"])
def test_absent_gradients_count_as_zero_and_are_not_stepped(max_grad_norm: float | None) -> None:
    values = torch.randn(3), torch.randn(3)
    model = Two(*values)
    optimizer = LocalizedOptimizer(
        AdamW(model.parameters(), lr=0.1), model, torch.ones_like, layers=by_module, max_grad_norm=max_grad_norm
    )
    with pytest.warns(UserWarning, match="no parameter has a gradient"):
        optimizer.step()
    assert optimizer.report().norms == (0.0, 0.0)
    assert_same_bits(model, Two(*values), "without gradients")
    model.b.weight.grad = torch.tensor([3.0, 0.0, 4.0])
    optimizer.step()
    assert optimizer.report().norms == (0.0, 5.0)
    assert torch.equal(model.a.weight.detach(), values[0])
    assert list(optimizer.state) == [model.b.weight]


def test_a_parameter_of_several_modules_counts_once() -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 3), nn.Linear(3, 5, bias=False))
    model[2].weight = model[0].weight
    optimizer = LocalizedOptimizer(SGD(model.parameters(), lr=0.1), model)
    model(torch.tensor([1, 2])).square().sum().backward()
    optimizer.step()
    report = optimizer.report()
    assert report.names == ("0", "1")
    assert report.norms is not None
    assert report.norms[0] == pytest.approx(model[0].weight.grad.norm().item())


def test_a_parameter_that_asks_for_no_gradient_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    optimizer = LocalizedOptimizer(AdamW(model.parameters(), lr=0.1), model)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    assert torch.equal(model[0].weight, before)
    assert optimizer.report().updated == ("1",)


def test_a_layer_frozen_for_good_does_not_move_in_a_step_of_zero_gradients() -> None:
    # Adam's momentum and weight decay would move it.
    values = torch.randn(3), torch.randn(3)
    model = Two(*values)
    inner = AdamW(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    inner.step()
    before = model.a.weight.detach().clone()
    optimizer = LocalizedOptimizer(inner, model, Fixed({"a": 0.0, "b": 1.0}), layers=by_module, max_grad_norm=1.0)
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    assert torch.equal(model.a.weight.detach(), before)
    assert optimizer.report().scales == (0.0, 1.0)


def test_a_skipped_step_is_not_reported_as_an_update() -> None:
    model = Two(torch.randn(3), torch.randn(3))
    optimizer = LocalizedOptimizer(AdamW(model.parameters(), lr=0.1), model, layers=by_module)
    model.b.weight.grad = torch.tensor([1.0, float("nan"), 1.0])
    optimizer.step()
    report = optimizer.report()
    assert (report.updated, report.share_updated, report.skipped_steps) == ((), 0.0, 1)
