"""Runs of `localopt train` that are killed, starved or find checkpoints damaged: each ends as if nothing had been.

The measure is a run that nothing befell: its model and its scores, byte for byte, with table and picture.
"""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.faults.count import Clock, Count
from benchmarks.faults.forked import Events, Outcome, killed_at_event, localopt, starved

_LONGEST = 3.0  # seconds to a kill by the clock; an undisturbed run takes about as long


class Training:
    """One command, and the end of a run of it that nothing befell.

    Attributes:
        events: how many things happened in its folder.
        interrupted: the folder of a run of which only the last step is missing: model and picture.
        expected: what that leaves.
    """

    def __init__(self, inputs: Path) -> None:
        self.inputs = inputs
        self.interrupted = inputs / "undisturbed"
        events = Events()
        done = self(self.interrupted, "--keep-checkpoints", before=events.counted(self.interrupted))
        assert done.code == 0, done.said
        self.events = events.number
        self.expected = self.end(self.interrupted)
        shutil.rmtree(self.interrupted / "model")
        (self.interrupted / "learning-forgetting.png").unlink()

    def __call__(self, out: Path, *more: object, **befalls: Any) -> Outcome:
        """Begin the run in a folder, or go on with it."""
        data = ["--corpus", self.inputs / "corpus.txt", "--reference", self.inputs / "corpus.txt"]
        data += ["--probe", f"facts={self.inputs / 'facts.jsonl'}"]
        how = ["--method", "online", "--lr", "3e-3", "--epochs", 2, "--batch-size", 4, "--seq-len", 24, "--resume"]
        return localopt("train", self.inputs / "model", *data, *how, "--out", out, *more, **befalls)

    @staticmethod
    def end(out: Path) -> dict[str, bytes]:
        """What a finished run leaves, its picture by its presence alone."""
        left = {path.name: path.read_bytes() for path in [out / "history.json", *(out / "model").glob("*")]}
        return left | {"picture": b"drawn" if (out / "learning-forgetting.png").stat().st_size else b""}

    def finish(self, count: Count, out: Path, what: str) -> None:
        """Go on with a run and look at its end."""
        done = self(out)
        _look(count, done, what)
        # A kill may come after everything was written, and then there is nothing to go on with: the end is looked at.
        if done.code == 0 or (done.code == 2 and "this run is finished" in done.said):
            self.compare(count, out, what)
        else:
            count.note("lost", f"{what}: exit code {done.code}: {done.said[-500:]}")

    def compare(self, count: Count, out: Path, what: str) -> None:
        """Look at the end of a run that says it is finished."""
        found = self.end(out)
        if found != self.expected:
            differ = sorted(n for n in found.keys() | self.expected.keys() if found.get(n) != self.expected.get(n))
            count.note("wrong", f"{what}: ends elsewhere, in {', '.join(differ)}")
        if left := [path.name for path in out.rglob("*") if "partial" in path.name or path.name == "lock"]:
            count.note("wrong", f"{what}: leaves {', '.join(left)}")
        count.add("finished bit for bit", found == self.expected)


@cache
def _training(folder: Path) -> Training:
    return Training(folder)


def _look(count: Count, done: Outcome, what: str) -> None:
    if done.traceback:
        count.note("traceback", f"{what}: {done.said[-800:]}")
    if done.code is None:
        count.note("hang", what)


def a_kill(count: Count, number: int, seed: int, folder: Path, clock: Clock) -> None:
    """Kill runs so many times, at an event in their folder or at any time; each once to three times, then finish it."""
    draw, training = random.Random(seed), _training(folder)
    turn = 0
    while count.tries < number and not clock.over:
        out, kills = folder / f"killed-{turn}", []
        done = None
        for at in _moments(draw, training.events):
            befalls = {"before": killed_at_event(out, at)} if isinstance(at, int) else {"killed_after": at}
            done = training(out, **befalls)
            _look(count, done, f"killed at {at}")
            if done.code != -signal.SIGKILL:
                break  # it is done, or something is wrong
            count.tries += 1
            kills.append(at)
        what = f"killed at {kills}"
        if done is not None and done.code == 0:
            training.compare(count, out, what)
        else:
            training.finish(count, out, what)
        shutil.rmtree(out, ignore_errors=True)
        turn += 1
    count.add("runs", turn)


def _moments(draw: random.Random, events: int) -> list[int | float]:
    """When to kill a run: once to three times, at the so-many-th event or after so many seconds."""
    return [draw.choice([draw.randint(1, events), draw.uniform(0.05, _LONGEST)]) for _ in range(draw.randint(1, 3))]


def a_full_disk(count: Count, number: int, seed: int, folder: Path, clock: Clock) -> None:
    """Let runs find the disk full so many times, then make room and finish them."""
    draw, training = random.Random(seed), _training(folder)
    while count.tries < number and not clock.over:
        out, room = folder / f"starved-{count.tries}", round(10 ** draw.uniform(1, 5))
        what = f"no file beyond {room} bytes"
        done = training(out, before=starved(room))
        count.tries += 1
        _look(count, done, what)
        if done.code not in (0, 2, None):
            count.note("wrong", f"{what}: exit code {done.code}: {done.said[-300:]}")
        count.add("refused", done.code == 2)
        if done.code == 0:
            training.compare(count, out, what)
        else:
            training.finish(count, out, what)
        shutil.rmtree(out, ignore_errors=True)


def _harms() -> dict[str, Callable[[Path, random.Random], None]]:
    def cut(path: Path, draw: random.Random) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: draw.randrange(len(data))])

    def flip(path: Path, draw: random.Random) -> None:
        data = bytearray(path.read_bytes())
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)

    return {
        "removed": lambda path, _: path.unlink(),
        "emptied": lambda path, _: path.write_bytes(b"") and None,
        "cut": cut,
        "one bit of it changed": flip,
    }


def a_checkpoint(count: Count, number: int, seed: int, folder: Path, clock: Clock) -> None:
    """Harm a file of a checkpoint, each in each way before one comes again, and go on with the run."""
    draw, training = random.Random(seed), _training(folder)
    checkpoints = sorted((training.interrupted / "checkpoints").iterdir())
    files = [file.relative_to(training.interrupted) for one in checkpoints for file in sorted(one.rglob("*"))]
    harms = _harms()
    tries: list[tuple[Path, str]] = []
    while len(tries) < number:
        tries += draw.sample([(file, harm) for file in files for harm in harms], len(files) * len(harms))
    count.add("files", len(files))
    for file, harm in tries[:number]:
        if clock.over:
            break
        out = folder / f"harmed-{count.tries}"
        shutil.copytree(training.interrupted, out)
        harms[harm](out / file, draw)
        count.tries += 1
        training.finish(count, out, f"{file} {harm}")
        shutil.rmtree(out)
