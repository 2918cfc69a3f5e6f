"""Text files from outside -> text and JSON objects, or an `InputError` that names the file and the line.

Nothing is ever unpickled or evaluated: files are decoded as UTF-8 and parsed as text or as JSON lines.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from localopt.errors import InputError, writing

T = TypeVar("T")


def read_text(path: str | Path) -> str:
    """The text of a file: UTF-8 (a byte order mark is dropped), not empty, line ends as newlines."""
    try:
        # A pipe would be read once and then be empty, or never end, as a device does not.
        if Path(path).exists() and not (Path(path).is_file() or Path(path).is_dir()):
            raise InputError(f"{path}: is a pipe or a device, not a file: save what it gives in a file first.")
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file: check the path.") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder: name a file in it.") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}.") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{number}: not UTF-8 text ({error.reason}): save the file as UTF-8.") from None
    if not text.strip():
        raise InputError(f"{path}: the file is empty: give at least one line.")
    return text.replace("\r\n", "\n")


def json_lines(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file:line", object) of every line that is not blank."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            source = f"{path}:{number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{source}: not valid JSON ({error}): write one JSON object a line.") from None
            if not isinstance(value, dict):
                raise InputError(f"{source}: expected a JSON object, not {short(value)}: write one object a line.")
            yield source, value


def is_json_lines(path: str | Path) -> bool:
    """By the name, or else by whether the first line holds a JSON object."""
    if Path(path).suffix in (".jsonl", ".json"):
        return True
    first = read_text(path).lstrip().split("\n", 1)[0]
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def string(line: dict[str, Any], key: str, source: str) -> str:
    """The text of one field, which must be there and not be empty."""
    if key not in line:
        raise InputError(f'{source}: the field "{key}" is missing, there are only {sorted(line)}.')
    value = line[key]
    if not isinstance(value, str) or not value.strip():
        raise InputError(f'{source}: the field "{key}" must be text that is not empty, not {short(value)}.')
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f'{source}: the field "{key}" has half a surrogate pair, which is not text.') from None
    return value


def evenly(items: list[T], limit: int | None) -> list[T]:
    """At most ``limit`` of the items, spaced evenly: files are often sorted by topic."""
    if limit is None or limit >= len(items):
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


def write_whole(path: Path, text: str) -> None:
    """Write a text file, whole or not at all, with the folder it lies in; InputError if that is impossible.

    It is on the disk before it takes its name: after a power cut too there is the old text or the new one.
    """
    partial = path.with_suffix(".partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            sync(path.parent)
        finally:
            partial.unlink(missing_ok=True)


def sync(folder: Path) -> None:
    """See the names in a folder onto the disk, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # where folders cannot be opened, as on Windows
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def short(value: object) -> str:
    """A value as an error message shows it."""
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
