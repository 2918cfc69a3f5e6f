"""The file of a sweep: JSON lines, one record each, appended as they come.

- `exam`: what is asked, and of which start and data; the first line.
- `start`: the weights a machine starts from, and what they score; each run names its own.
- `run`: one method at one rate, on one half with one seed. One that diverged has no `points`.

A start that is made again on another machine differs by rounding. It joins a file when its answers do not differ more
than rounding explains (`SAME_START`); every run is compared with the start it had.
"""

from __future__ import annotations

import json
import lzma
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from localopt.errors import InputError

SAME_START = 0.1  # nats: root mean square difference of the answers' NLL a token, of two starts that count as one

Row = dict[str, Any]


@dataclass
class Records:
    """A file's records by kind.

    `cell`: what tells its runs apart; `results`: what a run has that did not diverge.
    """

    cell: ClassVar[tuple[str, ...]] = ("method", "lr", "half", "seed")
    results: ClassVar[str] = "points"
    exam: Row | None = None
    starts: dict[str, Row] = field(default_factory=dict)
    runs: list[Row] = field(default_factory=list)
    diverged: list[Row] = field(default_factory=list)

    @classmethod
    def read(cls, files: list[Path]) -> Records:
        """Read one file, or several of one exam; a name that ends in .xz is that of a packed one.

        A last line that was cut off by a kill is left out.

        Raises:
            InputError: not such a file, or files of different exams.
        """
        found = cls()
        for file in files:
            data = lzma.decompress(file.read_bytes()) if file.suffix == ".xz" else file.read_bytes()
            for number, line in enumerate(lines := data.decode().split("\n"), 1):
                try:
                    row = json.loads(line) if line else {}
                    found.add(row)
                except (ValueError, KeyError, TypeError) as error:
                    if number == len(lines) and isinstance(error, json.JSONDecodeError):
                        continue
                    raise InputError(
                        f"{file}:{number}: not a record of a sweep ({error!r}): name its runs.jsonl."
                    ) from error
        return found

    def add(self, row: Row) -> None:
        if not row:
            return
        if row["kind"] == "exam":
            if self.exam is not None and self.exam["inputs"] != row["inputs"]:
                raise InputError(
                    f"these runs are of another exam: {differences(self.exam['inputs'], row['inputs'])}; report each "
                    "exam apart."
                )
            if self.exam is not None and self.exam != row:
                raise InputError(
                    "these runs were asked other questions, since each sweep settled what its start knows: give the "
                    "sweeps of one report the same start.safetensors, or report each apart."
                )
            self.exam = row
        elif row["kind"] == "start":
            if row["id"] not in self.starts:
                self.refuse_far(row)
            self.starts[row["id"]] = row
        else:
            what = [row[key] for key in self.cell]
            if any([run[key] for key in self.cell] == what for run in [*self.runs, *self.diverged]):
                raise InputError(f"{' '.join(map(str, what))} is there twice: name each file of runs once.")
            (self.runs if self.results in row else self.diverged).append(row)

    def refuse_other(self, inputs: Row) -> None:
        """Raise InputError unless the file's exam was made from these inputs."""
        assert self.exam is not None
        if self.exam["inputs"] != inputs:
            raise InputError(
                f"the sweep there was made with other inputs: {differences(self.exam['inputs'], inputs)}. Go on with "
                "the same, or name another --out."
            )

    def refuse_far(self, start: Row) -> float:
        """How far a start is from the first one here; InputError where that is more than rounding."""
        first = next(iter(self.starts.values()), start)
        assert self.exam is not None
        squares = [
            ((a - b) / tokens) ** 2
            for one, other, item in zip(first["nll"], start["nll"], self.exam["items"], strict=True)
            for a, b, tokens in zip(one, other, item["tokens"], strict=True)
        ]
        distance = (sum(squares) / len(squares)) ** 0.5
        if distance > SAME_START:
            raise InputError(
                "the start made here answers otherwise than that of the sweep to go on with: its NLL a token differs "
                f"by {distance:.2f} nats (root mean square; rounding explains {SAME_START}). Use the start.safetensors "
                "of that sweep, or begin another with --out."
            )
        return float(distance)


def differences(one: Row, other: Row) -> str:
    """What differs between two records, in words."""
    keys = dict.fromkeys([*one, *other])
    return "; ".join(f"{key} {one.get(key)}, not {other.get(key)}" for key in keys if one.get(key) != other.get(key))


def append(file: Path, row: Row) -> None:
    """Add a line, first ending one that was cut off by a kill."""
    with file.open("a+", encoding="utf-8") as out:
        out.seek(0)
        text = out.read()
        if text and not text.endswith("\n"):
            out.truncate(len(text[: text.rfind("\n") + 1].encode()))
        out.write(json.dumps(row, allow_nan=False, separators=(",", ":"), ensure_ascii=False) + "\n")
