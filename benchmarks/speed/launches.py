"""How often a step calls the device, what it allocates there, and how often it waits for it.

python -m benchmarks.speed.launches                          counted under fake tensors, on any machine
python -m benchmarks.speed.launches --out benchmarks/results/launches.md

Counted are calls of torch that run a kernel. A call on a list of tensors (``_foreach_norm``, ``_fused_adamw_``) is one
call and, for a long list, several launches: `calls`, on a GPU, counts those.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from torch.optim import SGD, Adagrad, AdamW, Optimizer
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed.fake_device import Recorded, fake_cuda, give_gradients, module_of
from benchmarks.speed.workloads import MODEL_HELP, shapes_of
from localopt import AboveMean, AnchorDecay, LocalizedOptimizer
from localopt.layers import partition
from localopt.signals import SIGNALS, LayerSignals

LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch")
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize")  # a copy to the host ends in the first
MODELS = ("smoke", "135M", "gpt2-large", "1B", "3B")
PAGE = """# Kernel calls of a step

Made by `python -m benchmarks.speed.launches`, with torch {torch}: every call of a warm step is logged under fake CUDA
tensors, float32, where a read by the host raises. None reads, none takes a tensor of the host, and each step calls what
the one before it called (`tests/device`). In each cell: calls that run a kernel, and the largest tensor that is
allocated. A call on a list is several launches where the list is long. Times on a GPU: not measured.

{table}
"""
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def calls(step: Callable[[], Any], device: torch.device) -> dict[str, int] | None:
    """Kernel launches and host synchronizations of one step, which should be warm; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        step()
    found = {"launches": 0, "waits": 0}
    for event in recorded.key_averages():
        found["launches"] += event.count if event.key.startswith(LAUNCHES) else 0
        found["waits"] += event.count if event.key in WAITS else 0
    return found


class Everywhere:
    """A policy that asks for signals and trains every layer."""

    binary = True

    def __init__(self, *needs: str) -> None:
        self.needs = needs

    def __call__(self, signals: LayerSignals) -> torch.Tensor:
        return torch.ones_like(signals.norm)


class Case(NamedTuple):
    """An optimizer, and how it is localized; no options: it is left alone."""

    make: Callable[[Any], Optimizer]
    options: Mapping[str, Any] | None


def _adamw(parameters: Any) -> Optimizer:
    return AdamW(parameters, lr=1e-4, fused=True)


CASES: dict[str, Case] = {
    "fused AdamW alone": Case(_adamw, None),
    "online": Case(_adamw, {}),
    "online, clipping": Case(_adamw, {"max_grad_norm": 1.0}),
    "online, clipping, plain decay": Case(_adamw, {"max_grad_norm": 1.0, "anchor_decay": 25.0}),
    "online, clipping, selective decay": Case(
        _adamw, {"max_grad_norm": 1.0, "anchor_decay": AnchorDecay(1.0, "selective")}
    ),
    "online, clipping, cautious decay": Case(
        _adamw, {"max_grad_norm": 1.0, "anchor_decay": AnchorDecay(25.0, "cautious")}
    ),
    "norm and l1": Case(_adamw, {"policy": Everywhere("norm", "l1")}),
    "all signals": Case(_adamw, {"policy": Everywhere(*SIGNALS)}),
    "online SGD, clipping": Case(lambda p: SGD(p, lr=0.1, momentum=0.9, fused=True), {"max_grad_norm": 1.0}),
    "online Adagrad, clipping": Case(lambda p: Adagrad(p, lr=0.1, fused=True), {"max_grad_norm": 1.0}),
}


def warm_step(shapes: Mapping[str, tuple[int, ...]], case: Case) -> Recorded:
    """What the third step calls, on a device that is not there."""
    with fake_cuda():
        module = module_of(shapes)
        inner = case.make(module.parameters())
        localized = None
        if case.options is not None:
            localized = LocalizedOptimizer(inner, module, **{"policy": AboveMean(), **case.options})
        for _ in range(3):
            give_gradients(module)
            if localized is not None:
                localized.observe(2.0)
            with Recorded() as recorded:
                (localized or inner).step()
    return recorded


def table(models: list[str]) -> str:
    """Return calls and the largest tensor allocated by a warm step, every case on every model, in Markdown."""
    known = {name: shapes_of(name) for name in models}
    heads = [
        f"{name}: {len(set(partition(shapes).values()))} layers, {len(shapes)} tensors"
        for name, shapes in known.items()
    ]
    lines = [f"| step | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for name, case in CASES.items():
        found = [warm_step(shapes, case) for shapes in known.values()]
        cells = [f"{len(recorded.kernels)}, {_size(recorded.largest)}" for recorded in found]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


@app.command()
def main(
    models: Annotated[
        str, typer.Option("--model", "--models", help=f"{MODEL_HELP} Several: comma-separated.", metavar="MODEL")
    ] = ",".join(MODELS),
    out: Annotated[Path | None, typer.Option(help="Write the page to this file.")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="The smallest model alone.")] = False,
) -> None:
    """Count the kernel calls of a warm step, and the largest tensor it allocates."""
    page = PAGE.format(torch=torch.__version__.split("+")[0], table=table(["smoke"] if smoke else models.split(",")))
    if out is None:
        print(page, end="")
    else:
        out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    app()
