"""Equations as MathML, made when the site is built: browsers draw it, and nothing has to be fetched to show them."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

FOUND = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, page: Any, config: Any, files: Any) -> str:
    """Replace the TeX that arithmatex left in the page."""

    def drawn(match: re.Match[str]) -> str:
        element, bracket, tex = match.groups()
        display = "block" if bracket == "[" else "inline"
        return f'<{element} class="equation">{convert(html.unescape(tex).strip(), display=display)}</{element}>'

    return FOUND.sub(drawn, content)
