"""The rules of other methods, as policies: LISA, BAdam and layer-wise learning-rate decay (Spectrum: `spectrum.py`).

Each docstring gives the rule of the original and says where ours differs. One difference they share: the originals drop
the optimizer state of a layer they stop training, where `LocalizedOptimizer` by default keeps it for when the layer's
turn comes again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from localopt.layers import locate
from localopt.policies.protocol import Stateful, bound, check_count, check_period, count_layers, ranks

_WORD = 0xFFFFFFFF  # random numbers are 32 bits wide, in int64 so that their products do not overflow
_Whole = TypeVar("_Whole", int, Tensor)

# Modules that stand before the blocks. GPT-NeoX's `embed_out` and an `unembed` are heads.
_EMBEDDING = re.compile(r"(?<!un)embed(?!_out)|(?:^|\.)(?:w[tp]e|emb|shared|project_in)(?:\.|$)")


@dataclass
class RandomLayers(Stateful):
    """Train k layers drawn at random, and draw anew every ``every`` steps: s_l = 1 if l is drawn else 0.

    On step t, draw number d = t // every, each layer has the score hash(seed, d, l), and the k highest scores among
    the layers that have a gradient win: a uniform draw without replacement. The numbers are computed on the device by
    whole-number arithmetic, so they are the same on every rank, device and PyTorch version.

    LISA draws whole blocks and always trains embeddings and head; the same here, with ``layers="block"`` and patterns
    that match your model (leave ``lm_head`` out if it is tied to the embeddings):
    ``Pinned(RandomLayers(2, every=20), always=["*embed*", "*norm", "lm_head"])``.

    Args:
        k: a number of layers (int >= 1) or a share of all of them (float in (0, 1]); LISA's gamma.
        every: number of steps between draws; LISA's K.
        seed: a whole number in [0, 2^32).

    Raises:
        TypeError, ValueError: any other ``k``, ``every`` or ``seed``.

    Examples:
        >>> policy = RandomLayers(2, every=10, seed=1)
        >>> policy.bind(["a", "b", "c", "d"], torch.device("cpu"))
        >>> policy(torch.ones(4)).sum()
        tensor(2.)

    References:
        The rule of LISA (Pan et al. 2024, arXiv 2403.17919, algorithm 1).
    """

    k: int | float
    every: int
    seed: int = 0
    binary: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count(self.k)
        check_period("every", self.every)
        _check_seed(self.seed)

    def bind(self, names: Sequence[str], device: torch.device) -> None:
        """Start counting steps, or go on counting."""
        self._state["steps"] = self._steps(device)

    def __call__(self, norms: Tensor) -> Tensor:
        steps = bound(self._state.get("steps"), self)
        scores = _random_scores(self.seed, steps // self.every, norms).masked_fill(norms == 0, -1)
        steps.add_(1)
        return ((ranks(scores) < count_layers(self.k, norms.shape[0])) & (norms > 0)).float()


@dataclass
class Cyclic(Stateful):
    """Train one layer at a time, the next after ``every`` steps: s_l = 1 if it is l's turn else 0.

    With P layers that have a gradient, turn number d = t // every on step t belongs to the layer in place d mod P. If P
    changes during training, so do the places.

    BAdam goes by whole blocks and, in the authors' code, leaves embeddings, final norm and head untrained unless told
    otherwise; the same here, with ``layers="block"`` and patterns that match your model:
    ``Pinned(Cyclic(every=50), never=["*embed*", "*norm", "lm_head"])``.

    Args:
        every: number of steps of a turn; BAdam's K.
        order: counts places from the first layer (``"ascending"``), from the last (``"descending"``, the authors'
            default), or in an order shuffled anew in every cycle of P turns (``"random"``, the same on every rank and
            device).
        seed: of the random order, a whole number in [0, 2^32).

    Raises:
        TypeError, ValueError: any other ``every``, ``order`` or ``seed``.

    Examples:
        >>> policy = Cyclic(every=2)
        >>> policy.bind(["a", "b"], torch.device("cpu"))
        >>> [policy(torch.ones(2)).tolist() for _ in range(3)]
        [[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]

    References:
        The rule of BAdam (Luo et al. 2024, arXiv 2404.02827, algorithm 1).
    """

    every: int
    order: Literal["ascending", "descending", "random"] = "descending"
    seed: int = 0
    binary: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_period("every", self.every)
        if self.order not in ("ascending", "descending", "random"):
            raise ValueError(f"order must be 'ascending', 'descending' or 'random', not {self.order!r}")
        _check_seed(self.seed)

    def bind(self, names: Sequence[str], device: torch.device) -> None:
        """Start counting steps, or go on counting."""
        self._state["steps"] = self._steps(device)

    def __call__(self, norms: Tensor) -> Tensor:
        steps = bound(self._state.get("steps"), self)
        turn = steps // self.every
        places = (norms > 0).sum().clamp(min=1)
        if self.order == "random":
            scores = _random_scores(self.seed, turn // places, norms)
        else:
            index = torch.arange(norms.shape[0], device=norms.device)
            scores = index if self.order == "descending" else norms.shape[0] - index
        steps.add_(1)
        return ((ranks(scores.masked_fill(norms == 0, -1)) == turn % places) & (norms > 0)).float()


@dataclass
class LayerDecay:
    """Lower the learning rate from layer to layer towards the input: s_l = rate ** (top - depth of l).

    Embeddings have depth 0, block b (from 0) of a stack of N has depth b + 1, and what stands after the blocks (final
    norm, head) is the top, N + 1, with scale 1. All sublayers of a block share its depth. In an encoder-decoder each
    stack counts from its own top, and embeddings stand below the longer one. N is taken from the layers the optimizer
    has, by name; a head that is itself a numbered list (``classifier.2``) counts as a stack, so pin it at 1 with
    ``Pinned(LayerDecay(rate), always="classifier.*")``.

    Args:
        rate: the factor from one depth to the next, in (0, 1]; 0.65 to 0.9 are usual.

    Raises:
        ValueError: unless 0 < rate <= 1; or, when bound to an optimizer, none of its layers is in a list of blocks.

    Examples:
        >>> policy = LayerDecay(0.5)
        >>> policy.bind(["embed_tokens", "layers.0", "layers.1", "norm"], torch.device("cpu"))
        >>> policy(torch.ones(4))
        tensor([0.1250, 0.2500, 0.5000, 1.0000])

    References:
        The layer-wise decay of ELECTRA (Clark et al. 2020, arXiv 2003.10555, appendix B) and BEiT (Bao et al. 2022,
        arXiv 2106.08254), with the depths of BEiT's code.
    """

    rate: float
    constant: ClassVar[bool] = True
    _scales: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate must be in (0, 1], not {self.rate}")

    def bind(self, names: Sequence[str], device: torch.device) -> None:
        """Compute the scale of each of the layers `names`."""
        places = [locate(name) for name in names]
        blocks: dict[str, int] = {}
        for stack, index, _ in places:
            if index is not None:
                blocks[stack] = max(blocks.get(stack, 0), index + 1)
        if not blocks:
            raise ValueError(
                f"LayerDecay needs layers in a list of blocks, such as 'model.layers.0'; got {list(names)}"
            )
        embeddings = max(blocks.values()) + 1

        def below_top(stack: str, index: int | None, part: str) -> int:
            if index is not None:
                return blocks[stack] - index
            return embeddings if _EMBEDDING.search(part) else 0

        self._scales = torch.tensor(
            [self.rate ** below_top(*place) for place in places], dtype=torch.float32, device=device
        )

    def __call__(self, norms: Tensor) -> Tensor:
        return bound(self._scales, self)


def _check_seed(seed: int) -> None:
    if not isinstance(seed, int) or not 0 <= seed <= _WORD:
        raise ValueError(f"seed must be a whole number in [0, 2^32), not {seed!r}")


def _random_scores(seed: int, draw: Tensor, norms: Tensor) -> Tensor:
    """A random whole number in [0, 2^32) for each layer, int64 (L,), all different, from `seed` and `draw` (1,)."""
    layer = torch.arange(norms.shape[0], device=norms.device)
    return _mix(_mix((_mix(seed) + draw) & _WORD) ^ layer)


def _mix(x: _Whole) -> _Whole:
    """A hash of 32-bit words, one to one, by Wellons' hash prospector (nullprogram.com/blog/2018/07/31)."""
    x = (x + 0x9E3779B9) & _WORD  # else 0 would stay 0
    x = x ^ (x >> 16)
    x = (x * 0x21F0AAAD) & _WORD
    x = x ^ (x >> 15)
    x = (x * 0x735A2D97) & _WORD
    return x ^ (x >> 15)
