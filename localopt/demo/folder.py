"""A folder of results that is there whole, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from localopt.errors import InputError


def check_folder(folder: Path) -> None:
    """Raise InputError if :func:`filled` could not put files there."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: exists and is not an empty folder: name a new one, or remove this one.")
    if not folder.absolute().parent.is_dir():
        raise InputError(f"{folder}: there is no folder {folder.absolute().parent}: make it first.")
    if not os.access(folder.absolute().parent, os.W_OK):
        raise InputError(f"{folder}: {folder.absolute().parent} cannot be written to: name another folder.")


@contextmanager
def filled(folder: Path) -> Iterator[Path]:
    """A folder beside the one wanted, to write to; renamed to it at the end, and removed if that is not reached.

    Raises:
        InputError: the folder cannot be used; found before anything is written.
    """
    check_folder(folder)
    folder = folder.absolute()
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        partial.mkdir()
        yield partial
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
