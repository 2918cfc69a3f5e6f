"""Layers -> a picture of one value a layer: blocks times sublayers."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from localopt.layers import locate
from localopt.outside import NO_MATH, plain

# Told apart with any kind of color vision, white in the middle; without the darkest ends, on which no dot shows.
_COLORS = ListedColormap(colormaps["RdBu_r"](np.linspace(0.08, 0.92, 256)))
_INK = "#333333"
_SMALL, _NORMAL = 8, 9  # points
_GAP = 0.5  # cells between a stack and what stands beside it


_Color: TypeAlias = tuple[float, float, float]


@dataclass(frozen=True)
class _Column:
    """One block (``row name -> layer``), or one layer outside the blocks (``None -> layer``)."""

    left: float
    layers: dict[str | None, str]
    index: int | None


@dataclass
class _Stack:
    """The columns of one list of blocks, or those that stand between two of them (``name`` is empty)."""

    name: str
    columns: list[_Column] = field(default_factory=list)


def heat_map(
    values: Mapping[str, float],
    *,
    center: float,
    marked: Collection[str] = (),
    mark: str = "trained",
    title: str = "",
    label: str = "",
) -> Figure:
    """Draw one value a layer as blocks (left to right) times sublayers (top to bottom).

    Layers outside the blocks stand beside them as tall cells, in the order of ``values``; several stacks of blocks
    (encoder and decoder) stand side by side.

    Args:
        values: layer name -> value, in the order of the model's parameters; values that are not finite are gray.
        center: the value drawn in the neutral color, such as the mean.
        marked: layers to mark with a dot, such as those that are trained.
        mark: what the dot means.
        title: above the picture.
        label: what the values are, beside the color bar.

    Raises:
        ValueError: there are no values, or ``marked`` names a layer that has none.

    Examples:
        >>> figure = heat_map({"embed": 1.0, "h.0.attention": 0.5, "h.0.mlp": 2.0}, center=1.2, marked=["h.0.mlp"])
        >>> len(figure.axes[0].patches)
        3
    """
    unknown = sorted(set(marked).difference(values))
    if not values or unknown:
        raise ValueError(f"no values for the marked layers {unknown}" if unknown else "there are no values to draw")
    rows = _rows(values)
    stacks, width = _stacks(values)
    cell = min(0.5, max(0.16, 9 / width))  # inches
    height = max(cell, 0.9 / len(rows))
    figure = Figure((max(width * cell + 2.4, 3.6), len(rows) * height + 1.5), layout="constrained")
    axes = figure.add_subplot(xlim=(0, width), ylim=(len(rows), 0))
    colors = _colors(values.values(), center)
    dots = min(5.0, 14 * cell)  # points
    for stack in stacks:
        for column in stack.columns:
            for row, layer in column.layers.items():
                top, tall = (0, len(rows)) if row is None else (rows.index(row), 1)
                color = _face(colors, values[layer])
                box = (column.left, top), 1, tall
                axes.add_patch(Rectangle(*box, facecolor=color, edgecolor="#999999", linewidth=0.5, clip_on=False))
                if layer in marked:
                    dot = _INK if _is_light(color) else "white"
                    axes.plot(column.left + 0.5, top + tall / 2, "o", color=dot, markersize=dots, markeredgewidth=0)
    _name(axes, stacks, rows)
    _legend(figure, axes, colors, center, label, mark if marked else "")
    if title:
        axes.set_title(plain(title), fontsize=_NORMAL + 1, loc="left", color=_INK, **NO_MATH)
    return figure


def _rows(layers: Iterable[str]) -> list[str]:
    """The parts that blocks have, in forward order: a new one stands behind the part it follows in its block."""
    rows: list[str] = []
    last: tuple[str, int | None, str] | None = None
    for layer in layers:
        stack, index, part = locate(layer)
        if index is not None and part not in rows:
            follows = last is not None and last[:2] == (stack, index)
            rows.insert(rows.index(last[2]) + 1 if follows and last is not None else len(rows), part)
        last = (stack, index, part)
    return rows or [""]


def _stacks(layers: Iterable[str]) -> tuple[list[_Stack], float]:
    """Columns from left to right, and where the last one ends (in cells)."""
    stacks: list[_Stack] = []
    right = -_GAP
    for layer in layers:
        name, index, part = locate(layer)
        known = [stack for stack in stacks if index is not None and stack.name == name]
        if known and known[0].columns[-1].index == index:
            known[0].columns[-1].layers[part] = layer
            continue
        if not stacks or stacks[-1].name != name:
            stacks.append(_Stack(name))
            right += _GAP
        stacks[-1].columns.append(_Column(right, {part if index is not None else None: layer}, index))
        right += 1
    return stacks, right


def _colors(values: Iterable[float], center: float) -> ScalarMappable:
    finite = [value for value in values if math.isfinite(value)]
    spread = max((abs(value - center) for value in finite), default=0.0) or 1.0
    # A little on both sides, so that the center is neutral even where all values lie on one side of it.
    low, high = min([*finite, center - spread / 10]), max([*finite, center + spread / 10])
    return ScalarMappable(TwoSlopeNorm(center, low, high), _COLORS)


def _face(colors: ScalarMappable, value: float) -> _Color:
    if not math.isfinite(value):
        return 0.75, 0.75, 0.75
    red, green, blue, _ = colors.to_rgba(np.array([value]))[0]
    return float(red), float(green), float(blue)


def _is_light(color: _Color) -> bool:
    red, green, blue = color
    return 0.3 * red + 0.6 * green + 0.1 * blue > 0.45


def _name(axes: Axes, stacks: Sequence[_Stack], rows: Sequence[str]) -> None:
    ticks: dict[float, str] = {}
    for stack in stacks:
        every = 1 if len(stack.columns) <= 12 else 5
        for column in stack.columns:
            if column.index is None:
                (layer,) = column.layers.values()
                axes.annotate(
                    plain(_short(layer)),
                    (column.left + 0.5, len(rows)),
                    (0, -6),
                    textcoords="offset points",
                    rotation=90,
                    ha="center",
                    va="top",
                    fontsize=_SMALL,
                    color=_INK,
                    **NO_MATH,
                )
            elif column.index % every == 0:
                ticks[column.left + 0.5] = str(column.index)
        if stack.name:
            middle = (stack.columns[0].left + stack.columns[-1].left + 1) / 2
            axes.annotate(
                plain(stack.name),
                (middle, len(rows)),
                (0, -20),
                textcoords="offset points",
                ha="center",
                va="top",
                fontsize=_SMALL,
                color=_INK,
                **NO_MATH,
            )
    axes.set_xticks(list(ticks), list(ticks.values()), fontsize=_SMALL, color=_INK)
    named = [(row + 0.5, name or "block") for row, name in enumerate(rows) if any(stack.name for stack in stacks)]
    axes.set_yticks([y for y, _ in named], [plain(name) for _, name in named], fontsize=_SMALL, color=_INK, **NO_MATH)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _short(layer: str) -> str:
    parts = layer.split(".")
    return ".".join(parts[-2:] if parts[-1] in ("weight", "bias") else parts[-1:])


def _legend(figure: Figure, axes: Axes, colors: ScalarMappable, center: float, label: str, mark: str) -> None:
    bar = figure.colorbar(colors, ax=axes, aspect=12, pad=0.02, fraction=0.05)
    low, high = colors.get_clim()
    bar.set_ticks(
        [low, center, high], labels=[f"{low:.3g}", f"{center:.3g}", f"{high:.3g}"], fontsize=_SMALL, color=_INK
    )
    bar.set_label(plain(label), fontsize=_SMALL, color=_INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    if mark:
        dot = Line2D([], [], marker="o", linestyle="", color=_INK, markersize=4, label=mark)
        axes.legend(
            handles=[dot],
            loc="lower right",
            bbox_to_anchor=(1, 1),
            frameon=False,
            fontsize=_SMALL,
            borderaxespad=0.1,
            handletextpad=0.1,
            labelcolor=_INK,
        )
