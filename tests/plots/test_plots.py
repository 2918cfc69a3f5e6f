"""Pictures: every layer in its place, nothing cut off, no label over another."""

from __future__ import annotations

import itertools
import math
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from localopt.plots import Run, heat_map, learning_forgetting

LLAMA = [f"model.layers.{i}.{part}" for i in range(3) for part in ("attention", "mlp")]
T5 = [
    "shared",
    *(f"encoder.block.{i}.{part}" for i in range(2) for part in ("attention", "mlp")),
    "encoder.final_layer_norm",
    *(f"decoder.block.{i}.{part}" for i in range(2) for part in ("attention", "cross_attention", "mlp")),
    "decoder.final_layer_norm",
]


def rising(layers: list[str]) -> dict[str, float]:
    return {layer: float(number) for number, layer in enumerate(layers)}


def cells(figure: Figure) -> list[Bbox]:
    return [patch.get_bbox() for patch in figure.axes[0].patches]


def texts(figure: Figure) -> list[str]:
    axes = figure.axes[0]
    ticks = [*axes.get_xticklabels(), *axes.get_yticklabels()]
    return [text.get_text() for text in [*axes.texts, *ticks]]


def assert_nothing_is_cut(figure: Figure) -> None:
    figure.draw_without_rendering()
    drawn, page = figure.get_tightbbox(), figure.bbox_inches
    assert drawn.x0 >= page.x0 - 0.01
    assert drawn.y0 >= page.y0 - 0.01
    assert drawn.x1 <= page.x1 + 0.01
    assert drawn.y1 <= page.y1 + 0.01


def test_blocks_run_to_the_right_and_sublayers_down() -> None:
    figure = heat_map(rising(LLAMA), center=2.0)
    corners = [(round(box.x0, 6), round(box.y0, 6)) for box in cells(figure)]
    assert corners == [(block, row) for block in range(3) for row in range(2)]
    assert {"0", "1", "2", "attention", "mlp", "model.layers"} <= set(texts(figure))


def test_layers_outside_the_blocks_stand_beside_them_as_tall_cells() -> None:
    figure = heat_map(rising(["model.embed_tokens", *LLAMA, "model.norm", "lm_head"]), center=2.0)
    first, *inside, norm, head = cells(figure)
    assert all(box.height == 2 for box in (first, norm, head))
    assert first.x1 < min(box.x0 for box in inside)
    assert max(box.x1 for box in inside) < norm.x0 < head.x0
    assert {"embed_tokens", "norm", "lm_head"} <= set(texts(figure))


def test_encoder_and_decoder_stand_side_by_side_in_shared_rows() -> None:
    figure = heat_map(rising(T5), center=2.0)
    where = dict(zip(T5, cells(figure), strict=True))
    assert where["shared"].x1 < where["encoder.block.0.mlp"].x0
    assert where["encoder.block.1.mlp"].x1 < where["encoder.final_layer_norm"].x0
    assert where["encoder.final_layer_norm"].x1 < where["decoder.block.0.mlp"].x0
    rows = [where[f"decoder.block.0.{part}"].y0 for part in ("attention", "cross_attention", "mlp")]
    assert rows == [0, 1, 2]
    assert where["encoder.block.0.mlp"].y0 == 2
    assert {"encoder.block", "decoder.block"} <= set(texts(figure))


def test_no_two_cells_overlap_whatever_the_partition() -> None:
    parameters = [f"h.{i}.{name}.weight" for i in range(3) for name in ("attn.q", "attn.k", "mlp.up")]
    for layers in (T5, ["wte", "wpe", *(f"h.{i}" for i in range(4)), "ln_f"], parameters, ["early", "late"]):
        figure = heat_map(rising(layers), center=1.0)
        boxes = [box.padded(-0.01) for box in cells(figure)]
        assert len(boxes) == len(layers)
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
        assert_nothing_is_cut(figure)


def test_the_center_is_neutral_and_the_sides_are_red_and_blue() -> None:
    figure = heat_map({"low": 0.0, "middle": 1.0, "high": 9.0}, center=1.0)
    low, middle, high = (patch.get_facecolor()[:3] for patch in figure.axes[0].patches)
    assert min(middle) > 0.95
    assert low[2] > low[0] + 0.3
    assert high[0] > high[2] + 0.3


def test_equal_values_are_neutral_and_values_that_are_not_finite_gray() -> None:
    patches = heat_map({"a": 1.0, "b": 1.0, "c": math.nan, "d": math.inf}, center=1.0).axes[0].patches
    assert min(patches[0].get_facecolor()) > 0.95
    assert to_hex(patches[2].get_facecolor()) == to_hex(patches[3].get_facecolor()) == "#bfbfbf"


def test_marked_layers_have_a_dot_that_shows_on_any_color() -> None:
    values = rising([f"h.{i}" for i in range(9)])
    figure = heat_map(values, center=4.0, marked=["h.0", "h.4"], mark="chosen")
    dots = {float(line.get_xdata()[0]): line.get_color() for line in figure.axes[0].lines}
    assert dots == {0.5: "white", 4.5: "#333333"}
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["chosen"]
    assert heat_map(values, center=4.0).axes[0].get_legend() is None


