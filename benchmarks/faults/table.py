"""Counts -> one table, with where and how it was made: `python -m benchmarks.faults.table COUNTS.json ... --out FILE`.

Counts of several calls, with other seeds or of other families, add up.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.faults.count import Count
from benchmarks.stamp import summary

_HEAD = ("what befell it", "tries", "tracebacks", "silently wrong", "hangs", "lost runs", "besides")
_KINDS = ("traceback", "wrong", "hang", "lost")


def table(counts: Sequence[Count]) -> str:
    """One row a family, and what is below its target in bold."""
    lines = ["| " + " | ".join(_HEAD) + " |", "|---|" + "---:|" * 5 + "---|"]
    for count in counts:
        found = [str(n) if n == 0 else f"**{n}**" for n in (count.found[kind] for kind in _KINDS)]
        besides = ", ".join(f"{number:,} {name}" for name, number in count.notes.items())
        cells = [f"{count.family}: {count.what}", f"{count.tries:,}", *found, besides]
        lines.append("| " + " | ".join(cells) + " |")
    total = [str(sum(count.found[kind] for count in counts)) for kind in _KINDS]
    lines.append(f"| **targets** | as many as can be | {' | '.join(['**0**'] * 4)} | |")
    lines.append(f"| found | {sum(count.tries for count in counts):,} | {' | '.join(total)} | |")
    return "\n".join(lines)


def page(counts: Sequence[Count], commands: Sequence[str], stamped: dict[str, Any]) -> str:
    """The file of results."""
    seconds = sum(count.seconds for count in counts)
    shown = "\n".join(f"- `{command}`" for command in commands)
    return f"""# Faults on purpose, counted

What outsiders, full disks, kills and gradients that are no numbers do to the package, tried many times by one command.
A *traceback* is an exception that no page documents, or one that a command shows; *silently wrong* is a result that
differs from what an independent look or an undisturbed run gives, code that ran, or a number that cannot be; a *lost
run* does not go on with `--resume`. What each family does is said in `benchmarks/faults/`.

{table(counts)}

Made by, in {seconds / 60:.0f} minutes of a machine that had other work to do:

{shown}

{summary(stamped)}.
"""


def save(counts: Sequence[Count], command: str, stamped: dict[str, Any], path: Path) -> None:
    """Write what a call counted, to be added to that of others."""
    found = {"command": command, "stamp": stamped, "counts": [asdict(count) for count in counts]}
    path.write_text(json.dumps(found, indent=2), encoding="utf-8")


def added(found: Sequence[list[dict[str, Any]]]) -> list[Count]:
    """The counts of several calls as one, families in the order in which they come first."""
    sums: dict[str, Count] = {}
    for fields in (fields for of_one in found for fields in of_one):
        one = Count(**fields)
        total = sums.setdefault(one.family, Count(one.family, one.what))
        total.tries += one.tries
        total.seconds += one.seconds
        for kind, number in one.found.items():
            total.found[kind] += number
        for name, number in one.notes.items():
            total.add(name, number)
        total.said = one.said | total.said
    return list(sums.values())


def failures(counts: Sequence[Count]) -> str:
    """The first of each kind in each family."""
    return "\n".join(f"{c.family}, {kind}: {said}" for c in counts for kind, said in c.said.items())


def main() -> None:
    """Add counts up and write their table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults.table", description=__doc__)
    parser.add_argument("counts", nargs="+", type=Path)
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args()
    found = [json.loads(path.read_text(encoding="utf-8")) for path in arguments.counts]
    counts = added([one["counts"] for one in found])
    commands = [one["command"] for one in found]
    arguments.out.write_text(page(counts, commands, found[-1]["stamp"]), encoding="utf-8")


if __name__ == "__main__":
    main()
