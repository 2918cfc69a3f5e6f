from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from localopt.policies import (
    AboveMean,
    Cyclic,
    Every,
    Fixed,
    HighestSNR,
    LayerDecay,
    Pinned,
    Policy,
    Proportional,
    Quantile,
    RandomLayers,
    RelativeTo,
    Smoothed,
    TopK,
)
from localopt.policies.protocol import bind, inspect, is_binary, is_constant

CPU = torch.device("cpu")
NAMES = ("embed_tokens", "layers.0.attention", "layers.0.mlp", "layers.1.attention", "layers.1.mlp", "lm_head")
TRACE = SimpleNamespace(layers=NAMES, reference_norms=torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
FACTORIES: dict[str, Callable[[], Policy]] = {
    "AboveMean": AboveMean,
    "TopK": lambda: TopK(2),
    "TopK share": lambda: TopK(0.5),
    "Quantile": lambda: Quantile(0.4),
    "Proportional max": Proportional,
    "Proportional mean": lambda: Proportional("mean"),
    "Fixed": lambda: Fixed(dict.fromkeys(NAMES, 0.5)),
    "Smoothed": lambda: Smoothed(AboveMean(), beta=0.9),
    "Every": lambda: Every(AboveMean(), n=3),
    "Pinned": lambda: Pinned(AboveMean(), always="*.mlp", never="lm_head"),
    "RelativeTo": lambda: RelativeTo(TRACE, AboveMean()),
    "RandomLayers": lambda: RandomLayers(2, every=3),
    "Cyclic ascending": lambda: Cyclic(every=2, order="ascending"),
    "Cyclic descending": lambda: Cyclic(every=2, order="descending"),
    "Cyclic random": lambda: Cyclic(every=2, order="random"),
    "LayerDecay": lambda: LayerDecay(0.8),
    "HighestSNR": lambda: HighestSNR(0.5),
    "nested": lambda: Pinned(Every(Smoothed(RelativeTo(TRACE, TopK(2)), beta=0.9), n=2), always="embed*"),
}

any_norm = st.one_of(st.just(0.0), st.floats(2.0**-100, 2.0**100, width=32))
some_norms = st.lists(any_norm, min_size=1, max_size=40).filter(any).map(torch.tensor)
whole_norms = st.lists(st.integers(0, 100), min_size=1, max_size=40).filter(any).map(lambda n: torch.tensor(n).float())


def ready(policy: Policy, device: torch.device = CPU) -> Policy:
    """`policy`, bound to NAMES and shown weights."""
    bind(policy, NAMES, device)
    generator = torch.Generator().manual_seed(0)
    inspect(policy, {name: [torch.randn(6, 4, generator=generator)] for name in NAMES})
    return policy


class NothingWaits(TorchDispatchMode):
    """Raises where the host would read a device tensor, or make one from its own data."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "index.Tensor", "lift_fresh")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(str(func).startswith(f"aten.{name}") for name in self.FORBIDDEN):
            raise AssertionError(f"{func} waits for the device or copies to it")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", FACTORIES)
def test_no_policy_waits_for_the_device_or_copies_to_it(name: str) -> None:
    policy = ready(FACTORIES[name]())
    norms = torch.tensor([1.0, 5.0, 0.0, 2.0, 3.0, 4.0])
    with NothingWaits():
        scales = [policy(norms) for _ in range(4)]
    assert all(one.shape == norms.shape for one in scales)


def test_the_watch_for_waiting_notices_what_it_should() -> None:
    norms = torch.ones(3)
    for wait in (
        lambda: norms.max().item(),
        lambda: bool(norms.any()),
        lambda: norms[norms > 0],
        lambda: torch.tensor([1.0]),
    ):
        with pytest.raises(AssertionError, match="waits"), NothingWaits():
            wait()


@pytest.mark.parametrize("name", FACTORIES)
def test_every_policy_computes_where_its_norms_are(name: str) -> None:
    meta = torch.device("meta")  # has no values to read, and refuses to mix with tensors elsewhere
    policy = ready(FACTORIES[name](), meta)
    for _ in range(2):
        scales = policy(torch.ones(len(NAMES), device=meta))
        assert scales.device == meta
        assert scales.shape == (len(NAMES),)


@pytest.mark.parametrize("name", FACTORIES)
@given(rows=st.lists(st.lists(any_norm, min_size=6, max_size=6), min_size=1, max_size=8))
def test_scales_are_finite_and_at_least_zero_and_keep_what_the_policy_promises(
    name: str, rows: list[list[float]]
) -> None:
    policy = ready(FACTORIES[name]())
    first = policy(torch.tensor(rows[0])).clone()
    for norms in (torch.tensor(row) for row in rows[1:]):
        scales = policy(norms)
        assert scales.dtype == torch.float32
        assert scales.isfinite().all()
        assert (scales >= 0).all()
        assert not is_binary(policy) or set(scales.tolist()) <= {0.0, 1.0}
        assert not is_constant(policy) or torch.equal(scales, first)


@pytest.mark.parametrize("name", FACTORIES)
def test_a_policy_says_what_it_is(name: str) -> None:
    assert name.split()[0] in repr(FACTORIES[name]()) or name == "nested"


@given(some_norms)
def test_above_mean_never_freezes_everything(norms: Tensor) -> None:
    assert AboveMean()(norms).any()


@given(st.floats(2.0**-100, 2.0**100, width=32), st.integers(1, 300))
def test_above_mean_trains_all_of_equal_layers(norm: float, count: int) -> None:
    assert AboveMean()(torch.full((count,), norm)).all()


def test_above_mean_is_over_the_layers_that_have_a_gradient() -> None:
    # The mean of 2, 3, 4 is 3, and a layer at the mean is trained; with the zeros it would be 1.5, and 2 trained too.
    assert AboveMean()(torch.tensor([0.0, 2.0, 0.0, 3.0, 0.0, 4.0])).tolist() == [0, 0, 0, 1, 0, 1]


@pytest.mark.parametrize(
    "policy", [AboveMean(), TopK(3), TopK(0.3), Quantile(0.3), Proportional(), Proportional("mean")]
)
@given(data=st.data())
def test_scales_move_with_their_layers(policy: Policy, data: st.DataObject) -> None:
    norms = data.draw(st.lists(st.integers(0, 1000), min_size=1, max_size=20, unique=True).filter(any))
    order = data.draw(st.permutations(range(len(norms))))
    scales = policy(torch.tensor(norms).float())
    assert torch.equal(policy(torch.tensor([norms[i] for i in order]).float()), scales[list(order)])


@given(some_norms, st.integers(1, 50))
def test_top_k_takes_k_layers_or_all_that_have_a_gradient(norms: Tensor, k: int) -> None:
    scales = TopK(k)(norms)
    assert scales.sum() == min(k, int((norms > 0).sum()))
    assert norms[scales == 1].min() >= torch.cat([norms[scales == 0], torch.zeros(1)]).max()


@given(whole_norms, st.integers(1, 50))
def test_top_k_takes_the_first_of_equal_norms(norms: Tensor, k: int) -> None:
    best_first = sorted(range(len(norms)), key=lambda i: (-norms[i].item(), i))[:k]
    expected = [float(i in best_first and norms[i].item() > 0) for i in range(len(norms))]
    assert TopK(k)(norms).tolist() == expected


@pytest.mark.parametrize(("share", "layers", "count"), [(0.5, 10, 5), (0.26, 10, 3), (0.01, 10, 1), (1.0, 10, 10)])
def test_top_k_of_a_share_takes_the_nearest_number_of_layers(share: float, layers: int, count: int) -> None:
    assert TopK(share)(torch.arange(1.0, layers + 1)).sum() == count


@given(whole_norms, st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.7, 0.75, 0.9, 1.0]))
def test_quantile_agrees_with_the_quantile_of_the_norms_that_are_not_zero(norms: Tensor, q: float) -> None:
    positive = sorted(norms[norms > 0].tolist())
    place = round(q * 100) * (len(positive) - 1) / 100  # correctly rounded, so whole where it is whole
    low, high = positive[math.floor(place)], positive[math.ceil(place)]
    threshold = low + (high - low) * (place - math.floor(place))
    assert Quantile(q)(norms).tolist() == [float(norm > 0 and norm >= threshold) for norm in norms.tolist()]


def test_quantile_of_a_hand_computed_example() -> None:
    norms = torch.tensor([10.0, 0.0, 40.0, 20.0, 30.0])  # of 10, 20, 30, 40 the 0.3-quantile is 19
    assert Quantile(0.3)(norms).tolist() == [0, 0, 1, 1, 1]
    assert Quantile(0.0)(norms).tolist() == [1, 0, 1, 1, 1]
    assert Quantile(1.0)(norms).tolist() == [0, 0, 1, 0, 0]


@given(some_norms)
def test_proportional_to_the_maximum_exceeds_one_nowhere_and_reaches_it(norms: Tensor) -> None:
    assert Proportional()(norms).max() == 1


@given(whole_norms)
def test_proportional_to_the_mean_averages_to_one_over_the_layers_that_have_a_gradient(norms: Tensor) -> None:
    scales = Proportional("mean")(norms)
    assert scales[norms > 0].mean().item() == pytest.approx(1, rel=1e-5)
    assert not scales[norms == 0].any()


def test_fixed_scales_go_to_the_layers_of_that_name_in_any_order() -> None:
    policy = Fixed({"a": 0.25, "b": 1, "c": 0})
    policy.bind(["c", "a", "b"], CPU)
    assert policy(torch.ones(3)).tolist() == [0, 0.25, 1]
    policy.bind(["b", "c", "a"], CPU)
    assert policy(torch.zeros(3)).tolist() == [1, 0, 0.25]


def test_fixed_names_both_the_layers_it_lacks_and_those_it_does_not_know() -> None:
    with pytest.raises(ValueError, match=r"without a scale: \['c'\].*without a layer: \['b'\].*Pinned"):
        Fixed({"a": 1.0, "b": 0.0}).bind(["a", "c"], CPU)


@pytest.mark.parametrize("scale", [-0.1, math.nan, math.inf])
def test_fixed_refuses_a_scale_that_is_no_scale(scale: float) -> None:
    with pytest.raises(ValueError, match="mlp"):
        Fixed({"attention": 1.0, "mlp": scale})


def test_fixed_is_binary_only_if_all_its_scales_are_zero_or_one() -> None:
    assert is_binary(Fixed({"a": 0, "b": 1}))
    assert not is_binary(Fixed({"a": 0, "b": 0.5}))


def test_fixed_keeps_the_scales_it_was_made_with() -> None:
    scales = {"a": 1.0}
    policy = Fixed(scales)
    scales["a"] = 0.0
    assert policy.scales == {"a": 1.0}


def test_a_policy_that_was_never_bound_says_so() -> None:
    for policy in (Fixed({"a": 1.0}), Pinned(AboveMean()), RandomLayers(1, every=1), HighestSNR(0.5), LayerDecay(0.5)):
        with pytest.raises(RuntimeError, match=r"call its bind"):
            policy(torch.ones(1))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: TopK(0), ValueError, "at least 1"),
        (lambda: TopK(1.5), ValueError, "give an int"),
        (lambda: TopK(True), TypeError, "True"),
        (lambda: TopK("half"), TypeError, "half"),
        (lambda: Quantile(1.1), ValueError, "1.1"),
        (lambda: Quantile(math.nan), ValueError, "nan"),
        (lambda: Proportional("sum"), ValueError, "'sum'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(make: Callable[[], Policy], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("policy", [AboveMean(), TopK(2), Quantile(0.5), Proportional(), Proportional("mean")])
def test_where_no_layer_has_a_gradient_all_scales_are_zero(policy: Policy) -> None:
    assert policy(torch.zeros(4)).tolist() == [0, 0, 0, 0]  # what is left of a step whose other layers are all pinned
