"""Checkpoints that can be trusted: a manifest says what belongs to one, and a run goes on from the last whole one.

The transformers Trainer writes a checkpoint's files one after another, and reads what it finds: a file cut short stops
a run, and one that is missing lets it go on from other weights without a word. So a manifest with every file's size and
hash is written last, once all of them are on disk; a checkpoint is whole when it agrees.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from localopt.errors import InputError
from localopt.pretraining.modes import give_usual_mode
from localopt.pretraining.processes import processes, say
from localopt.pretraining.textfiles import sync

MANIFEST = "manifest.json"
_FORMAT = 1
_BLOCK = 1 << 22  # bytes read at a time


@dataclass(frozen=True)
class Found:
    """Where to go on: the last whole checkpoint, or None to begin.

    Attributes:
        path: its folder.
        processes: how many processes wrote it.
        said: what to tell, a line each: checkpoints that were not whole, or no longer.
    """

    path: Path | None
    processes: int | None = None
    said: tuple[str, ...] = ()


def seal(checkpoint: Path, processes: int) -> None:
    """Write the manifest of a checkpoint all of whose files are written, and see it onto the disk.

    Raises:
        OSError: no space left, no permission.
    """
    give_usual_mode(checkpoint)
    files = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            with path.open("rb") as file:
                digest = hashlib.sha256()
                while block := file.read(_BLOCK):
                    digest.update(block)
                os.fsync(file.fileno())
                files[path.relative_to(checkpoint).as_posix()] = [file.tell(), digest.hexdigest()]
    partial = checkpoint / f"{MANIFEST}.partial"
    with partial.open("w", encoding="utf-8") as file:
        json.dump({"format": _FORMAT, "processes": processes, "files": files}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(checkpoint / MANIFEST)
    for folder in (checkpoint, checkpoint.parent):
        sync(folder)


def damage(checkpoint: Path) -> str | None:
    """Say what is wrong with a checkpoint, by its manifest; None if it is whole."""
    try:
        text = (checkpoint / MANIFEST).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return "it was not written to its end"
    try:
        manifest = json.loads(text)
        files = manifest["files"]
        if manifest["format"] != _FORMAT or type(manifest["processes"]) is not int or not files:
            return f"its {MANIFEST} is of another format"
        for name, (size, digest) in files.items():
            if (wrong := _wrong(checkpoint / name, size, digest)) is not None:
                return f"{name} {wrong}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"its {MANIFEST} is damaged"
    return None


def last_whole(folder: Path) -> Found:
    """Return the newest whole checkpoint, and remove newer ones, which a run that goes on would trip over."""
    numbers = {path: path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")}
    newest_first = sorted((path for path in numbers if numbers[path].isdigit()), key=lambda path: -int(numbers[path]))
    wrong: list[str] = []
    found = None
    for path in newest_first:
        problem = damage(path)
        if problem is None:
            found = path
            break
        wrong.append(f"{path}: not used, {problem}")
        _remove(path)
    if wrong:
        wrong.append(f"going on from {found}" if found else "there is no whole checkpoint: training begins anew")
    processes = None if found is None else json.loads((found / MANIFEST).read_text(encoding="utf-8"))["processes"]
    return Found(found, processes, tuple(wrong))


def newest(folder: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end, without reading it all to see whether it still is."""
    numbers = {path: path.parent.name.removeprefix("checkpoint-") for path in folder.glob(f"checkpoint-*/{MANIFEST}")}
    sealed = {path.parent: int(number) for path, number in numbers.items() if number.isdigit()}
    return max(sealed, key=sealed.__getitem__, default=None)


def where_to_go_on(folder: Path) -> Path | None:
    """Return the last whole checkpoint, which the first process finds for all, or None; says what it passed over."""
    here = processes()
    shared: list[Any] = [last_whole(folder) if here.is_main_process else None]
    if here.num_processes > 1:
        broadcast_object_list(shared)
    found: Found = shared[0]
    if here.is_main_process:
        for line in (*found.said, *announce_processes(found, here.num_processes)):
            say(line)
    return found.path


def announce_processes(found: Found, processes: int) -> list[str]:
    """Return what to say where a run goes on with another number of processes than it had."""
    if found.processes in (None, processes):
        return []
    return [
        f"going on with {processes} processes a run of {found.processes}: each draws its own dropout and has other "
        "sequences, so the result is not bit for bit that of an uninterrupted run"
    ]


def prune(folder: Path) -> None:
    """Remove the checkpoints of a finished run; other files in the folder stay."""
    for path in folder.glob("checkpoint-*"):
        if path.name.removeprefix("checkpoint-").isdigit():
            _remove(path)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _remove(path: Path) -> None:
    try:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    except OSError as error:
        raise InputError(f"{path}: cannot be removed ({error.strerror or error}): remove it by hand.") from error


def _wrong(path: Path, size: int, digest: str) -> str | None:
    try:
        if path.stat().st_size != size:
            return f"has {path.stat().st_size} bytes of {size}"
        with path.open("rb") as file:
            now = hashlib.sha256()
            while block := file.read(_BLOCK):
                now.update(block)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    return None if now.hexdigest() == digest else "has changed since it was written"
