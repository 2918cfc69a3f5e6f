"""A prepared folder -> the periods of a stream: a folder each, that a method traces, reads and replays like a half."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.lifelong.data.passages import SPLITS
from benchmarks.lifelong.exam.exam import Item
from localopt.errors import InputError
from localopt.pretraining.textfiles import json_lines

COUNT = 4
HALF = "A"  # what a period's folder calls its passages
SHARED = ("text.txt", "retained.trace.jsonl")  # what a trace or replay may see beside the passages

Row = dict[str, Any]


@dataclass(frozen=True)
class Period:
    """Where its passages are, and which groups of facts it teaches."""

    folder: Path
    groups: frozenset[str]


def divide(prepared: Path, out: Path, seed: int = 0, count: int = COUNT) -> list[Period]:
    """Write folders OUT/0, OUT/1, ...; periods come from the two halves by turns, and no group of facts is in two.

    Which groups make a period depends on nothing but the data; `seed` says in which order the periods come, the first
    as they are.

    Raises:
        InputError: fewer groups than periods.
    """
    parts: list[list[tuple[str, set[int]]]] = []
    for half, split in SPLITS.items():
        sizes = Counter(row["group"] for _, row in json_lines(prepared / f"updated.{split}.jsonl"))
        own = len(range(list(SPLITS).index(half), count, len(SPLITS)))
        if len(sizes) < own:
            raise InputError(
                f"{prepared}: half {half} has {len(sizes)} independent facts, too few for {own} periods: prepare more "
                "data."
            )
        parts.append([(split, groups) for groups in _dealt(sizes, own)])
    turns = [parts[number % len(parts)][number // len(parts)] for number in range(count)]
    if seed:
        random.Random(f"{seed}/stream").shuffle(turns)
    return [_write(prepared, out / str(number), *turn) for number, turn in enumerate(turns)]


def period_of(items: Sequence[Item], periods: Sequence[Period]) -> list[int]:
    """The period that teaches what each question asks, -1 for facts to keep."""
    return [next((n for n, period in enumerate(periods) if item.group in period.groups), -1) for item in items]


def _dealt(sizes: Counter[int], count: int) -> list[set[int]]:
    """Groups dealt to so many sides, the largest first, each to the side with the fewest questions."""
    sides: list[set[int]] = [set() for _ in range(count)]
    for group in sorted(sizes, key=lambda group: (-sizes[group], group)):
        min(sides, key=lambda side: sum(sizes[other] for other in side)).add(group)
    return sides


def _write(prepared: Path, folder: Path, split: str, groups: set[int]) -> Period:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("corpus_train", "updated"):
        rows = [row for _, row in json_lines(prepared / f"{name}.{split}.jsonl") if row["group"] in groups]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.{SPLITS[HALF]}.jsonl").write_text(lines, encoding="utf-8")
    for name in SHARED:
        shutil.copyfile(prepared / name, folder / name)
    half = next(half for half, name in SPLITS.items() if name == split)
    return Period(folder, frozenset(f"{half}{group}" for group in groups))
