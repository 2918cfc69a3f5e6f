"""python -m benchmarks.lifelong.measures: teach a model by each method, and take the field's measures of it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.lifelong.measures.measuring import ENTITIES, MOST, MeasureRecords, Measuring, cells
from benchmarks.lifelong.start import model_of
from benchmarks.lifelong.stream.__main__ import method
from benchmarks.lifelong.sweep import sweep
from benchmarks.lifelong.training import Settings
from localopt.errors import InputError

SMOKE = 10  # questions of a kind


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lifelong.measures", description=(__doc__ or "").split(": ")[1]
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="FOLDER", help="what benchmarks.lifelong.prepare wrote"
    )
    parser.add_argument("--shared", type=Path, required=True, metavar="FOLDER", help="the public files, see README.md")
    parser.add_argument("--model", help="hub id, folder or GGUF file; default DATA/model, or that beside it")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="runs.jsonl, and what all runs share")
    parser.add_argument("--resume", action="store_true", help="go on with the runs in OUT")
    parser.add_argument(
        "--methods", nargs="+", type=method, default=["adamw"], metavar="NAME[@RATE]", help="those of the sweep"
    )
    parser.add_argument("--lrs", nargs="+", type=float, default=[6e-4], metavar="RATE", help="of methods without @RATE")
    parser.add_argument(
        "--halves",
        nargs="+",
        default=["A", "B", ENTITIES],
        choices=["A", "B", ENTITIES],
        help=f"what is taught: the facts of a half, or ({ENTITIES}) definitions of entities; in this order",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="SEED")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast, for processors that have it")
    parser.add_argument("--smoke", action="store_true", help="one epoch of short texts, few questions: does it run?")
    given = parser.parse_args(arguments)
    try:
        if not given.shared.is_dir():
            raise InputError(f"{given.shared}: no such folder: name the one with the public files.")
        file = sweep(
            given.data,
            given.model or model_of(given.data),
            given.out,
            cells(given.methods, given.lrs, given.halves, given.seeds),
            Settings.of(given.data, given.bf16, given.smoke),
            resume=given.resume,
            run=Measuring(given.shared, given.out, SMOKE if given.smoke else MOST),
            kept=MeasureRecords,
        )
    except InputError as error:
        print(f"measures: {error}", file=sys.stderr)
        sys.exit(2)
    print(file)


if __name__ == "__main__":
    main()
