"""Files that others may read as they read any new file: some writers make theirs for their owner alone."""

from __future__ import annotations

import stat
from pathlib import Path


def give_usual_mode(folder: Path) -> None:
    """Give every file in a folder the mode that a new file has there, by the user's umask."""
    new = folder / ".mode"
    new.touch()
    usual = stat.S_IMODE(new.stat().st_mode)
    new.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(usual)
