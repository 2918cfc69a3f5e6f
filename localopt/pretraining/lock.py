"""One run a folder: a lock file that names the process which holds it, and that a dead process does not keep.

The system's own lock (flock) ends with the process, however that dies. It may not reach other machines that share the
folder, so the file also says who holds it and is touched while that one lives: a lock of another machine counts as left
behind once it has not been touched for ten minutes.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import IO, ParamSpec, TypeVar

from localopt.errors import InputError, writing
from localopt.pretraining.processes import processes

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

P = ParamSpec("P")
R = TypeVar("R")

LOCK = "lock"
REMAINS = frozenset({LOCK, "history.partial"})
"""What a run leaves that dies before it has written its history: nothing that it did, so a folder counts as empty."""
_TOUCHED_EVERY = 60.0  # seconds
_STALE = 600.0


def alone_in_its_folder(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function with an argument ``out`` hold that folder's lock while it runs; of several processes, the first.

    A folder that is not of a run is left untouched, for the function to refuse.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        out = Path(signature(function).bind(*args, **kwargs).arguments["out"])
        if not processes().is_main_process:
            return function(*args, **kwargs)
        refuse_held(out)
        if out.exists() and not (out.is_dir() and ((out / "history.json").exists() or holds_nothing(out))):
            return function(*args, **kwargs)
        with held(out):
            return function(*args, **kwargs)

    return run


def holds_nothing(folder: Path) -> bool:
    """Say whether a folder is empty, but for what a run leaves that died before it had begun."""
    return {path.name for path in folder.iterdir()} <= REMAINS


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder's lock; the folder is made if it is not there, and removed again if nothing was put in it.

    Raises:
        InputError: another process that is alive holds it; the folder cannot be written to.
    """
    path = folder / LOCK
    made = not folder.exists()
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        file = _acquired(path)
    over = threading.Event()
    threading.Thread(target=_touch, args=(path, over), daemon=True).start()
    try:
        yield
    finally:
        over.set()
        with suppress(OSError):
            path.unlink()  # while it is still locked, so that nobody takes a file that is gone
        file.close()
        if made and not any(folder.iterdir()):
            folder.rmdir()


def refuse_held(folder: Path) -> None:
    """Raise InputError if another run that is alive holds a folder's lock; asked before long work."""
    path = folder / LOCK
    if os.environ.get("RANK", "0") != "0" or not path.exists():  # the first process of a run holds it for the others
        return
    with writing(path), path.open("r+") as file:
        if not _taken(path, file):
            _refuse(path)


def _acquired(path: Path) -> IO[str]:
    while True:
        file = path.open("a+")
        if not _taken(path, file):
            file.close()
            _refuse(path)
        if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
            break
        file.close()  # its holder removed it in between
    file.seek(0)
    file.truncate()
    json.dump({"process": os.getpid(), "machine": socket.gethostname(), "since": _now()}, file)
    file.flush()
    return file


def _taken(path: Path, file: IO[str]) -> bool:
    """Take the system's lock; False if another process that is alive has it, here or on another machine."""
    machine = _holder(path).get("machine")
    elsewhere = machine not in (None, socket.gethostname()) and time.time() - path.stat().st_mtime < _STALE
    if fcntl is None:
        return not elsewhere and (machine is None or time.time() - path.stat().st_mtime >= _STALE)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return machine is None or time.time() - path.stat().st_mtime >= _STALE
    return not elsewhere


def _refuse(path: Path) -> None:
    holder = _holder(path)
    who = f"process {holder.get('process', 'unknown')} on {holder.get('machine', 'a machine unknown')}"
    raise InputError(
        f"{path.parent}: another run is at work in it ({who}, since {holder.get('since', 'a time unknown')}): wait for "
        f"its end, or name another folder. If that process is dead, remove {path}."
    )


def _holder(path: Path) -> dict[str, object]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) and isinstance(value.get("machine"), str) else {}


def _touch(path: Path, over: threading.Event) -> None:
    while not over.wait(_TOUCHED_EVERY):
        with suppress(OSError):
            os.utime(path)


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