def test_the_color_bar_is_labeled_at_its_ends_and_center() -> None:
    bar = heat_map({"a": 0.5, "b": 3.0}, center=1.25, label="relative gradient norm").axes[1]
    assert [tick.get_text() for tick in bar.get_yticklabels()] == ["0.5", "1.25", "3"]
    assert bar.get_ylabel() == "relative gradient norm"


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="no values to draw"):
        heat_map({}, center=1.0)
    with pytest.raises(ValueError, match=r"no values for the marked layers \['b'\]"):
        heat_map({"a": 1.0}, center=1.0, marked=["b"])


def label_boxes(axes: Axes) -> dict[str, Bbox]:
    axes.figure.draw_without_rendering()
    return {text.get_text(): text.get_window_extent() for text in axes.texts}


numbers = st.floats(-5, 5).map(lambda value: round(value, 2))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=9))
def test_labels_stay_on_the_picture_and_off_one_another(ends: list[tuple[float, float]]) -> None:
    runs = [Run(f"a method called {number}", *end, path=[(0, 0)]) for number, end in enumerate(ends)]
    axes = learning_forgetting(runs).axes[0]
    boxes = label_boxes(axes)
    assert len(boxes) == len(runs)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes.values(), 2))
    frame = axes.get_window_extent().padded(2)
    assert all(frame.fully_containsx(x) for box in boxes.values() for x in (box.x0, box.x1))
    assert all(frame.fully_containsy(y) for box in boxes.values() for y in (box.y0, box.y1))


def test_a_label_with_room_stands_next_to_its_run() -> None:
    runs = [Run("left", -2, 1), Run("right", 3, 1), Run("up", 0.5, 3)]
    axes = learning_forgetting(runs).axes[0]
    boxes = label_boxes(axes)
    for run in runs:
        x, y = axes.transData.transform((run.forgetting, run.uptake))
        box = boxes[run.name]
        beyond = max(box.x0 - x, x - box.x1, box.y0 - y, y - box.y1)
        assert 3 < beyond * 72 / axes.figure.dpi < 15


def test_a_path_is_a_line_to_the_end_of_the_run() -> None:
    axes = learning_forgetting([Run("AdamW", 3.0, 1.0, path=[(0.5, 0.3), (1.5, 0.7)])]).axes[0]
    assert [[0.5, 1.5, 3.0], [0.3, 0.7, 1.0]] in [
        [list(line.get_xdata()), list(line.get_ydata())] for line in axes.lines
    ]


def test_marks_stand_above_the_last_points_of_their_run_and_names_beside_them() -> None:
    path = [(0.0, 0.0), (1.0, 0.4), (2.0, 0.7)]
    runs = [Run("AdamW", 3.0, 1.0, path=path, marks=["1", "2", "3"]), Run("other", 0.4, 0.8)]
    axes = learning_forgetting(runs).axes[0]
    marks = {text.get_text(): text.xy for text in axes.texts if text.get_text().isdigit()}
    assert marks == {"1": (1.0, 0.4), "2": (2.0, 0.7), "3": (3.0, 1.0)}
    boxes = label_boxes(axes)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes.values(), 2))


def test_of_marks_on_one_another_the_last_is_shown() -> None:
    run = Run("AdamW", 3.0, 1.0, path=[(0.0, 0.0), (3.0, 1.0)], marks=["1", "2"])
    assert {text.get_text() for text in learning_forgetting([run]).axes[0].texts} == {"AdamW", "2"}


def test_more_marks_than_points_are_refused() -> None:
    with pytest.raises(ValueError, match="run 'AdamW' has 2 marks for 1 points"):
        learning_forgetting([Run("AdamW", 3.0, 1.0, marks=["1", "2"])])


def test_runs_may_be_plain_tuples_and_differ_in_color_or_marker() -> None:
    figure = learning_forgetting([(f"run {i}", i % 4, i // 4) for i in range(12)], title="runs", uptake="facts")
    ends = [line for line in figure.axes[0].lines if line.get_markersize() == 7]
    assert len({(line.get_color(), line.get_marker()) for line in ends}) == 12
    assert figure.axes[0].get_ylabel() == "facts"
    assert_nothing_is_cut(figure)


def test_the_model_before_training_is_on_the_picture() -> None:
    axes = learning_forgetting([("one", 3.0, 2.0)]).axes[0]
    assert axes.get_xlim()[0] < 0 < axes.get_xlim()[1]
    assert axes.get_ylim()[0] < 0 < axes.get_ylim()[1]


def test_runs_without_a_place_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no runs"):
        learning_forgetting([])
    with pytest.raises(ValueError, match="run 'diverged' has a value that is not finite"):
        learning_forgetting([("fine", 1.0, 1.0), ("diverged", 1.0, math.nan)])


def test_figures_are_written_in_any_format_without_the_global_interface() -> None:
    for figure in (heat_map(rising(T5), center=3.0), learning_forgetting([("one", 1.0, 1.0)])):
        for kind in ("png", "pdf", "svg"):
            page = BytesIO()
            figure.savefig(page, format=kind)
            assert page.tell() > 1000
        assert figure.canvas.manager is None
