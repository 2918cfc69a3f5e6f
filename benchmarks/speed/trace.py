"""How fast a trace is: ``python -m benchmarks.speed.trace [--model FOLDER] [--json FILE] [--smoke]``.

Ways through one batch of examples, each repetition one after the other in one process:

- loop: the gradient norms of every example, one forward and backward pass an example (``batch_size=1``);
- batched: the same norms from one forward and backward pass over the batch (:mod:`localopt.tracing.ghost`);
- gains loop, gains batched: gains and damages in either way, with the batch as probe and as reference, so that every
  example is measured twice; an example counts twice in examples/s;
- plain: an ordinary forward and backward pass over the batch, which gives no norms: the yardstick for memory.

The model has the shapes of SmolLM2-135M, or of the one you name, and random weights. A trace compares one example of
its first batch with the loop; that happens before the clock starts. A model that cannot be measured in batches is
measured one by one, as a trace does, and the reason is told. Peak memory is that of a fresh process (or of the CUDA
allocator), above what the model takes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from benchmarks.memory import growth
from benchmarks.speed.workloads import MODEL_HELP, config_of, shapes_of
from benchmarks.stamp import stamp, summary
from localopt.layers import partition
from localopt.tracing.gains import first_step
from localopt.tracing.ghost import Batched
from localopt.tracing.lending import borrowed
from localopt.tracing.measure import average_norms

WAYS = ("loop", "batched", "gains loop", "gains batched", "plain")
LOOPS = {way: "gains loop" if way.startswith("gains") else "loop" for way in WAYS}


class Workload(NamedTuple):
    model: str
    examples: int
    tokens: int
    threads: int
    device: str


class Timed(NamedTuple):
    wall: float
    cpu: float


def main() -> None:
    arguments = _arguments()
    name, repetitions = ("smoke", 2) if arguments.smoke else (arguments.model, arguments.repetitions)
    work = Workload(name, arguments.examples, arguments.tokens, arguments.threads, arguments.device)
    torch.set_num_threads(work.threads)
    times, difference, refusals = measured_times(work, repetitions)
    result = {
        "stamp": stamp(),
        "workload": work._asdict(),
        "repetitions": repetitions,
        "seconds": {way: [timed.wall for timed in times[way]] for way in WAYS},
        "cpu_seconds": {way: [timed.cpu for timed in times[way]] for way in WAYS},
        "peak_bytes": {way: in_fresh_process(way, work) for way in WAYS},
        "largest_relative_difference": difference,
        "one_by_one": refusals,
    }
    show(result)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def measured_times(work: Workload, repetitions: int) -> tuple[dict[str, list[Timed]], float, dict[str, str]]:
    """Times of every way in every repetition; how far the norms of the loop and of the batch are apart; by way, why
    the model was not measured in batches, if it was not."""
    model, batch = prepared(work)
    refusals: dict[str, str] = {}
    times: dict[str, list[Timed]] = {way: [] for way in WAYS}
    with borrowed(model):
        runs = {way: runner(way, model, batch, refusals) for way in WAYS}
        found = {way: runs[way]() for way in WAYS}  # so that a batch is compared with the loop before the clock starts
        for _ in range(repetitions):
            for way in WAYS:
                times[way].append(timed(runs[way], work.device))
    pairs = (("batched", "loop"), ("gains batched", "gains loop"))
    return times, max((found[one] / found[other] - 1).abs().max().item() for one, other in pairs), refusals


def timed(run: Callable[[], Any], device: str) -> Timed:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return Timed(time.perf_counter() - wall, time.process_time() - cpu)


def prepared(work: Workload) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    config = config_of(work.model)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=False, dtype=torch.float32)
    model.to(torch.device(work.device))
    words = config.get_text_config().vocab_size
    tokens = torch.randint(words, (work.examples, work.tokens), device=work.device)
    return model, {"input_ids": tokens, "labels": tokens}


def runner(way: str, model: nn.Module, batch: dict[str, Tensor], refusals: dict[str, str]) -> Callable[[], Any]:
    """What to time; for the model as ``borrowed`` lends it. ``refusals`` gets the reason why a batch was not taken."""
    layer_of = partition(name for name, _ in model.named_parameters())
    rows = [{key: value[i : i + 1] for key, value in batch.items()} for i in range(len(batch["input_ids"]))]
    batched = Batched(model, layer_of, 1 if way in LOOPS.values() else len(rows))

    def plain() -> None:
        model(**batch).loss.backward()
        model.zero_grad()

    def norms() -> Tensor:
        if way.startswith("gains"):
            step = first_step(model, rows, rows, layer_of, batched=batched)
            values = torch.cat([step.gains, step.damages])
        else:
            values, _ = average_norms(model, rows, layer_of, batched=batched)
        if batched.refusal is not None and way not in LOOPS.values():
            refusals[way] = batched.refusal
        return values

    return plain if way == "plain" else norms


def in_fresh_process(way: str, work: Workload) -> int | None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(peak_bytes, way, work).result()


def peak_bytes(way: str, work: Workload) -> int | None:
    """Peak memory of one run above that before it; None where it cannot be measured."""
    torch.set_num_threads(work.threads)
    model, batch = prepared(work)
    with borrowed(model):
        return growth(runner(way, model, batch, {}), work.device)


def show(result: dict[str, Any]) -> None:
    work, seconds, cpu, peaks = (result[key] for key in ("workload", "seconds", "cpu_seconds", "peak_bytes"))
    table = Table(
        title=f"{work['examples']} examples x {work['tokens']} tokens on {work['device']}, "
        f"{work['threads']} threads, {result['repetitions']} repetitions",
        caption=summary(result["stamp"]),
    )
    table.add_column("way", no_wrap=True)
    for title in ("s: median", "s: least", "examples/s", "CPU s: median", "its loop / this: median (range)", "peak MB"):
        table.add_column(title, justify="right")
    for way in WAYS:
        ratios = [loop / this for loop, this in zip(seconds[LOOPS[way]], seconds[way], strict=True)]
        measured = work["examples"] * (2 if way.startswith("gains") else 1)
        table.add_row(
            way,
            f"{median(seconds[way]):.2f}",
            f"{min(seconds[way]):.2f}",
            f"{measured / median(seconds[way]):.2f}",
            f"{median(cpu[way]):.2f}",
            f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            "not measured" if peaks[way] is None else f"{peaks[way] / 1e6:.0f}",
        )
    console = Console()
    console.print(table)
    console.print(f"numbers of the batch and of the loop: within {result['largest_relative_difference']:.1e}")
    for way, reason in result["one_by_one"].items():
        console.print(f"{way}: measured one by one: {reason}", markup=False, soft_wrap=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.trace", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--model", default="135M", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured, with the stamp")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, in seconds")
    parser.add_argument("--rounds", "--repetitions", dest="repetitions", type=int, default=9)
    parser.add_argument("--examples", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64, help="length of an example")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    given = parser.parse_args()
    try:
        shapes_of(given.model)
        most = getattr(config_of(given.model), "max_position_embeddings", None)
    except (typer.BadParameter, ValueError) as error:  # the second: not a causal language model's
        parser.error(f"--model {error}")
    if most is not None and given.tokens > most:
        parser.error(f"--tokens {given.tokens}: {given.model} reads at most {most}")
    return given


if __name__ == "__main__":
    main()
