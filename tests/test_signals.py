"""Gradients -> one norm a layer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from localopt.signals import layer_norms, reference_layer_norms
from localopt.steps.layout import segments
from localopt.sums import squared_norm

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=cuda)])


def norms_of(gradients: list[Tensor | None], layer_of: list[int], count: int) -> Tensor:
    return layer_norms(gradients, segments(layer_of, count))


@devices
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_norms_equal_the_reference_to_one_in_a_million(dtype: torch.dtype, device: str) -> None:
    shapes = [(700, 1000), (3,), (1 << 20,), (64, 5, 5), ()]
    gradients = [torch.randn(shape, device=device).to(dtype) for shape in shapes]
    layer_of = [1, 0, 1, 2, 0]
    norms = layer_norms(gradients, segments(layer_of, 3, device))
    assert norms.dtype == torch.float32
    expected = reference_layer_norms(gradients, layer_of, 3)
    torch.testing.assert_close(norms.double().cpu(), expected, rtol=1e-6, atol=0)


@settings(deadline=None, max_examples=50)
@given(
    layer_of=st.lists(st.integers(0, 4), min_size=0, max_size=12),
    absent=st.sets(st.integers(0, 11)),
    dtype=st.sampled_from(FLOATS),
)
def test_any_assignment_of_gradients_to_layers(layer_of: list[int], absent: set[int], dtype: torch.dtype) -> None:
    gradients = [None if i in absent else torch.randn(2, i % 4).to(dtype) for i in range(len(layer_of))]
    expected = reference_layer_norms(gradients, layer_of, 5)
    torch.testing.assert_close(norms_of(gradients, layer_of, 5).double(), expected, rtol=1e-6, atol=1e-12)


def test_a_layer_without_gradients_has_norm_zero() -> None:
    assert norms_of([None, torch.ones(4)], [0, 1], 3).tolist() == [0.0, 2.0, 0.0]


def test_no_gradients_at_all() -> None:
    assert norms_of([None, None], [0, 1], 2).tolist() == [0.0, 0.0]


def test_an_empty_gradient_counts_as_zero() -> None:
    assert norms_of([torch.empty(0, 7), torch.ones(1)], [0, 1], 2).tolist() == [0.0, 1.0]


def test_complex_gradients_count_real_and_imaginary_parts() -> None:
    gradient = torch.tensor([3 + 4j, 0j])
    assert norms_of([gradient, gradient.conj()], [0, 1], 2).tolist() == [5.0, 5.0]


def test_sparse_gradients_are_coalesced_first() -> None:
    twice_the_same_row = torch.sparse_coo_tensor(torch.tensor([[1, 1]]), torch.tensor([[1.5], [1.5]]), (4, 1))
    assert norms_of([twice_the_same_row], [0], 1).tolist() == [3.0]


def test_non_contiguous_gradients() -> None:
    gradient = torch.randn(6, 8)[::2, ::3]
    torch.testing.assert_close(norms_of([gradient], [0], 1)[0], gradient.norm())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_in_its_layer(value: float) -> None:
    norms = norms_of([torch.tensor([1.0, value]), torch.tensor([2.0])], [0, 1], 2)
    assert not norms[0].isfinite()
    assert norms[1] == 2.0


def test_half_precision_gradients_do_not_overflow() -> None:
    gradient = torch.full((4,), 60000.0, dtype=torch.float16)
    assert norms_of([gradient], [0], 1).tolist() == [2 * gradient[0].item()]


def test_equal_gradients_give_equal_bits() -> None:
    gradients = [torch.randn(1000) for _ in range(20)]
    layer_of = [i % 3 for i in range(20)]
    assert torch.equal(norms_of(gradients, layer_of, 3), norms_of([g.clone() for g in gradients], layer_of, 3))


def test_the_squared_norm_of_one_gradient() -> None:
    gradient = torch.randn(300, 1000, dtype=torch.bfloat16)
    expected = gradient.double().square().sum()
    torch.testing.assert_close(squared_norm(gradient), expected, rtol=1e-6, atol=0)
