"""Rules of other methods against forgetting that choose by what the start is, built from their papers.

What they need of the start is measured in `Norms`, once for all halves.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.lifelong.methods.corrections import Correction
from benchmarks.lifelong.methods.rules import Case, Rule, Scales
from localopt.layers import locate, partition


def best_conditioned(share: float) -> Rule:
    """KappaTune (Ludwig 2025, arXiv 2506.16289): train the matrices with the lowest condition number.

    kappa = sigma_max / sigma_min of a weight matrix of the blocks; a share of them is trained, everything else frozen.
    """

    def scales(case: Case) -> Scales:
        numbers = case.norms.condition_numbers()
        chosen = set(sorted(numbers, key=lambda matrix: numbers[matrix])[: max(1, round(share * len(numbers)))])
        return {layer: float(layer in chosen) for layer in _matrices(case)}

    return scales


def least_missed(count: int, reference: str) -> Rule:
    """ADEPT (Zhang et al. 2025, arXiv 2510.10071), on the blocks that are there instead of copies of them.

    Trained are the blocks without which the loss on the reference rises least. In them a matrix W has the rate
    2 (1 - I), where I, scaled to [0, 1] over the matrices of the blocks, is the mean of |w * dL/dw| on the reference.
    """

    def scales(case: Case) -> Scales:
        missed = case.norms.missed(reference)
        chosen = set(sorted(missed, key=lambda block: missed[block])[:count])
        importance = case.norms.importance(reference)
        trained = {layer: value for layer, value in importance.items() if _block(layer) in chosen}
        low, high = min(trained.values()), max(trained.values())
        found = dict.fromkeys(_matrices(case), 0.0)
        return found | {layer: 2 * (high - value) / max(high - low, 1e-30) for layer, value in trained.items()}

    return scales


def momentum_filtered(share: float) -> Correction:
    """MoFO (Chen et al. 2024, arXiv 2407.20999): of every parameter only the entries with the largest |m| move.

    m is Adam's first moment after the step; both moments of all entries go on.
    """

    def hook(case: Case, model: nn.Module, optimizer: Optimizer) -> None:
        before: dict[Tensor, Tensor] = {}

        def keep(*_: Any) -> None:
            before.update((p, p.detach().clone()) for group in optimizer.param_groups for p in group["params"])

        @torch.no_grad()
        def put_back(*_: Any) -> None:
            for p, old in before.items():
                if p.grad is not None:
                    momentum = optimizer.state[p]["exp_avg"].abs()
                    rank = momentum.numel() - max(1, math.ceil(share * momentum.numel())) + 1
                    least = momentum.flatten().kthvalue(rank).values  # a selection: a sort takes ten times as long
                    p.copy_(torch.where(momentum >= least, p, old))
            before.clear()

        optimizer.register_step_pre_hook(keep)
        optimizer.register_step_post_hook(put_back)

    return hook


def _matrices(case: Case) -> list[str]:
    """The layers of a model in which every matrix is one."""
    return list(dict.fromkeys(partition([name for name, _ in case.norms.model.named_parameters()], "matrix").values()))


def _block(layer: str) -> int | None:
    return locate(layer)[1]
