"""The rule of Spectrum: the layers whose weights stand out most from noise, chosen once, before training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from localopt.layers import locate
from localopt.policies.protocol import Stateful, bound, carry_over, count_layers


@dataclass
class HighestSNR(Stateful):
    """Train the layers whose weights have the highest signal-to-noise ratio when training starts.

    For a weight matrix of shape (m, n) with singular values sigma_i, the largest sigma_1, and their interquartile range
    IQR, the threshold is the upper edge of the Marchenko-Pastur distribution:

        threshold = IQR(sigma) / 1.349 * (1 + sqrt(min(m, n) / max(m, n)))
        SNR = (sum of sigma_i > threshold) / (sum of sigma_i <= threshold) / sigma_1

    A layer's SNR is the mean over its matrices (stacked experts count one by one), and layers are ranked among those of
    the same kind: a share of the attentions, of the MLPs, ... of each stack of blocks is trained. Layers outside the
    blocks, and those without a matrix, are always trained. One singular value decomposition of every matrix is taken,
    once; the choice is part of the state, so that a resumed run keeps it.

    Args:
        fraction: share of each kind to train, in (0, 1], rounded to the nearest number, at least one.

    Raises:
        ValueError: unless 0 < fraction <= 1.

    Examples:
        >>> policy = HighestSNR(0.5)
        >>> policy.bind(["layers.0.mlp", "layers.1.mlp", "norm"], torch.device("cpu"))
        >>> clear, noisy = torch.tensor([9.0, 1, 1, 0, 0]).diag(), torch.tensor([9.0, 6, 3, 1, 0]).diag()
        >>> policy.inspect({"layers.0.mlp": [noisy], "layers.1.mlp": [clear], "norm": [torch.ones(5)]})
        >>> policy(torch.ones(3))
        tensor([0., 1., 1.])

    References:
        The code of Spectrum (Hartford et al. 2024, arXiv 2406.06623). Differences: Spectrum ranks each projection apart
        (with ``layers="parameter"`` so do we), rounds down, freezes the final norm unless it is chosen, and counts a
        matrix without any noise as noise 1 where we take an infinite SNR.
    """

    fraction: float
    binary: ClassVar[bool] = True
    constant: ClassVar[bool] = True
    _names: tuple[str, ...] = field(default=(), init=False, repr=False, compare=False)
    _unknown: tuple[str, ...] = field(default=(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must be in (0, 1], not {self.fraction}")

    def bind(self, names: Sequence[str], device: torch.device) -> None:
        """Keep the choice for the layers whose names stay; others wait for `inspect`."""
        known = set(self._names) - set(self._unknown)
        self._unknown = tuple(name for name in names if name not in known)
        self._state["scales"] = carry_over(self._state.get("scales"), self._names, names, device, fill=1.0)
        self._names = tuple(names)

    def inspect(self, weights: Mapping[str, Sequence[Tensor]]) -> None:
        """Choose the layers by their parameters, `weights[name]`. Waits for the device."""
        scales = bound(self._state.get("scales"), self)
        missing = [name for name in self._names if name not in weights]
        if missing:
            raise ValueError(f"no weights for the layers {missing}; got those of {list(weights)}")
        kinds: dict[tuple[str, str], list[tuple[float, int]]] = {}
        for position, name in enumerate(self._names):
            stack, index, kind = locate(name)
            ratios = [ratio for weight in weights[name] for ratio in _signal_to_noise(weight)]
            if index is not None and ratios:
                kinds.setdefault((stack, kind), []).append((sum(ratios) / len(ratios), position))
        chosen = [1.0] * len(self._names)
        for ranking in kinds.values():
            ranking.sort(key=lambda entry: -entry[0])
            for _, position in ranking[count_layers(self.fraction, len(ranking)) :]:
                chosen[position] = 0.0
        scales.copy_(torch.tensor(chosen))
        self._unknown = ()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the choice of a saved run; ValueError where names or lengths differ."""
        super().load_state_dict(state)
        self._unknown = ()

    def __call__(self, norms: Tensor) -> Tensor:
        scales = bound(self._state.get("scales"), self)
        if self._unknown:
            raise RuntimeError(f"{self!r} has not seen the weights of {list(self._unknown)}: call inspect(weights)")
        return scales


def _signal_to_noise(weight: Tensor) -> list[float]:
    """The SNR of a matrix, or of each of a stack of matrices; none for anything else."""
    weight = weight.detach()
    if hasattr(weight, "full_tensor"):  # a DTensor holds a shard
        weight = weight.full_tensor()
    if weight.ndim < 2 or min(weight.shape[-2:]) < 2:
        return []
    values = torch.linalg.svdvals(weight.float()).reshape(-1, min(weight.shape[-2:]))  # descending
    m, n = weight.shape[-2:]
    quartiles = values.quantile(torch.tensor([0.25, 0.75], device=values.device), dim=-1)
    threshold = (quartiles[1] - quartiles[0]) / 1.349 * (1 + math.sqrt(min(m, n) / max(m, n)))
    is_signal = values > threshold[:, None]
    signal, noise = (values * is_signal).sum(-1), (values * ~is_signal).sum(-1)
    ratios: list[float] = (signal / noise / values[:, 0]).nan_to_num(nan=0.0, posinf=math.inf).tolist()  # all 0: 0
    return ratios
