"""The one exception that means "your input", as opposed to a bug."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Something the user gave cannot be used: the message names it, says why, and what to do.

    The command line prints the message alone and exits with code 2.
    """


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Make an OSError an InputError that names the file: the system's own message does not, where a disk is full."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{os.fspath(path)}: cannot be written: {error.strerror or error}.") from error
