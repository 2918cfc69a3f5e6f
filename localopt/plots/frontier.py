"""Runs -> a picture of learning against forgetting."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from localopt.outside import NO_MATH, plain

_INK = "#333333"
# Okabe and Ito's palette, told apart with any kind of color vision; its yellow is too light for a line on white.
_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^v"  # the next one once the palette is used up
_DISTANCES = (6, 12, 20, 32, 46, 64)  # points from the end of a run to its label
_ANGLES = (0, 45, 315, 180, 135, 225, 90, 270, 22, 338, 158, 202, 67, 113, 247, 293)  # degrees, the best first

_Array: TypeAlias = NDArray[np.float64]


class Run(NamedTuple):
    """Where one run ended, and optionally the points it came through."""

    name: str
    forgetting: float
    uptake: float
    path: Sequence[tuple[float, float]] = ()
    """Earlier (forgetting, uptake) of the run, such as its epochs, in order; the end itself is not repeated."""
    marks: Sequence[str] = ()
    """What stands at the points, such as numbers of epochs; at the last ones where marks are fewer."""


def learning_forgetting(
    points: Iterable[Run | tuple[str, float, float]],
    *,
    title: str = "",
    forgetting: str = "forgetting (less is better)",
    uptake: str = "uptake (more is better)",
) -> Figure:
    """Draw runs with what they forgot to the right and what they learned upwards; the model before them is at 0, 0.

    Args:
        points: the runs, in the order of their colors. Each is named beside its end, where the name covers nothing.
            Marks stand beside their points where there is room.
        title: above the picture.
        forgetting: name of the horizontal axis.
        uptake: name of the vertical axis.

    Raises:
        ValueError: there are no runs, a number is not finite, or a run has more marks than points (the message names
            the run).

    Examples:
        >>> runs = [Run("AdamW", 3.3, 0.99, path=[(1.0, 0.4)]), Run("localized", 0.2, 0.91)]
        >>> figure = learning_forgetting(runs)
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['AdamW', 'localized']
    """
    runs = [Run(*point) for point in points]
    _check(runs)
    figure = Figure((6, 4.4), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(0, color="#cccccc", linewidth=0.8, zorder=0)
    axes.axvline(0, color="#cccccc", linewidth=0.8, zorder=0)
    for number, run in enumerate(runs):
        color, marker = _PALETTE[number % len(_PALETTE)], _MARKERS[number // len(_PALETTE) % len(_MARKERS)]
        xs, ys = zip(*_points(run), strict=True)
        axes.plot(xs, ys, color=color, linewidth=1.2, alpha=0.7, marker=marker, markersize=3)
        axes.plot(xs[-1], ys[-1], color=color, marker=marker, markersize=7, markeredgecolor="white", linestyle="")
    axes.margins(0.12)
    axes.set_xlabel(plain(forgetting), color=_INK, **NO_MATH)
    axes.set_ylabel(plain(uptake), color=_INK, **NO_MATH)
    axes.set_title(plain(title), fontsize=10, loc="left", color=_INK, **NO_MATH)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(colors=_INK, labelsize=8, color="#999999")
    colors = [_PALETTE[number % len(_PALETTE)] for number in range(len(runs))]
    figure.draw_without_rendering()  # lays the axes out, so that data and labels can be compared in pixels
    _label(axes, runs, colors, _mark(axes, runs, colors))
    return figure


def _check(runs: Sequence[Run]) -> None:
    if not runs:
        raise ValueError("there are no runs to draw")
    for run in runs:
        if not all(math.isfinite(value) for point in _points(run) for value in point):
            raise ValueError(f"run {run.name!r} has a value that is not finite: {_points(run)}")
        if len(run.marks) > len(_points(run)):
            raise ValueError(f"run {run.name!r} has {len(run.marks)} marks for {len(_points(run))} points")


def _points(run: Run) -> list[tuple[float, float]]:
    return [*run.path, (run.forgetting, run.uptake)]


def _mark(axes: Axes, runs: Sequence[Run], colors: Sequence[str]) -> list[Bbox]:
    """Set marks above their points, the last points first, each where it covers no other; their boxes."""
    boxes: list[Bbox] = []
    for run, color in zip(runs, colors, strict=True):
        for mark, point in zip(reversed(run.marks), reversed(_points(run)), strict=False):
            style = _style(color, 6) | {"ha": "center", "textcoords": "offset points"}
            text = axes.annotate(plain(mark), point, (0, 4), **style, **NO_MATH)
            box = text.get_window_extent()
            if any(box.overlaps(other) for other in boxes):
                text.remove()
            else:
                boxes.append(box)
    return boxes


def _label(axes: Axes, runs: Sequence[Run], colors: Sequence[str], taken: Sequence[Bbox]) -> None:
    """Name every run beside its end. Each label takes the place that covers least, then again, knowing the others.

    ``taken`` are boxes where no name should be.
    """
    pixel = axes.get_figure().dpi / 72  # type: ignore[union-attr]
    lines = [axes.transData.transform(_points(run)) for run in runs]
    ends = np.stack([line[-1] for line in lines])
    ink = np.concatenate([_sampled(line, 4 * pixel) for line in lines])
    labels = [
        axes.annotate(plain(run.name), (0, 0), **_style(color), **NO_MATH)
        for run, color in zip(runs, colors, strict=True)
    ]
    extents = [label.get_window_extent() for label in labels]
    frame = axes.get_window_extent()
    boxes: dict[int, Bbox] = {}
    for _ in range(3):
        for number, extent in enumerate(extents):
            others = [*taken, *(box for other, box in boxes.items() if other != number)]
            places = [
                (distance, _place(ends[number], extent, angle, distance * pixel))
                for distance in _DISTANCES
                for angle in _ANGLES
            ]
            costs = [
                distance**2 / 30 + rank % len(_ANGLES) / 10 + _cost(box, number, others, ink, ends, frame, pixel)
                for rank, (distance, box) in enumerate(places)
            ]
            boxes[number] = places[int(np.argmin(costs))][1]
    for number, (label, run) in enumerate(zip(labels, runs, strict=True)):
        _put(label, (run.forgetting, run.uptake), (boxes[number].min - ends[number]) / pixel)
        if float(_gap(boxes[number], ends[number : number + 1])[0]) > 15 * pixel:
            _connect(axes, ends[number], boxes[number], colors[number])


def _style(color: str, size: float = 8) -> dict[str, Any]:
    red, green, blue = (0.75 * part for part in to_rgb(color))  # darker: thin letters on white need the contrast
    halo = withStroke(linewidth=2.5, foreground="white")
    style = {"fontsize": size, "color": (red, green, blue), "path_effects": [halo]}
    return {**style, "va": "bottom", "in_layout": False}


def _sampled(line: _Array, spacing: float) -> _Array:
    """Points along a line, at most ``spacing`` pixels apart, shape (N, 2)."""
    parts = [line[-1:]]
    for start, stop in pairwise(line):
        steps = np.linspace(0, 1, 2 + int(np.hypot(*(stop - start)) / spacing))
        parts.append(start + steps[:, None] * (stop - start))
    return np.concatenate(parts)


def _place(end: _Array, extent: Bbox, angle: float, distance: float) -> Bbox:
    """The box of a label that stands ``distance`` away from the end of its run, in the direction of ``angle``."""
    right, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    # At 0 degrees the middle of the label's left side is nearest to the end, at 90 the middle of its lower side.
    x = end[0] + right * distance + (right - 1) * extent.width / 2
    y = end[1] + up * distance + (up - 1) * extent.height / 2
    return Bbox.from_bounds(float(x), float(y), extent.width, extent.height)


def _cost(
    box: Bbox, number: int, others: Sequence[Bbox], ink: _Array, ends: _Array, frame: Bbox, pixel: float
) -> float:
    """How bad a place is: labels must be on the picture and apart, should leave ends visible, and may cross lines."""
    outside = not (frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1)
    covered = sum(box.padded(pixel).overlaps(other) for other in others)
    gaps = _gap(box, ends)
    hidden = int((gaps < 4 * pixel).sum())
    mistaken = bool((np.delete(gaps, number) < gaps[number]).any())  # nearer to the end of another run
    crossed = int((_gap(box, ink) < pixel).sum())
    return 1000.0 * outside + 1000.0 * covered + 200.0 * hidden + 30.0 * mistaken + crossed


def _gap(box: Bbox, points: _Array) -> _Array:
    """Distance in pixels from each point (N, 2) to the box, 0 inside it."""
    beyond = np.maximum(np.maximum(box.min - points, points - box.max), 0)
    gap: _Array = np.hypot(beyond[:, 0], beyond[:, 1])
    return gap


def _put(label: Annotation, at: tuple[float, float], offset: _Array) -> None:
    label.xy = at
    label.anncoords = "offset points"
    label.xyann = (float(offset[0]), float(offset[1]))


def _connect(axes: Axes, end: _Array, box: Bbox, color: str) -> None:
    nearest = np.clip(end, box.min, box.max)
    xs, ys = axes.transData.inverted().transform([end, nearest]).T
    axes.plot(xs, ys, color=color, linewidth=0.5, zorder=1, scalex=False, scaley=False)
