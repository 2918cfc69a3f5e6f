"""A localized step in a CUDA graph: replayed while the learning rate changes, against the same steps run eagerly.

python -m benchmarks.speed.graph --model 135M --json FILE        needs a CUDA device
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch.optim import AdamW

from benchmarks.speed.contenders import MAX_NORM
from benchmarks.speed.workloads import MODEL_HELP, Workload, of_model
from benchmarks.stamp import stamp, summary
from benchmarks.timing import once, rounds_of
from localopt import AboveMean, LocalizedOptimizer

FACTORS = (1.0, 0.5, 0.1)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def optimizer_of(workload: Workload, rate: torch.Tensor) -> LocalizedOptimizer:
    """Online, with clipping and decay toward the start, at a learning rate that lives on the device."""
    inner = AdamW(workload.parameters.items(), lr=rate, fused=True, capturable=True)
    return LocalizedOptimizer(inner, policy=AboveMean(), max_grad_norm=MAX_NORM, anchor_decay=25.0)


def captured(optimizer: LocalizedOptimizer) -> torch.cuda.CUDAGraph:
    """Warm up on a stream of its own, as torch asks for, and capture one step."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    return graph


def measure(model: str, rounds: int) -> dict[str, Any]:
    """Replay and run eagerly at three rates, compare the weights, then time both."""
    workload = of_model(model, torch.float32, "cuda")
    workload.restore_gradients()
    twin = copy.deepcopy(workload)
    twin.restore_gradients()
    rate = torch.tensor(1e-3, device="cuda")
    replayed, eager = optimizer_of(workload, rate), optimizer_of(twin, rate)
    eager.step()
    graph = captured(replayed)
    for factor in FACTORS:
        rate.fill_(1e-3 * factor)
        for one in (workload, twin):
            one.restore_gradients()
        graph.replay()
        eager.step()
    torch.cuda.synchronize()
    pairs = zip(workload.parameters.values(), twin.parameters.values(), strict=True)
    apart = max((a - b).abs().max().item() for a, b in pairs)
    ways: dict[str, Callable[[], Any]] = {"replayed": graph.replay, "eager": eager.step}
    device = torch.device("cuda")
    timings = rounds_of({name: partial(once, step, device) for name, step in ways.items()}, rounds)
    ratio = timings["replayed"].ratio(timings["eager"])
    seconds = {name: timing.seconds for name, timing in timings.items()}
    return {"largest difference": apart, "replayed / eager": ratio, "seconds": seconds}


@app.command()
def main(
    model: Annotated[str, typer.Option(help=MODEL_HELP, metavar="MODEL")] = "135M",
    rounds: Annotated[int, typer.Option(help="Timed repetitions of each way.")] = 21,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="A tiny model; the figures mean nothing.")] = False,
) -> None:
    """Compare a replayed step with an eager one, by PyTorch's kernels and by Triton's."""
    if not torch.cuda.is_available():
        print("CUDA graphs: not measured, they need a CUDA device.")
        return
    found: dict[str, Any] = {}
    for kernels in ("torch", "triton"):
        os.environ["LOCALOPT_TRITON"] = str(int(kernels == "triton"))
        found[kernels] = measure("smoke" if smoke else model, 2 if smoke else rounds)
        median, low, high = found[kernels]["replayed / eager"]
        apart = found[kernels]["largest difference"]
        print(f"{kernels}: replayed / eager {median:.2f} ({low:.2f}-{high:.2f}), weights apart by at most {apart:.1e}")
    print(summary(stamp("triton")))
    if json_file is not None:
        json_file.write_text(json.dumps({"stamp": stamp("triton"), "model": model, **found}, indent=1) + "\n")
    if any(one["largest difference"] > 0 for one in found.values()):
        print("A replayed step is to be the eager one, bit for bit: it is not.")
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
