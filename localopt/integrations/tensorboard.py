"""The picture of a run, to where TensorBoard shows it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

from localopt.plots import run_picture
from localopt.steps.history import History

TAG = "localopt/layers"


def add_picture(callbacks: Iterable[Any], noted: History, step: int) -> None:
    """Write what was noted so far as an image, if one of Trainer's callbacks writes for TensorBoard.

    Args:
        callbacks: those of a Trainer.
        noted: by the optimizer.
        step: the image's.
    """
    writers = [writer for one in callbacks if (writer := getattr(one, "tb_writer", None)) is not None]
    if not writers or not noted.steps:
        return
    canvas: Any = FigureCanvasAgg(run_picture(noted))
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    for writer in writers:
        writer.add_image(TAG, pixels, step, dataformats="HWC")
