"""How fast the signals of a step are taken: bytes a second, against what this machine reads.

python -m benchmarks.speed.signals                    the 135M model, fp32
python -m benchmarks.speed.signals --smoke            seconds, for CI
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.speed.contenders import Contender
from benchmarks.speed.workloads import Workload, of_model
from benchmarks.stamp import stamp
from benchmarks.timing import bandwidth, interleave
from localopt.signals import layer_signals
from localopt.steps.layout import segments
from localopt.sums import READS, Sources

TOGETHER = (
    ("norm", "l1"),
    ("norm", "l1", "weight"),  # relative change
    ("norm", "drift", "pullback"),  # selective decay
    ("norm", "l1", "pullback", "drift"),
    ("norm", "momentum", "agreement"),
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console()


@app.command()
def main(
    model: Annotated[str, typer.Option(help="Of benchmarks.speed.workloads.CONFIGS.")] = "135M",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16, of everything that is read.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cuda" if torch.cuda.is_available() else "cpu",
    rounds: Annotated[int, typer.Option(help="Timed repetitions of every set of signals.")] = 15,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Seconds instead of minutes; the figures mean nothing.")
    ] = False,
) -> None:
    """Time every signal alone, and those that rules take together; ratios to a plain sum of as many bytes."""
    if smoke:
        model, rounds = "smoke", 2
    place = torch.device(device)
    read = bandwidth(place, 1 << 20 if smoke else 1 << 27)["read"]
    workload = of_model(model, DTYPES[dtype], device)
    workload.restore_gradients()
    sources = _sources(workload)
    sets: list[tuple[str, ...]] = [*((name,) for name in READS), *TOGETHER]
    timings = interleave([_taking(workload, names, sources) for names in sets], rounds, title=f"signals of {model}")
    table = Table(title=f"{model}, {dtype}: signals of {len(workload.layers)} layers")
    table.caption = f"Medians. This machine reads {read / 1e9:.1f} GB/s in a plain sum."
    for column in ("signals", "bytes a parameter", "ms", "GB/s", "of the read bandwidth"):
        table.add_column(column, justify="left" if column == "signals" else "right")
    found: dict[str, Any] = {"stamp": stamp(), "model": model, "dtype": dtype, "read bandwidth": read, "signals": {}}
    for names in sets:
        each = len({role for name in names for role in READS[name]}) * workload.noise.element_size()
        seconds = statistics.median(timings[" ".join(names)].seconds)
        rate = each * workload.elements / seconds
        table.add_row(" ".join(names), str(each), f"{seconds * 1e3:.1f}", f"{rate / 1e9:.1f}", f"{rate / read:.0%}")
        found["signals"][" ".join(names)] = {"bytes": each, "seconds": seconds, "share": rate / read}
    console.print(table)
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _sources(workload: Workload) -> Sources:
    parameters = list(workload.parameters.values())
    return {
        "gradient": [parameter.grad for parameter in parameters],
        "weight": [parameter.detach() for parameter in parameters],
        "start": [parameter.detach() * 0.99 for parameter in parameters],
        "momentum": [parameter.detach() * 0.5 for parameter in parameters],
    }


def _taking(workload: Workload, names: Sequence[str], sources: Sources) -> Contender:
    index = {layer: number for number, layer in enumerate(workload.layers)}
    layout = segments([index[layer] for layer in workload.layer_of.values()], len(index), workload.noise.device)
    return Contender(" ".join(names), workload, lambda: layer_signals(names, sources, layout))


if __name__ == "__main__":
    app()
