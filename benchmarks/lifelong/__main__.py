"""python -m benchmarks.lifelong: teach a model new facts by each method, and see what it learned and what it lost."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.lifelong.methods.methods import METHODS
from benchmarks.lifelong.start import model_of
from benchmarks.lifelong.sweep import cells, sweep
from benchmarks.lifelong.training import Settings
from localopt.errors import InputError


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lifelong", description=(__doc__ or "").split(": ")[1])
    parser.add_argument(
        "--data", type=Path, required=True, metavar="FOLDER", help="what benchmarks.lifelong.prepare wrote"
    )
    parser.add_argument("--model", help="hub id, folder or GGUF file; default DATA/model, or that beside it")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="runs.jsonl, and what all runs share")
    parser.add_argument("--resume", action="store_true", help="go on with the sweep in OUT")
    parser.add_argument(
        "--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="NAME", help=", ".join(METHODS)
    )
    parser.add_argument("--lrs", nargs="+", type=float, default=[1.5e-4], metavar="RATE")
    parser.add_argument("--halves", nargs="+", default=["A", "B"], choices=["A", "B"], metavar="A|B")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="SEED")
    parser.add_argument(
        "--start-seed", type=int, default=0, metavar="SEED", help="of the start that an OUT without one begins with"
    )
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast, for processors that have it")
    parser.add_argument("--smoke", action="store_true", help="one epoch of short texts: does it run?")
    given = parser.parse_args(arguments)
    try:
        settings = Settings.of(given.data, given.bf16, given.smoke)
        file = sweep(
            given.data,
            given.model or model_of(given.data),
            given.out,
            cells(given.methods, given.lrs, given.halves, given.seeds),
            settings,
            resume=given.resume,
            start_seed=given.start_seed,
        )
    except InputError as error:
        print(f"lifelong: {error}", file=sys.stderr)
        sys.exit(2)
    print(file)


if __name__ == "__main__":
    main()
