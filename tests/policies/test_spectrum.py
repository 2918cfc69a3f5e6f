"""The rule of Spectrum against the published measure."""

import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from localopt.policies import HighestSNR

CPU = torch.device("cpu")


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
