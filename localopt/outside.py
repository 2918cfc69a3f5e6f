"""Text from outside (names in files, paths, messages of other libraries) -> the same text, safe to print and to draw.

A terminal acts on control characters, rich reads square brackets as markup, matplotlib reads dollar signs as formulas,
and bidirectional marks reorder what stands beside them. Every string that someone else wrote passes here on its way to
a screen, a table or a picture; what is stored keeps it as it is.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text

NO_MATH: dict[str, Any] = {"parse_math": False}
"""For matplotlib's text functions, so that dollar signs are dollar signs."""

_KEPT = "\u200c\u200d"  # joiners, which some scripts and many emoji need


def plain(text: object) -> str:
    r"""Return ``str(text)`` with every character that a screen would act on, or not show, written as its escape.

    >>> print(plain("a\x1b[31mb\u202ec\nd [/] $x$"))
    a\x1b[31mb\u202ec\nd [/] $x$
    """
    return "".join(_escaped(character) if _acts(character) else character for character in str(text))


def one_line(text: object) -> str:
    r"""Return ``str(text)`` as :func:`plain` does, on one line: messages of other libraries come in several.

    >>> one_line("cannot load:\n  no such file\x07")
    'cannot load: no such file\\x07'
    """
    return plain(" ".join(line.strip() for line in str(text).split("\n") if line.strip()))


def shown(text: object) -> Text:
    """Return text for rich's tables and consoles, which read no markup, emoji or highlighting in it."""
    from rich.text import Text

    return Text(plain(text))


def _acts(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in _KEPT


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
