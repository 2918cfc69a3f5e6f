from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from localopt.policies import Cyclic, HighestSNR, LayerDecay, Pinned, Policy, RandomLayers

CPU = torch.device("cpu")
ONES = torch.ones(6)
NAMES = tuple("abcdef")


def run(policy: RandomLayers | Cyclic, steps: int, norms: Tensor = ONES) -> list[tuple[int, ...]]:
    """The layers trained in each step."""
    policy.bind(NAMES, CPU)
    return [tuple(i for i, scale in enumerate(policy(norms).tolist()) if scale) for _ in range(steps)]


def random_score(seed: int, draw: int, layer: int) -> int:
    """The hash of RandomLayers in numpy's own 32-bit arithmetic."""

    def mix(x: np.uint32) -> np.uint32:
        x = x + np.uint32(0x9E3779B9)
        x = (x ^ (x >> np.uint32(16))) * np.uint32(0x21F0AAAD)
        x = (x ^ (x >> np.uint32(15))) * np.uint32(0x735A2D97)
        return x ^ (x >> np.uint32(15))

    with np.errstate(over="ignore"):
        return int(mix(mix(mix(np.uint32(seed)) + np.uint32(draw)) ^ np.uint32(layer)))


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_random_layers_draws_by_the_hash_it_documents(seed: int, draw: int, k: int) -> None:
    policy = RandomLayers(k, every=1, seed=seed)
    policy.bind(NAMES, CPU)
    policy.load_state_dict({"steps": [draw]})
    best = sorted(range(6), key=lambda layer: -random_score(seed, draw, layer))[:k]
    assert policy(ONES).tolist() == [float(layer in best) for layer in range(6)]


def test_random_layers_draws_the_same_layers_everywhere_and_forever() -> None:
    assert run(RandomLayers(2, every=1, seed=0), 6) == [(4, 5), (0, 3), (3, 5), (1, 5), (1, 4), (1, 5)]


def test_random_layers_holds_its_draw_until_the_next() -> None:
    drawn = run(RandomLayers(2, every=4, seed=3), 40)
    assert all(drawn[step] == drawn[step - step % 4] for step in range(40))
    assert drawn[::4] == run(RandomLayers(2, every=1, seed=3), 10)


def test_random_layers_draws_every_set_about_equally_often() -> None:
    draws = 3000
    counts = Counter(run(RandomLayers(2, every=1, seed=7), draws))
    assert set(counts) == set(combinations(range(6), 2))
    expected = draws / 15
    chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_squared < 36.1  # 14 degrees of freedom, p = 0.001


def test_random_layers_draws_otherwise_with_another_seed() -> None:
    one, two = (run(RandomLayers(2, every=1, seed=seed), 1000) for seed in (1, 2))
    assert sum(a == b for a, b in zip(one, two, strict=True)) == pytest.approx(1000 / 15, abs=40)


@given(st.lists(st.sampled_from([0.0, 1.0, 5.0]), min_size=6, max_size=6), st.integers(1, 6))
def test_random_layers_draws_among_the_layers_that_have_a_gradient(norms: list[float], k: int) -> None:
    for drawn in run(RandomLayers(k, every=1), 5, torch.tensor(norms)):
        assert len(drawn) == min(k, sum(norm > 0 for norm in norms))
        assert all(norms[layer] > 0 for layer in drawn)


def test_random_layers_takes_a_share_of_the_layers() -> None:
    assert {len(drawn) for drawn in run(RandomLayers(0.5, every=1), 10)} == {3}


def test_random_layers_with_pinned_embeddings_and_head_is_lisa() -> None:
    names = ["model.embed_tokens", *(f"model.layers.{i}" for i in range(4)), "model.norm", "lm_head"]
    policy = Pinned(RandomLayers(1, every=2), always=["*embed*", "*norm", "lm_head"])
    policy.bind(names, CPU)
    for _ in range(20):
        scales = policy(torch.ones(7)).tolist()
        assert scales[0] == scales[5] == scales[6] == 1
        assert sum(scales[1:5]) == 1


