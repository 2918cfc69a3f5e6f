"""What localized training costs end to end: forward, backward and step of a real model, time and peak memory.

python -m benchmarks.speed.train                 135M shapes, batch 8 x 160 tokens, bf16 autocast
python -m benchmarks.speed.train --smoke         seconds, for CI
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.optim import AdamW
from transformers import AutoModelForCausalLM

from benchmarks.memory import growth
from benchmarks.speed.contenders import Chosen
from benchmarks.speed.workloads import MODEL_HELP, config_of, spread
from benchmarks.stamp import stamp
from benchmarks.timing import rounds_of
from localopt import Fixed, LocalizedOptimizer
from localopt.layers import locate, partition

METHODS = {
    "AdamW": "AdamW on everything",
    "FP": "TGL+FP, half of the layers spread over the depth, frozen by requires_grad",
    "FP deep": "TGL+FP, the deep half of the blocks",
    "online": "online, half of the parameters updated",
    "ALR": "TGL+ALR, every layer at a rate of its own",
}
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console()


class Run:
    """A model in training by one method."""

    def __init__(self, method: str, size: str, batch: tuple[int, int], device: str = "cpu") -> None:
        torch.manual_seed(0)
        self.device = torch.device(device)
        config = config_of(size)
        self.model = AutoModelForCausalLM.from_config(config, trust_remote_code=False).to(self.device)
        self.ids = torch.randint(0, config.vocab_size, batch, device=self.device)
        layer_of = partition(name for name, _ in self.model.named_parameters())
        chosen, _ = spread(dict(self.model.named_parameters()), 0.5)
        if method == "FP deep":
            depth = max(locate(layer)[1] or 0 for layer in layer_of.values()) + 1
            chosen = [layer for layer in layer_of.values() if (locate(layer)[1] or 0) >= depth / 2]
        if method.startswith("FP"):
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(layer_of[name] in chosen)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.share = sum(p.numel() for p in trained) / sum(p.numel() for p in self.model.parameters())
        self.optimizer: torch.optim.Optimizer = AdamW(trained, lr=1e-5, fused=True)
        if method == "online":
            self.optimizer = LocalizedOptimizer(self.optimizer, self.model, Chosen(chosen))
        if method == "ALR":
            names = list(dict.fromkeys(layer_of.values()))
            rates = Fixed({name: (i + 1) / len(names) for i, name in enumerate(names)})
            self.optimizer = LocalizedOptimizer(self.optimizer, self.model, rates)

    def forward(self) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16):
            loss: torch.Tensor = self.model(input_ids=self.ids, labels=self.ids).loss
        return loss

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def step(self) -> None:
        self.forward().backward()
        self.update()

    def timed(self) -> tuple[float, float, float]:
        """Seconds of the forward pass, the backward pass and the update of one step."""
        begun = self._now()
        loss = self.forward()
        read = self._now()
        loss.backward()
        known = self._now()
        self.update()
        return read - begun, known - read, self._now() - known

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


@app.command()
def main(
    size: Annotated[str, typer.Option("--model", "--size", help=MODEL_HELP, metavar="MODEL")] = "135M",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    rounds: Annotated[int, typer.Option(help="Timed steps of every method.")] = 7,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Seconds instead of minutes; the figures mean nothing.")
    ] = False,
    memory_of: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Time whole training steps, all methods in turn, then measure each one's peak memory in a process of its own."""
    batch = (2, 16) if smoke else (8, 160)
    size = "smoke" if smoke else size
    if memory_of is not None:
        print(json.dumps(_peak_memory(memory_of, size, batch, device)))
        return
    runs = {method: Run(method, size, batch, device) for method in METHODS}
    parts: dict[str, list[tuple[float, float, float]]] = {method: [] for method in METHODS}

    def step(method: str) -> float:
        parts[method].append(runs[method].timed())
        return sum(parts[method][-1])

    seconds = rounds_of({method: partial(step, method) for method in METHODS}, 1 if smoke else rounds)
    shares = {method: run.share for method, run in runs.items()}
    runs.clear()  # the memory of each is measured in a process of its own
    memory = {method: _in_a_process(method, size, device, smoke) for method in METHODS}
    table = Table(
        title=f"{size}, batch {batch[0]} x {batch[1]}, bf16 autocast, {device}: one training step",
        caption="; ".join(f"{method}: {label}" for method, label in METHODS.items()),
    )
    columns = (
        "method",
        "trained",
        "time / AdamW",
        "forward + backward + step, s",
        "memory / AdamW",
        "peak above weights",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "method" else "right")
    figures: dict[str, Any] = {}
    for method, label in METHODS.items():
        ratio = seconds[method].ratio(seconds["AdamW"])
        space = memory[method] / memory["AdamW"]
        figures[method] = {
            "label": label,
            "share": shares[method],
            "time ratio": ratio,
            "seconds": seconds[method].seconds,
            "memory ratio": space,
            "bytes above weights": memory[method],
        }
        spread = f"{ratio[0]:.2f} ({ratio[1]:.2f}-{ratio[2]:.2f})"
        medians = [statistics.median(column) for column in zip(*parts[method][1:], strict=True)]
        figures[method]["forward, backward, step"] = medians
        row = (f"{shares[method]:.0%}", spread, " + ".join(f"{part:.2f}" for part in medians), f"{space:.2f}")
        table.add_row(method, *row, f"{memory[method] / 1e6:.0f} MB")
    console.print(table)
    if json_file is not None:
        result = {
            "stamp": stamp(),
            "size": size,
            "device": device,
            "batch": batch,
            "rounds": rounds,
            "methods": figures,
        }
        json_file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _in_a_process(method: str, size: str, device: str, smoke: bool) -> int:
    arguments = [sys.executable, "-m", "benchmarks.speed.train", "--model", size, "--device", device]
    arguments += ["--memory-of", method]
    run = subprocess.run([*arguments, *(["--smoke"] if smoke else [])], capture_output=True, text=True, check=True)
    return int(json.loads(run.stdout.strip().splitlines()[-1]))


def _peak_memory(method: str, size: str, batch: tuple[int, int], device: str) -> int:
    """Bytes the process grew to in three training steps, above what it had with the model loaded."""
    run = Run(method, size, batch, device)
    grown = growth(lambda: [run.step() for _ in range(3)], device)
    if grown is None:
        raise SystemExit("the memory of a training run can be measured on Linux only")
    return grown


if __name__ == "__main__":
    app()
