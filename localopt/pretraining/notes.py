"""What the optimizer noted of its layers at every step, kept in each checkpoint, so that a run that goes on has it."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from localopt.errors import InputError
from localopt.steps.history import History

NOTES = "layers.safetensors"


def save_notes(noted: History, checkpoint: Path) -> None:
    """Write what was noted so far into a checkpoint's folder.

    Raises:
        OSError, SafetensorError: it cannot be written.
    """
    tensors = {key: tensor.contiguous() for key, tensor in noted.saved().items()}
    save_file(tensors, checkpoint / NOTES, metadata={"names": json.dumps(list(noted.names))})


def load_notes(checkpoint: Path) -> History | None:
    """Return what a checkpoint holds of it; None where it holds nothing (a checkpoint of before there were notes).

    Raises:
        InputError: the file is not what :func:`save_notes` writes.
    """
    path = checkpoint / NOTES
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            names = json.loads((file.metadata() or {})["names"])
            saved: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        noted = History(1, tuple(map(str, names)))
        noted.resume(saved)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is not what a run notes of its layers ({error}): remove the checkpoint.") from error
    return noted


def resume_notes(noted: History, checkpoint: Path) -> None:
    """Let an optimizer's notes go on from those of a checkpoint; of other layers, or without any, they begin there."""
    before = load_notes(checkpoint)
    if before is not None and before.names == noted.names:
        noted.resume(before.saved())
