"""python -m benchmarks.lifelong.stream: teach a model period after period, and see what it still knows of each."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.lifelong.methods.methods import METHODS
from benchmarks.lifelong.start import model_of
from benchmarks.lifelong.stream.stream import ANCHORS, Stream, StreamRecords, cells
from benchmarks.lifelong.sweep import sweep
from benchmarks.lifelong.training import Settings
from localopt.errors import InputError


def method(text: str) -> str:
    """NAME or NAME@RATE."""
    name, _, rate = text.partition("@")
    if name not in METHODS:
        raise argparse.ArgumentTypeError(f"{name}: no such method; there are {', '.join(METHODS)}")
    try:
        float(rate or 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: {rate} is no rate; give {name}@1e-4 for example") from None
    return text


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lifelong.stream", description=(__doc__ or "").split(": ")[1]
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="FOLDER", help="what benchmarks.lifelong.prepare wrote"
    )
    parser.add_argument("--model", help="hub id, folder or GGUF file; default DATA/model, or that beside it")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="runs.jsonl, and what all runs share")
    parser.add_argument("--resume", action="store_true", help="go on with the stream in OUT")
    parser.add_argument(
        "--methods", nargs="+", type=method, default=["adamw"], metavar="NAME[@RATE]", help="those of the sweep"
    )
    parser.add_argument("--lrs", nargs="+", type=float, default=[6e-4], metavar="RATE", help="of methods without @RATE")
    parser.add_argument(
        "--anchors", nargs="+", choices=ANCHORS, default=list(ANCHORS), help="which start decay goes toward"
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0], metavar="SEED", help="also the order of the periods"
    )
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast, for processors that have it")
    parser.add_argument("--smoke", action="store_true", help="one epoch of short texts: does it run?")
    given = parser.parse_args(arguments)
    try:
        file = sweep(
            given.data,
            given.model or model_of(given.data),
            given.out,
            cells(given.methods, given.lrs, given.anchors, given.seeds),
            Settings.of(given.data, given.bf16, given.smoke),
            resume=given.resume,
            run=lambda bench, cell: Stream(given.out / "periods")(bench, cell),
            kept=StreamRecords,
        )
    except InputError as error:
        print(f"stream: {error}", file=sys.stderr)
        sys.exit(2)
    print(file)


if __name__ == "__main__":
    main()
