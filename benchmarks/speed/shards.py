"""A localized step of a model that FSDP2 shards, on one process: equal to the step of the whole model, and its time.

python -m benchmarks.speed.shards --model 135M --json FILE       NCCL on a CUDA device
python -m benchmarks.speed.shards --smoke                        Gloo on a CPU
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
import typer
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import AdamW
from transformers import AutoModelForCausalLM

from benchmarks.speed.workloads import MODEL_HELP, config_of
from benchmarks.stamp import stamp, summary
from benchmarks.timing import once, rounds_of
from localopt import AboveMean, LocalizedOptimizer

STEPS = 3
TOLERANCE = 1e-5  # of weights, after as many steps at a rate of 1e-3
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def model_of(name: str, device: torch.device) -> nn.Module:
    """A model with random weights, the same every time."""
    torch.manual_seed(0)
    model: nn.Module = AutoModelForCausalLM.from_config(config_of(name), trust_remote_code=False)
    return model.to(device)


def sharded(model: nn.Module, device: torch.device) -> nn.Module:
    """Shard every block, then the rest."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for module in list(model.modules()):
        if type(module).__name__.endswith(("DecoderLayer", "GPT2Block")):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def localized(model: nn.Module) -> LocalizedOptimizer:
    inner = AdamW(model.parameters(), lr=1e-3, fused=True)
    return LocalizedOptimizer(inner, model, AboveMean(), max_grad_norm=1.0, anchor_decay=1.0)


def whole(parameter: Tensor) -> Tensor:
    return (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).detach()


def measure(name: str, device: torch.device, rounds: int) -> dict[str, Any]:
    """Train both for some steps, compare their weights, then time their steps."""
    models = {"sharded": sharded(model_of(name, device), device), "whole": model_of(name, device)}
    optimizers = {key: localized(model) for key, model in models.items()}
    for step in range(STEPS):
        tokens = torch.randint(100, (2, 16), generator=torch.Generator().manual_seed(step)).to(device)
        for key, model in models.items():
            optimizers[key].zero_grad()
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizers[key].step()
    pairs = zip(models["sharded"].parameters(), models["whole"].parameters(), strict=True)
    apart = max((whole(a) - whole(b)).abs().max().item() for a, b in pairs)
    steps: dict[str, Callable[[], float]] = {
        key: lambda one=one: once(one.step, device)  # type: ignore[misc]
        for key, one in optimizers.items()
    }
    timings = rounds_of(steps, rounds)
    found = {"largest difference": apart, "sharded / whole": timings["sharded"].ratio(timings["whole"])}
    return {**found, "seconds": {key: timing.seconds for key, timing in timings.items()}}


@app.command()
def main(
    model: Annotated[str, typer.Option(help=MODEL_HELP, metavar="MODEL")] = "135M",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cuda" if torch.cuda.is_available() else "cpu",
    rounds: Annotated[int, typer.Option(help="Timed steps of each.")] = 11,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="A tiny model; the figures mean nothing.")] = False,
) -> None:
    """Compare a step of shards with a step of the whole."""
    backend = "nccl" if device == "cuda" else "gloo"
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(backend, init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        try:
            found = measure("smoke" if smoke else model, torch.device(device), 2 if smoke else rounds)
        finally:
            dist.destroy_process_group()
    median, low, high = found["sharded / whole"]
    apart = found["largest difference"]
    print(f"FSDP2 over {backend}, one process: weights apart by at most {apart:.1e}")
    print(f"step of shards / step of the whole: {median:.2f} ({low:.2f}-{high:.2f})\n{summary(stamp())}")
    if backend != "nccl":
        print("NCCL: not measured, it needs --device cuda.")
    if json_file is not None:
        result = {"stamp": stamp(), "model": model, "backend": backend, **found}
        json_file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if apart > TOLERANCE:
        print(f"They are to agree to {TOLERANCE}: they do not.")
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
