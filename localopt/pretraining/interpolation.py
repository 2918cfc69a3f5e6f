"""Start and end of a training -> a model on the way between them, as far as a forgetting budget allows.

With w0 the weights training began with, w those it ended with, and a share a in [0, 1] of the way,

    w(a) = w0 + a (w - w0)

Along this line of fine-tuning both what was learned and what was forgotten grow from 0, so one training gives a whole
path of models: WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903); with a share a layer, LiNeS (Wang et al. 2024, arXiv
2410.17146).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, nn

from localopt.layers import Layers, partition

Share: TypeAlias = float | Mapping[str, float]


def interpolate(model: nn.Module, start: Mapping[str, Tensor], share: Share, *, layers: Layers = "sublayer") -> None:
    """Move a model's weights, in place, to a share of the way from ``start`` to where they are.

    Share 0 is the start and share 1 the present, both bit for bit; in between the sum is taken in float32 (float64 for
    weights of that dtype) and rounded once. Weights that the start does not have, and those that equal it, stay as they
    are. Floating-point buffers in the start (the means of a batch norm) move as weights do.

    Args:
        model: any module; weights may be tied, frozen, in any floating dtype.
        start: the weights by name, as ``state_dict()`` or a copy of ``named_parameters()`` gives them.
        share: in [0, 1]: one for everything, or one for each layer that moves, by the layer's name.
        layers: what a layer is, where there is a share a layer; see :func:`localopt.partition`.

    Raises:
        ValueError: a share outside [0, 1]; a start that is the model's own tensors, or of another model: a name it does
            not have, another shape, or a weight that requires a gradient missing; layers without a share, or shares
            without a layer. The model is unchanged.

    Examples:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> start = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        >>> end = nn.init.constant_(model.weight, 3.0)
        >>> interpolate(model, {"weight": torch.ones(1, 1)}, 0.25)
        >>> model.weight.item()
        1.5
    """
    pairs = _pairs(model, start)
    present = {name: tensor.detach() for name, (tensor, _) in pairs.items()}
    _move(present, pairs, _shares(model, pairs, share, layers))


@dataclass(frozen=True)
class WithinBudget:
    """What :func:`~localopt.share_within` found.

    Attributes:
        share: how far the model was moved from the start, in [0, 1]; it is there now.
        path: every (share, score) that was evaluated, from the start (0) to the end (1).
        rise: what was allowed.
        end: the weights of the end by name, where they differ from the start: ``interpolate(model, found.end, 0)``
            goes back there, bit for bit.
        tried: the shares of the path in the order they were evaluated in.

    Examples:
        >>> found = WithinBudget(0.5, ((0.0, 3.0), (0.5, 3.25), (1.0, 4.0)), rise=0.25, end={})
        >>> found.start_score, found.score
        (3.0, 3.25)
    """

    share: float
    path: tuple[tuple[float, float], ...]
    rise: float
    end: Mapping[str, Tensor] = field(repr=False, compare=False)
    tried: tuple[float, ...] = ()

    @property
    def start_score(self) -> float:
        """The score of the start."""
        return self.path[0][1]

    @property
    def score(self) -> float:
        """The score at the share that was chosen: at most ``rise`` above that of the start."""
        return dict(self.path)[self.share]


def share_within(
    model: nn.Module,
    start: Mapping[str, Tensor],
    score: Callable[[nn.Module], float],
    rise: float,
    *,
    resolution: float = 1 / 64,
) -> WithinBudget:
    """Move a model to the largest share of the way from ``start`` at which its score rose by at most ``rise``.

    Both ends are evaluated first. If the end is within the budget the model stays there; otherwise bisection, between a
    share that is within and one that is not, until they are ``resolution`` apart. The share returned was evaluated and
    is within the budget, whatever the shape of the path; where the score is not monotone along it, a larger share may
    be within the budget too. If no share that was tried is, the model ends at the start.

    Needs memory for one copy of the weights that changed. If ``score`` raises, the model is left at the end.

    Args:
        model: as training left it; changed in place.
        start: as for :func:`interpolate`.
        score: what must not rise, of the model as it then is: the loss in nats a token on text it should keep, that was
            used neither for training nor for choosing layers.
        rise: the forgetting budget, above 0, in the units of the score. The score of the end or of a share may be NaN
            or infinite, which is beyond any budget.
        resolution: how exactly the share is found, in (0, 1]; 1/64 takes six evaluations beside the ends.

    Returns:
        The share, every share that was tried with its score, and the weights of the end.

    Raises:
        ValueError: a budget or resolution that cannot be; a start of another model; a score of the start that is not
            finite.

    Examples:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(model.weight, 2.0)
        >>> found = share_within(model, {"weight": torch.zeros(1, 1)}, lambda m: m.weight.item() ** 2, rise=1.0)
        >>> found.share, model.weight.item(), found.score
        (0.5, 1.0, 1.0)
    """
    check_rise(rise)
    if not 0 < resolution <= 1:
        raise ValueError(f"the resolution of a share must be in (0, 1], not {resolution}")
    pairs = _pairs(model, start)
    end = {name: tensor.detach().clone() for name, (tensor, _) in pairs.items()}
    seen: dict[float, float] = {}

    def within(share: float) -> bool:
        _move(end, pairs, dict.fromkeys(pairs, share))
        seen[share] = float(score(model))
        return share == 0 or seen[share] - seen[0.0] <= rise  # False for NaN

    low, high = 0.0, 1.0
    try:
        within(low)
        if not math.isfinite(seen[low]):
            raise ValueError(f"the score of the start is {seen[low]}, so no rise can be told: give a score it has")
        if within(high):
            low = high
        while high - low > resolution:
            middle = (low + high) / 2
            low, high = (middle, high) if within(middle) else (low, middle)
    except BaseException:
        _move(end, pairs, dict.fromkeys(pairs, 1.0))
        raise
    _move(end, pairs, dict.fromkeys(pairs, low))
    return WithinBudget(low, tuple(sorted(seen.items())), rise, end, tuple(seen))


def check_rise(rise: float) -> None:
    """Raise ValueError unless this can be a forgetting budget."""
    if not 0 < rise < math.inf:
        raise ValueError(f"the forgetting budget must be a number of nats a token above 0, not {rise}")


Pairs: TypeAlias = dict[str, tuple[Tensor, Tensor]]


def _pairs(model: nn.Module, start: Mapping[str, Tensor]) -> Pairs:
    """Name -> (weight of the model, weight of the start), once for what is tied, where they may differ.

    Raises ValueError where the start is that of another model.
    """
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    unknown = sorted(start.keys() - {name for name, _ in named})
    if unknown:
        raise ValueError(f"the start has weights the model does not have: {_some(unknown)}: give the same model's")
    first: dict[int, str] = {}  # the name of a weight that has several, by its id
    pairs: Pairs = {}
    for name, tensor in named:
        known = first.setdefault(id(tensor), name)
        if name not in start or not tensor.is_floating_point():
            continue
        begin = start[name].detach()
        _check_begin(name, tensor, begin)
        if known in pairs and not torch.equal(pairs[known][1], begin):
            raise ValueError(
                f"{known} and {name} are one weight of the model, but not of the start: tie them there too"
            )
        pairs[known] = tensor, begin
    missing = [name for name, weight in model.named_parameters() if weight.requires_grad and name not in pairs]
    if missing:
        raise ValueError(f"the start lacks weights that may have been trained: {_some(missing)}: give them too")
    return {name: pair for name, pair in pairs.items() if not _same(*pair)}


def _check_begin(name: str, tensor: Tensor, begin: Tensor) -> None:
    if begin.shape != tensor.shape:
        raise ValueError(
            f"the start of {name} has shape {tuple(begin.shape)}, the model {tuple(tensor.shape)}: give that model's"
        )
    if tensor.numel() and tensor.device.type != "meta" and begin.data_ptr() == tensor.data_ptr():
        raise ValueError(
            f"the start of {name} is the model's own tensor, which training changes too: keep a copy of it before "
            "training, {name: weight.detach().clone() for name, weight in model.named_parameters()}"
        )


def _same(tensor: Tensor, begin: Tensor) -> bool:
    """Whether two tensors are equal bit for bit (0. and -0. are not), so that nothing lies between them."""
    found, begin = tensor.detach(), begin.to(tensor.device, tensor.dtype)
    return torch.equal(found, begin) and torch.equal(found.signbit(), begin.signbit())


def _shares(model: nn.Module, pairs: Pairs, share: Share, layers: Layers) -> dict[str, float]:
    """The share of every weight."""
    if not isinstance(share, Mapping):
        _check_share(share)
        return dict.fromkeys(pairs, float(share))
    for layer, one in share.items():
        _check_share(one, f" of {layer}")
    layer_of = partition((name for name, _ in model.named_parameters()), layers)
    moving = {name: layer_of[name] if name in layer_of else _owner(name, layer_of) for name in pairs}
    without = sorted(set(moving.values()) - share.keys())
    unknown = sorted(share.keys() - set(layer_of.values()))
    if without or unknown:
        raise ValueError(
            f"shares are given by layer; layers that moved and have none: {_some(without)}; shares of no layer of the "
            f"model: {_some(unknown)}"
        )
    return {name: float(share[layer]) for name, layer in moving.items()}


def _owner(buffer: str, layer_of: Mapping[str, str]) -> str:
    """The layer of a buffer: that of a parameter of the same module."""
    module = buffer.rpartition(".")[0]
    beside = (layer for name, layer in layer_of.items() if name.rpartition(".")[0] == module)
    found = next(beside, None)
    if found is None:
        raise ValueError(f"{buffer} is a buffer of a module without parameters, so of no layer: leave it out of start")
    return found


@torch.no_grad()
def _move(end: Mapping[str, Tensor], pairs: Pairs, shares: Mapping[str, float]) -> None:
    for name, (tensor, begin) in pairs.items():
        share = shares[name]
        if share == 1:
            tensor.copy_(end[name])
        elif share == 0:
            tensor.copy_(begin)
        else:
            wide = torch.promote_types(tensor.dtype, torch.float32)
            tensor.copy_(torch.lerp(begin.to(tensor.device, wide), end[name].to(wide), share))


def _check_share(share: float, of: str = "") -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"the share{of} of the way must be in [0, 1], not {share}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "none"
