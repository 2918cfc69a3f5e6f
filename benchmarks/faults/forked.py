"""The command line in a process of its own, forked so that nothing is imported again: it may be killed or starved."""

from __future__ import annotations

import importlib
import itertools
import math
import mmap
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """How a process ended.

    Attributes:
        code: exit code; the negative number of the signal that killed it; None if it had to be stopped as a hang.
        said: its standard output and error together.
    """

    code: int | None
    said: str

    @property
    def traceback(self) -> bool:
        """Whether it showed one."""
        return "Traceback (most recent call last)" in self.said


def localopt(
    *arguments: object,
    limit: float = 120.0,
    before: Callable[[], Any] | None = None,
    killed_after: float = math.inf,
) -> Outcome:
    """Run ``localopt ARGUMENTS`` with many a "y" on standard input.

    Args:
        arguments: of the command.
        limit: seconds after which it counts as a hang, and is killed.
        before: called first, in the process: sets what will befall it.
        killed_after: seconds after which it is killed whatever it does, within libraries too that raise no events.
    """
    _import_all()
    # A pipe, as a terminal is: a file would be starved along with those that are written on purpose.
    heard, said = os.pipe()
    answers = os.memfd_create("answers")
    os.write(answers, b"y\n" * 100)
    os.lseek(answers, 0, os.SEEK_SET)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _be(arguments, said, answers, before)
    os.close(said)
    os.close(answers)
    with ThreadPoolExecutor(1) as listener, os.fdopen(heard, "rb") as file:
        text = listener.submit(file.read)
        code = _wait(child, limit, killed_after)
        return Outcome(code, text.result().decode("utf-8", "replace"))


@cache
def _import_all() -> None:
    """Import here, once, what every command would import for itself."""
    for module in ("cli", "pretraining.train", "pretraining.trainer", "pretraining.results", "tracing.trace"):
        importlib.import_module(f"localopt.{module}")
    importlib.import_module("matplotlib.backends.backend_agg")
    importlib.import_module("transformers.models.llama.modeling_llama")


def _be(arguments: tuple[object, ...], said: int, answers: int, before: Callable[[], Any] | None) -> None:
    """What the child does; never comes back."""
    code = 70
    try:
        for target, source in ((0, answers), (1, said), (2, said)):
            os.dup2(source, target)
        from localopt.cli import main

        if before is not None:
            before()
        try:
            main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(child: int, limit: float, killed_after: float) -> int | None:
    begun = time.monotonic()
    while (passed := time.monotonic() - begun) < min(limit, killed_after):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)  # it may have ended by itself just now
    return os.waitstatus_to_exitcode(status) if passed < limit else None


def killed_at_event(folder: Path, number: int) -> Callable[[], None]:
    """Let a process die at the so-many-th time that it opens, makes, renames or removes something in a folder."""
    left = itertools.count(number - 1, -1)
    return _at_events(folder, lambda: None if next(left) else os.kill(os.getpid(), signal.SIGKILL))


class Events:
    """Counts these events of a process; its parent reads how many."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 8)

    def counted(self, folder: Path) -> Callable[[], None]:
        """Let a process count."""

        def one_more() -> None:
            self._shared[:8] = (self.number + 1).to_bytes(8, "little")

        return _at_events(folder, one_more)

    @property
    def number(self) -> int:
        """How many there were."""
        return int.from_bytes(self._shared[:8], "little")


def _at_events(folder: Path, happened: Callable[[], None]) -> Callable[[], None]:
    wanted = str(folder)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" or event.startswith(("os.", "shutil.")):
            paths = (os.fsdecode(a) for a in arguments if isinstance(a, (str, bytes, os.PathLike)))
            if any(path.startswith(wanted) for path in paths):
                happened()

    return lambda: sys.addaudithook(watch)


def starved(room: int) -> Callable[[], None]:
    """Let no file grow beyond so many bytes: the system refuses to write more, as it does where a disk is full."""

    def arrange() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    return arrange
