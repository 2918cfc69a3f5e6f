"""Count faults: `python -m benchmarks.faults [--smoke] [--seed N] [--minutes M] [--only FAMILY ...]`.

With `--out FILE` the table is written too, with `--json FILE` the counts, which add up over calls with other seeds
(`python -m benchmarks.faults.table`).
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # threads do not outlive a fork
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here is on the hub
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks.faults import planted, runs, steps, texts, traces
from benchmarks.faults.count import Clock, Count
from benchmarks.faults.material import write_inputs
from benchmarks.faults.table import failures, page, save, table
from benchmarks.stamp import stamp


class Family(NamedTuple):
    """One kind of tries.

    Attributes:
        what: a try is.
        function: makes them.
        tries: how many.
        smoke: how many where it has to be quick.
        share: of the minutes, where these are given, beside the shares of the others that are asked for.
        trains: whether it needs a model and a corpus in its folder.
    """

    what: str
    function: Callable[[Count, int, int, Path, Clock], None]
    tries: int
    smoke: int
    share: float
    trains: bool = False


FAMILIES = {
    "traces": Family("any bytes or JSON as a trace file", traces.a_trace, 5000, 40, 0.05),
    "probes": Family("any bytes as a probe file, by BPE, WordPiece and Unigram", texts.a_probe, 2000, 20, 0.1),
    "corpora": Family("any bytes as a corpus, by the same", texts.a_corpus, 2000, 20, 0.05),
    "planted": Family('code or a pickle in a model, with "y" on standard input', planted.a_model, 42, 1, 0.05),
    "checkpoints": Family(
        "a file of a checkpoint removed, emptied, cut or changed", runs.a_checkpoint, 64, 1, 0.15, True
    ),
    "kills": Family(
        "a run killed by SIGKILL at an event in its folder, or at any time", runs.a_kill, 200, 1, 0.25, True
    ),
    "full disks": Family("a run that finds the disk full", runs.a_full_disk, 30, 1, 0.1, True),
    "steps": Family("a step; in 1% a gradient is NaN or infinite", steps.a_step, 390_000, 1200, 0.25),
}


def main() -> None:
    """Run the families, show and write the table; exit code 1 if a target was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few tries of each family, in under a minute")
    parser.add_argument("--seed", type=int, default=0, help="decides every try")
    parser.add_argument("--minutes", type=float, help="stop each family after its share of these, done or not")
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=[*FAMILIES], help="families to run")
    parser.add_argument("--out", type=Path, help="file for the table, such as benchmarks/results/faults.md")
    parser.add_argument("--json", type=Path, help="file for the counts")
    parser.add_argument("--times", type=float, default=1.0, help="this many times the tries")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bar()  # type: ignore[no-untyped-call]  # of writing a model
    with tempfile.TemporaryDirectory(prefix="faults-") as made:
        counts = [_counted(name, arguments, Path(made)) for name in arguments.only]
    print(table(counts))
    # Where a file lay says nothing about the counts.
    given = [Path(word).name if os.path.isabs(word) else word for word in sys.argv[1:]]
    command, stamped = " ".join(["python -m benchmarks.faults", *given]), stamp("tokenizers", "hypothesis")
    if arguments.out is not None:
        arguments.out.write_text(page(counts, [command], stamped), encoding="utf-8")
    if arguments.json is not None:
        save(counts, command, stamped, arguments.json)
    if not all(count.clean for count in counts):
        raise SystemExit(f"a target was missed:\n{failures(counts)}")


def _counted(name: str, arguments: argparse.Namespace, folder: Path) -> Count:
    family = FAMILIES[name]
    count = Count(name, family.what)
    share = family.share / sum(FAMILIES[one].share for one in arguments.only)
    seconds = None if arguments.minutes is None else arguments.minutes * 60 * share
    begun = time.monotonic()
    own = write_inputs(folder / "runs") if family.trains else folder / name
    own.mkdir(exist_ok=True)
    number = math.ceil(arguments.times * (family.smoke if arguments.smoke else family.tries))
    family.function(count, number, arguments.seed, own, Clock.of(seconds))
    count.seconds = time.monotonic() - begun
    print(f"{name}: {count.tries} tries, {count.found}, {count.seconds:.0f} s", file=sys.stderr, flush=True)
    return count


if __name__ == "__main__":
    main()
