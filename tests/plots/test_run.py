"""The picture of a run shows each layer's norms and scales where and when they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from localopt.plots import run_picture, save_figure
from localopt.steps.history import History


def history(norms: bool = True, layers: int = 3, steps: int = 4) -> History:
    found = History(every=5, names=tuple(f"h.{i}.mlp" for i in range(layers)))
    for step in range(5 * steps):
        scales = torch.zeros(layers)
        scales[step // 5 % layers] = 1.0
        found.add(torch.arange(1.0, layers + 1) if norms else None, scales)
    return found


def test_the_scales_stand_at_their_layer_and_step() -> None:
    figure = run_picture(history(), title="a $run")
    axes = [axes for axes in figure.axes if axes.images]
    assert len(axes) == 2
    scales = np.asarray(axes[1].images[0].get_array())
    assert scales.tolist() == [[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0]]
    assert axes[1].images[0].get_extent() == [0.5, 20.5, 2.5, -0.5]
    norms = np.asarray(axes[0].images[0].get_array())
    np.testing.assert_allclose(norms[:, 0], np.log2(np.array([1, 2, 3]) / 2), rtol=1e-6)


def test_without_norms_the_scales_stand_alone(tmp_path: Path) -> None:
    figure = run_picture(history(norms=False))
    assert len([axes for axes in figure.axes if axes.images]) == 1
    save_figure(figure, tmp_path / "run.png", dpi=50)
    assert (tmp_path / "run.png").stat().st_size > 1000


def test_the_norms_stand_alone_where_every_layer_trained_at_the_full_rate() -> None:
    found = History(every=1, names=("h.0.mlp", "h.1.mlp"))
    found.add(torch.tensor([1.0, 3.0]), torch.ones(2))
    shown = [axes for axes in run_picture(found).axes if axes.images]
    assert len(shown) == 1
    np.testing.assert_allclose(np.asarray(shown[0].images[0].get_array())[:, 0], np.log2([0.5, 1.5]), rtol=1e-6)


def test_many_layers_are_named_sparsely() -> None:
    figure = run_picture(history(layers=200))
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert 20 <= len(labels) <= 40
    assert labels[:2] == ["h.0.mlp", "h.5.mlp"]


def test_a_history_without_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="no step yet"):
        run_picture(History(every=1, names=("a",)))
