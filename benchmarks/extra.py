"""What a benchmark needs beside the package itself: the extra ``bench``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from localopt.errors import InputError


@contextmanager
def from_the_extra() -> Iterator[None]:
    """Around imports of what the extra brings.

    Raises:
        InputError: a package is not installed.

    >>> with from_the_extra():
    ...     import no_such_package
    Traceback (most recent call last):
    localopt.errors.InputError: no_such_package is not installed, the extra bench brings it: pip install '.[bench]'.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "a package").partition(".")[0]
        raise InputError(f"{package} is not installed, the extra bench brings it: pip install '.[bench]'.") from None
