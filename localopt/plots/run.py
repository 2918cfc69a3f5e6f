"""History of a run -> a picture of it: layers times steps, the gradient norms and what was trained."""

from __future__ import annotations

import math

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure

from localopt.steps.history import History

_MOST_NAMES = 40


def run_picture(history: History, *, title: str = "") -> Figure:
    """Draw what a run trained: a row a layer, time from left to right.

    Above stand the gradient norms relative to the mean of their step, below the scales of the learning rate (white is
    frozen). Where no norms were taken the scales stand alone, and the norms where every layer trained at the full rate.

    Args:
        history: what ``optimizer.history(every=n)`` returned.
        title: above the picture.

    Raises:
        ValueError: nothing has been noted yet.

    Examples:
        >>> history = History(every=1, names=("h.0.attention", "h.0.mlp"))
        >>> history.add(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0]))
        >>> len([axes for axes in run_picture(history).axes if axes.images])
        2
    """
    steps, norms, scales = history.steps, history.norms, history.scales
    if not steps:
        raise ValueError("the history has no step yet: ask for it before training, optimizer.history(every=n)")
    rows = [("learning rate scale", scales, "Blues", 0.0, max(1.0, float(scales.nan_to_num().max())))]
    if not norms.isnan().all():
        rows = [] if bool((scales.nan_to_num(1.0) == 1).all()) else rows
        mean = norms.nanmean(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        relative = (norms / mean).clamp(min=2**-4, max=2**4).log2()
        rows.insert(0, ("gradient norm over its mean (powers of 2)", relative, "RdBu_r", -4.0, 4.0))
    height = min(12.0, 1.0 + 0.14 * len(history.names))
    figure = Figure(figsize=(8.0, height * len(rows) + 0.5), layout="constrained")
    shown = figure.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
    last = steps[-1] + history.every
    for axes, (label, values, colors, low, high) in zip(shown, rows, strict=True):
        picture = axes.imshow(
            values.T.numpy(),
            cmap=colormaps[colors],
            vmin=low,
            vmax=high,
            aspect="auto",
            interpolation="nearest",
            extent=(steps[0] - 0.5, last - 0.5, len(history.names) - 0.5, -0.5),
        )
        stride = math.ceil(len(history.names) / _MOST_NAMES)
        axes.set_yticks(range(0, len(history.names), stride), history.names[::stride], fontsize=6, parse_math=False)
        figure.colorbar(picture, ax=axes, label=label)
    shown[-1].set_xlabel("step")
    if title:
        figure.suptitle(title, fontsize=9, parse_math=False)
    return figure