def test_cyclic_goes_up_or_down_one_layer_at_a_time() -> None:
    assert run(Cyclic(every=2, order="ascending"), 14) == [(i // 2 % 6,) for i in range(14)]
    assert run(Cyclic(every=2, order="descending"), 14) == [(5 - i // 2 % 6,) for i in range(14)]


def test_cyclic_in_random_order_visits_every_layer_once_a_cycle_in_ever_new_orders() -> None:
    turns = [layer for (layer,) in run(Cyclic(every=1, order="random", seed=1), 6 * 50)]
    cycles = [tuple(turns[i : i + 6]) for i in range(0, len(turns), 6)]
    assert all(sorted(cycle) == list(range(6)) for cycle in cycles)
    assert len(set(cycles)) > 40
    assert len({cycle[0] for cycle in cycles}) == 6


@pytest.mark.parametrize("order", ["ascending", "descending", "random"])
def test_cyclic_passes_over_layers_without_a_gradient(order: str) -> None:
    turns = run(Cyclic(every=1, order=order), 8, torch.tensor([0.0, 1.0, 0.0, 2.0, 3.0, 0.0]))
    assert [sorted(turns[:3]), sorted(turns[3:6])] == [[(1,), (3,), (4,)]] * 2
    if order != "random":
        assert turns[:4] == ([(1,), (3,), (4,), (1,)] if order == "ascending" else [(4,), (3,), (1,), (4,)])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: RandomLayers(0, every=1), ValueError, "at least 1 layer"),
        (lambda: RandomLayers(1, every=0), ValueError, "every must be"),
        (lambda: RandomLayers(1, every=1, seed=-1), ValueError, "seed.*-1"),
        (lambda: RandomLayers(1, every=1, seed=2**32), ValueError, "seed"),
        (lambda: Cyclic(every=1.5), TypeError, "every must be"),
        (lambda: Cyclic(every=1, order="up"), ValueError, "'up'"),
        (lambda: LayerDecay(0.0), ValueError, "rate"),
        (lambda: LayerDecay(1.1), ValueError, "rate"),
        (lambda: HighestSNR(0.0), ValueError, "fraction"),
        (lambda: HighestSNR(float("nan")), ValueError, "fraction"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(make: type[Policy], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def decay(rate: float, names: Sequence[str]) -> dict[str, float]:
    policy = LayerDecay(rate)
    policy.bind(names, CPU)
    return dict(zip(names, policy(torch.ones(len(names))).tolist(), strict=True))


def test_layer_decay_halves_the_rate_from_block_to_block_towards_the_input() -> None:
    names = ["model.embed_tokens", "model.layers.0.attention", "model.layers.0.mlp", "model.layers.1.attention"]
    names += ["model.layers.1.mlp", "model.norm", "lm_head"]
    assert list(decay(0.5, names).values()) == [0.125, 0.25, 0.25, 0.5, 0.5, 1, 1]


@pytest.mark.parametrize(
    ("name", "is_embedding"),
    [
        ("transformer.wte", True),
        ("transformer.wpe", True),
        ("shared", True),
        ("gpt_neox.embed_in", True),
        ("bert.embeddings", True),
        ("word_embeddings_layernorm", True),
        ("model.decoder.project_in", True),
        ("gpt_neox.embed_out", False),
        ("unembed", False),
        ("transformer.ln_f", False),
        ("classifier", False),
        ("model.decoder.project_out", False),
    ],
)
def test_layer_decay_tells_embeddings_from_heads(name: str, is_embedding: bool) -> None:
    assert decay(0.5, [name, "h.0.mlp"])[name] == (0.25 if is_embedding else 1.0)


def test_layer_decay_does_not_need_the_layers_in_order() -> None:
    forwards = [f"h.{i}.{part}" for i in range(12) for part in ("attention", "mlp")] + ["wte", "ln_f"]
    assert decay(0.9, forwards) == decay(0.9, forwards[::-1])
    assert decay(0.9, forwards)["wte"] == pytest.approx(0.9**13)


def test_layer_decay_counts_each_stack_of_an_encoder_decoder_from_its_own_top() -> None:
    names = ["shared", *(f"encoder.block.{i}" for i in range(3)), *(f"decoder.block.{i}" for i in range(2)), "lm_head"]
    assert list(decay(0.5, names).values()) == [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1 / 4, 1 / 2, 1]


def test_layer_decay_without_blocks_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match=r"list of blocks.*\['weight'\]"):
        decay(0.5, ["weight"])


@pytest.mark.parametrize("policy", [RandomLayers(2, every=3), Cyclic(every=3)])
def test_counting_goes_on_when_layers_are_added(policy: RandomLayers | Cyclic) -> None:
    run(policy, 4)
    policy.bind((*NAMES, "new"), CPU)
    assert policy.state_dict()["steps"].tolist() == [4]
