"""Are norms cheaper when they are taken in the backward pass, while a gradient is still in cache?

python -m benchmarks.speed.hooks                 135M shapes, batch 8 x 160 tokens, bf16 autocast
python -m benchmarks.speed.hooks --smoke         seconds, for CI

Three ways through forward and backward pass, in turn: without norms; with all norms taken after it, in one pass, as
`LocalizedOptimizer` does; with each gradient's norm taken in a hook as soon as it is there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.speed.train import Run
from benchmarks.stamp import stamp, summary
from benchmarks.timing import rounds_of
from localopt.signals import layer_norms
from localopt.steps.layout import segments
from localopt.sums import squared_norm

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    rounds: Annotated[int, typer.Option(help="Timed repetitions of each way.")] = 9,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Seconds instead of minutes; the figures mean nothing.")
    ] = False,
) -> None:
    """Time a backward pass without norms, with norms after it, and with norms in its hooks."""
    run = Run("AdamW", "smoke" if smoke else "135M", (2, 16) if smoke else (8, 160))
    parameters = list(run.model.parameters())
    layout = segments(range(len(parameters)), len(parameters))
    squares: list[torch.Tensor] = []

    def in_a_hook(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        squares.append(squared_norm(parameter.grad))

    def backward(finish: Callable[[], object], *, hooked: bool = False) -> float:
        hooks = [p.register_post_accumulate_grad_hook(in_a_hook) for p in parameters] if hooked else []
        loss = run.forward()
        begun = time.perf_counter()
        loss.backward()
        finish()
        elapsed = time.perf_counter() - begun
        for hook in hooks:
            hook.remove()
        squares.clear()
        run.model.zero_grad()
        return elapsed

    ways = {
        "no norms": lambda: backward(lambda: None),
        "norms after": lambda: backward(lambda: layer_norms([p.grad for p in parameters], layout)),
        "norms in hooks": lambda: backward(lambda: torch.stack(squares).sqrt(), hooked=True),
    }
    timings = rounds_of(ways, 1 if smoke else rounds)
    stamped = stamp()
    table = Table(title="backward pass and norms", caption=summary(stamped))
    for column in ("way", "seconds", "/ no norms (quartiles)"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for name, timing in timings.items():
        median, low, high = timing.ratio(timings["no norms"])
        table.add_row(name, f"{timing.median:.3f}", f"{median:.3f} ({low:.3f}-{high:.3f})")
    Console().print(table)
    if json_file is not None:
        seconds = {name: timing.seconds for name, timing in timings.items()}
        json_file.write_text(json.dumps({"stamp": stamped, "rounds": rounds, "seconds": seconds}, indent=1) + "\n")


if __name__ == "__main__":
    app()
