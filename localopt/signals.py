"""Gradients (and weights) -> numbers a layer, the signals a policy decides by.

For a layer l whose parameters have gradients g_1 .. g_k, its gradient norm is

    N_l = sqrt(||g_1||^2 + ... + ||g_k||^2)

and the other signals (see :class:`LayerSignals`) are made of such sums too. Sums over the tensors of a layer are taken
by one padded gather: no atomic additions, so every process that holds equal gradients gets equal bits and chooses the
same layers. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from localopt.steps.sharding import Sharding
from localopt.steps.triton import best_sums, wanted
from localopt.sums import READS, Sources, squares

SIGNALS = (*READS, "size", "loss")
_ROOTS = ("norm", "weight", "drift", "momentum")  # the signals that are roots of their sums


@dataclass(frozen=True)
class LayerSignals:
    """What a policy may know of a step: one float32 tensor (L,) a signal, on the device of the parameters.

    A policy that declares ``needs = ("l1", "weight")`` is called with these signals; others are not taken, and asking
    for one raises AttributeError.

    With g the gradients of a layer's parameters, w their weights, w0 those training began with, m their momentum:

    - ``norm`` ||g||_2 and ``l1`` ||g||_1; ``weight`` ||w||_2; ``drift`` ||w - w0||_2; ``momentum`` ||m||_2
    - ``pullback`` <g, w - w0>: positive where, by the gradient, the layer has gone too far
    - ``agreement`` <g, m>: positive where the step goes on in the direction of those before it
    - ``size``: elements of the layer's parameters; ``loss``: the batch's, the same number for every layer

    Attributes:
        values: the signals by name.

    Examples:
        >>> signals = LayerSignals({"norm": torch.tensor([3.0, 4.0]), "weight": torch.tensor([1.0, 2.0])})
        >>> signals.norm / signals.weight
        tensor([3., 2.])
    """

    values: dict[str, Tensor] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("_") or name == "values":
            raise AttributeError(name)
        if name not in self.values:
            known = f"declare it: needs = ({name!r}, ...)" if name in SIGNALS else f"signals are {', '.join(SIGNALS)}"
            raise AttributeError(f"no signal {name!r} was taken in this step: {known}")
        return self.values[name]

    def harmless(self, counts: Tensor) -> LayerSignals:
        """Return ones in place of everything where ``counts`` (0-d or (L,), bool) is False."""
        return LayerSignals({name: torch.where(counts, value, 1.0) for name, value in self.values.items()})

    def without(self, layers: Tensor) -> LayerSignals:
        """Return zeros for some layers (a bool tensor (L,)), as if they had no gradient."""
        return LayerSignals({name: value.masked_fill(layers, 0.0) for name, value in self.values.items()})


def layer_norms(gradients: Sequence[Tensor | None], layout: Tensor, sharding: Sharding | None = None) -> Tensor:
    """Return one gradient norm a layer, in one pass over the gradients.

    Args:
        gradients: T gradients; ``None`` counts as zero.
        layout: which of them make up which layer, as :func:`localopt.steps.layout.segments` lays it out; the norms come
            out on its device.
        sharding: given if gradients are what this process holds of larger ones; every process then has to call this.

    Returns:
        A float32 tensor of shape (L,), on the device of ``layout``.

    Examples:
        >>> layer_norms([torch.tensor([3.0]), None, torch.tensor([4.0])], torch.tensor([[0, 2], [1, 3]]))
        tensor([5., 0.])
    """
    return _by_layer(squares(gradients, layout.device).unsqueeze(0), layout, sharding).squeeze(0).sqrt().float()


def layer_signals(
    names: Sequence[str], sources: Sources, layout: Tensor, sharding: Sharding | None = None
) -> dict[str, Tensor]:
    """Return signals of every layer, all taken in one pass over what they are taken of.

    Args:
        names: which, of :data:`localopt.sums.READS`.
        sources: gradients, weights, ... as far as these need them, of T parameters; what is None counts as zero.
        layout, sharding: as for :func:`layer_norms`.

    Returns:
        By name, float32 tensors of shape (L,) on the device of ``layout``.

    Examples:
        >>> sources = {"gradient": [torch.tensor([3.0]), torch.tensor([4.0])], "weight": [torch.ones(1), torch.ones(1)]}
        >>> layer_signals(["norm", "weight"], sources, torch.tensor([[0, 1]]))["weight"]
        tensor([1.4142])
    """
    if tuple(names) == ("norm",) and not wanted():
        return {"norm": layer_norms(sources["gradient"], layout, sharding)}
    layers = _by_layer(best_sums(names, sources, layout.device), layout, sharding)
    return {
        name: (row.clamp(min=0).sqrt() if name in _ROOTS else row).float()
        for name, row in zip(names, layers.unbind(), strict=True)
    }


def _by_layer(found: Tensor, layout: Tensor, sharding: Sharding | None) -> Tensor:
    """Add up the sums (S, T + 1) of all parameters over those of each layer, and over processes: (S, L)."""
    if sharding is not None:
        found = found * sharding.weights(found.device, found.dtype)
    layers = found.index_select(1, layout.flatten()).view(len(found), *layout.shape).sum(dim=2)
    return layers if sharding is None else sharding.sum(layers)


def clip_factor(norms: Tensor, scales: Tensor, max_norm: float) -> Tensor:
    """Return what ``torch.nn.utils.clip_grad_norm_`` over the layers to be updated would multiply gradients by.

    Args:
        norms, scales: float32 tensors of shape (L,); layers of scale 0 do not count.
        max_norm: the norm their gradients together are brought down to.

    Returns:
        A 0-d float32 tensor, at most 1.

    Examples:
        >>> clip_factor(torch.tensor([3.0, 4.0, 100.0]), torch.tensor([1.0, 1.0, 0.0]), 2.5)
        tensor(0.5000)
    """
    total = torch.where(scales > 0, norms, 0.0).square().sum().sqrt()
    return (max_norm / (total + 1e-6)).clamp(max=1.0)


def reference_layer_norms(gradients: Sequence[Tensor | None], layer_of: Sequence[int], count: int) -> Tensor:
    """Say the same as :func:`layer_norms` in the plainest way, in float64 on the CPU: what the tests compare with."""
    squares = torch.zeros(count, dtype=torch.float64)
    for gradient, layer in zip(gradients, layer_of, strict=True):
        if gradient is not None:
            values = gradient.to_dense() if gradient.is_sparse else gradient
            squares[layer] += values.abs().cpu().double().square().sum()
    return squares.sqrt()
