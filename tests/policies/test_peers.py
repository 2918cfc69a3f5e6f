from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

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


def published_snr(weight: Tensor) -> float:
    """Spectrum's measure, step by step in numpy."""
    values = np.linalg.svd(weight.double().numpy(), compute_uv=False)
    sigma = (np.quantile(values, 0.75) - np.quantile(values, 0.25)) / 1.349
    rows, columns = weight.shape
    beta = rows / columns if rows < columns else columns / rows
    threshold = sigma * np.sqrt((1 + np.sqrt(beta)) ** 2)
    signal, noise = values[values > threshold].sum(), values[values <= threshold].sum()
    return float(signal / noise / values[0]) if noise else math.inf


def weights_with_noise(seed: int, shape: tuple[int, int], noise: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = shape
    signal = torch.randn(rows, 2, generator=generator) @ torch.randn(2, columns, generator=generator)
    return signal + noise * torch.randn(rows, columns, generator=generator) * torch.logspace(0, -3, columns)


def test_highest_snr_ranks_layers_of_a_kind_by_the_published_measure() -> None:
    weights = {
        f"model.layers.{i}.{kind}": [weights_with_noise(10 * i + j, shape, 0.5 + i * j % 3) for j, shape in shapes]
        for i in range(6)
        for kind, shapes in {"attention": [(1, (12, 12)), (2, (12, 20))], "mlp": [(3, (30, 12))]}.items()
    }
    policy = HighestSNR(0.34)
    policy.bind(tuple(weights), CPU)
    policy.inspect(weights)
    trained = [name for name, scale in zip(weights, policy(torch.ones(12)).tolist(), strict=True) if scale]
    for kind in ("attention", "mlp"):
        means = {name: np.mean([published_snr(w) for w in ws]) for name, ws in weights.items() if name.endswith(kind)}
        assert len(set(means.values())) == 6
        assert all(map(math.isfinite, means.values()))
        best = sorted(means, key=lambda name: -means[name])[:2]
        assert [name for name in trained if name.endswith(kind)] == sorted(best)


def snr_policy(weights: dict[str, list[Tensor]], fraction: float = 0.5) -> tuple[HighestSNR, dict[str, float]]:
    policy = HighestSNR(fraction)
    policy.bind(tuple(weights), CPU)
    policy.inspect(weights)
    return policy, dict(zip(weights, policy(torch.ones(len(weights))).tolist(), strict=True))


CLEAR = torch.tensor([9.0, 1, 1, 0, 0]).diag()  # values above 1.48: 9; the others: 2; SNR 9 / 2 / 9 = 0.5
NOISY = torch.tensor([9.0, 6, 3, 1, 0]).diag()  # values above 7.41: 9; the others: 10; SNR 9 / 10 / 9 = 0.1


def test_highest_snr_trains_the_clear_layer_and_everything_outside_the_blocks() -> None:
    weights = {"embed": [NOISY], "h.0.mlp": [NOISY], "h.1.mlp": [CLEAR, torch.ones(5)], "ln_f": [torch.ones(5)]}
    assert snr_policy(weights)[1] == {"embed": 1, "h.0.mlp": 0, "h.1.mlp": 1, "ln_f": 1}


def test_highest_snr_trains_at_least_one_layer_of_every_kind_and_stack() -> None:
    weights = {
        f"{stack}.{i}.{kind}": [NOISY] for stack in ("enc", "dec") for i in range(2) for kind in ("mlp", "mixer")
    }
    trained = [name for name, scale in snr_policy(weights, 0.01)[1].items() if scale]
    assert trained == ["enc.0.mlp", "enc.0.mixer", "dec.0.mlp", "dec.0.mixer"]


def test_highest_snr_counts_stacked_experts_one_by_one() -> None:
    weights = {"h.0.mlp": [torch.stack([CLEAR, NOISY])], "h.1.mlp": [CLEAR, CLEAR], "h.2.mlp": [NOISY]}
    assert snr_policy(weights, 0.34)[1] == {"h.0.mlp": 0, "h.1.mlp": 1, "h.2.mlp": 0}
    assert snr_policy(weights, 0.67)[1] == {"h.0.mlp": 1, "h.1.mlp": 1, "h.2.mlp": 0}


def test_highest_snr_takes_zero_and_half_precision_weights() -> None:
    weights = {"h.0.mlp": [torch.zeros(4, 4)], "h.1.mlp": [CLEAR.bfloat16()]}
    assert snr_policy(weights)[1] == {"h.0.mlp": 0, "h.1.mlp": 1}


def test_highest_snr_keeps_its_choice_over_a_restart_even_if_the_weights_changed() -> None:
    saved = snr_policy({"h.0.mlp": [CLEAR], "h.1.mlp": [NOISY]})[0].state_dict()["scales"].tolist()
    resumed, scales = snr_policy({"h.0.mlp": [NOISY], "h.1.mlp": [CLEAR]})
    assert scales == {"h.0.mlp": 0, "h.1.mlp": 1}
    resumed.load_state_dict({"scales": saved})
    assert resumed(torch.ones(2)).tolist() == [1, 0]


def test_highest_snr_says_which_layers_it_has_not_seen() -> None:
    policy, _ = snr_policy({"h.0.mlp": [CLEAR], "h.1.mlp": [NOISY]})
    policy.bind(("h.1.mlp", "h.0.mlp"), CPU)
    assert policy(torch.ones(2)).tolist() == [0, 1]
    policy.bind(("h.1.mlp", "h.0.mlp", "h.2.mlp"), CPU)
    with pytest.raises(RuntimeError, match=r"\['h.2.mlp'\].*inspect"):
        policy(torch.ones(3))
    with pytest.raises(ValueError, match=r"no weights for the layers \['h.2.mlp'\]"):
        policy.inspect({"h.0.mlp": [CLEAR], "h.1.mlp": [CLEAR]})


def test_highest_snr_looks_at_the_whole_of_a_sharded_weight() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        weights = {"h.0.mlp": [distribute_tensor(NOISY, mesh, [Shard(0)])], "h.1.mlp": [CLEAR]}
        assert snr_policy(weights)[1] == {"h.0.mlp": 0, "h.1.mlp": 1}
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("policy", [RandomLayers(2, every=3), Cyclic(every=3)])
def test_counting_goes_on_when_layers_are_added(policy: RandomLayers | Cyclic) -> None:
    run(policy, 4)
    policy.bind((*NAMES, "new"), CPU)
    assert policy.state_dict()["steps"].tolist() == [4]
