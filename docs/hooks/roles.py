"""Roles in docstrings (:class:`localopt.TopK`) as links to what they name."""

from __future__ import annotations

import re
from typing import Any

ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):<code>~?([\w.]+)</code>")


def on_page_content(content: str, page: Any, config: Any, files: Any) -> str:
    """Leave the name; it is a link where the site has an entry for it."""
    return ROLE.sub(r'<autoref identifier="\1" optional><code>\1</code></autoref>', content)
