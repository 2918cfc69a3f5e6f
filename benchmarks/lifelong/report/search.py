"""Every run beside AdamW at one rate, of the same half and seed: a row a method and rate.

    python -m benchmarks.lifelong.report.search RUNS.jsonl ... --adamw 6e-4 --out FILE.md

The rate of AdamW is given beforehand, so that nothing is chosen by what comes out: ratios are of uptake where WikiText
has risen by 25, 50 and 75% of what that AdamW ends with.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path as FilePath

from benchmarks.lifelong.methods.methods import METHODS
from benchmarks.lifelong.report.records import Records
from benchmarks.lifelong.report.statistics import DRAWS, Path, Row, Scores, compare
from benchmarks.lifelong.report.tables import Table
from localopt.errors import InputError

Cell = tuple[str, int]  # half and seed


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="search", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("runs", nargs="+", type=FilePath, help="runs.jsonl of one sweep, or of several of one exam")
    parser.add_argument("--adamw", type=float, required=True, metavar="RATE", help="the rate of the AdamW beside")
    parser.add_argument("--out", type=FilePath, required=True, metavar="FILE", help="Markdown")
    parser.add_argument("--draws", type=int, default=DRAWS, help="of the bootstrap")
    given = parser.parse_args(arguments)
    try:
        shown = search(Records.read(given.runs), given.adamw, given.draws)
    except (InputError, OSError) as error:
        print(f"search: {error}", file=sys.stderr)
        sys.exit(2)
    given.out.write_text(f"{shown.markdown()}\n\n{shown.note}\n", encoding="utf-8")
    print(f"{shown.markdown()}\n\n{shown.note}")


def search(records: Records, rate: float, draws: int = DRAWS) -> Table:
    """One row a method and rate, the best on the first cell first.

    Raises:
        InputError: no run of AdamW at this rate.
    """
    scores = Scores(records, draws)
    adamw: dict[Cell, Path] = {}
    runs: dict[tuple[str, float], dict[Cell, Row]] = {}
    for run in records.runs:
        cell = (run["half"], run["seed"])
        runs.setdefault((run["method"], run["lr"]), {})[cell] = run
        if (run["method"], run["lr"]) == ("adamw", rate):
            adamw[cell] = scores.path([run])
    if not adamw:
        raise InputError(f"no run of adamw at {rate:g} in these files: run it, or name a rate that was.")
    cells = sorted(adamw)
    found: list[tuple[float, list[str]]] = []
    for (method, lr), mine in runs.items():
        ratios: list[float] = []
        row = [METHODS[method].about, f"{lr:g}"]
        for cell in cells:
            row.append("")
            if cell in mine:
                path = scores.path([mine[cell]])
                beside = compare([path], [adamw[cell]], adamw[cell], "text")
                ratios.append(beside.ratio)
                row[-1] = f"{beside.ratio:.2f} ({beside.low:.2f}-{beside.high:.2f}){'*' if beside.capped else ''}"
                row.append(_end(path, mine[cell]))
            else:
                row.append("")
        if ratios:
            found.append((-sum(ratios) / len(ratios), row))
    header = ["method", "rate"]
    for half, seed in cells:
        header += [f"{half}, seed {seed}", "end: uptake, WikiText, near lost, F1"]
    note = (
        f"Uptake where WikiText has risen alike, relative to AdamW at {rate:g}, same half and seed; 95% intervals "
        "over facts and pieces of text. *: the path ends before a level, a lower bound. End: at the end of training, "
        "without interpolation; nats, nats a token, nats, share of words."
    )
    return Table("The search", header, [row for _, row in sorted(found, key=lambda pair: pair[0])], note)


def _end(path: Path, run: Row) -> str:
    ends = path.uptake.end[0], path.text.end[0], path.near.end[0]
    return f"{ends[0]:.2f}, {ends[1]:+.2f}, {ends[2]:+.2f}, {run['end']['f1']:.0%}"


if __name__ == "__main__":
    main()
