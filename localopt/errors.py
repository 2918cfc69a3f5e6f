"""The one exception that means "your input", as opposed to a bug."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be used: the message names it, says why, and what to do.

    The command line prints the message alone and exits with code 2.
    """
