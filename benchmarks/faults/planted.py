"""Models that come with code or a pickle, given to every command with "y" on standard input: nothing of it runs."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from benchmarks.faults.count import Clock, Count
from benchmarks.faults.forked import localopt
from benchmarks.faults.material import write_inputs
from tests.planted import CODE, PICKLES


def a_model(count: Count, number: int, seed: int, folder: Path, clock: Clock) -> None:
    """Give so many planted models to commands, each to each before one comes again."""
    inputs = write_inputs(folder / "inputs")
    facts, corpus = inputs / "facts.jsonl", inputs / "corpus.txt"
    commands: dict[str, list[object]] = {
        "eval": ["--probe", facts],
        "trace": ["--probe", facts, "--reference", corpus, "--out", folder / "made.safetensors"],
        "train": ["--corpus", corpus, "--out", folder / "run"],
    }
    plants = CODE | PICKLES
    pairs = [(plant, command) for plant in plants for command in commands]
    order = random.Random(seed).sample(pairs, len(pairs))
    while count.tries < number and not clock.over:
        plant, command = order[count.tries % len(order)]
        mark, place = folder / "ran", folder / "planted"
        model = plants[plant](place, mark)
        done = localopt(command, model, *commands[command])
        count.tries += 1
        what = f"{plant} given to {command}"
        if done.traceback:
            count.note("traceback", f"{what}: {done.said[-800:]}")
        if done.code is None:
            count.note("hang", what)
        elif mark.exists():
            count.note("wrong", f"{what}: it ran")
        elif done.code != 2 or (folder / "made.safetensors").exists() or (folder / "run" / "model").exists():
            count.note("wrong", f"{what}: exit code {done.code}: {done.said[-300:]}")
        count.add("refused", done.code == 2)
        for left in (place, folder / "run"):
            shutil.rmtree(left, ignore_errors=True)
        mark.unlink(missing_ok=True)
