"""What decay toward the start costs, against AdamW alone and against the lerp that people write after it.

python -m benchmarks.speed.anchor                     the 135M model, fp32, at 1 and .3 of the parameters
python -m benchmarks.speed.anchor --smoke             seconds, for CI
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.optim import AdamW

from benchmarks.speed.contenders import Chosen, Contender
from benchmarks.speed.workloads import Workload, of_model
from benchmarks.stamp import stamp
from benchmarks.timing import Timing, interleave
from localopt import AnchorDecay, Fixed, LocalizedOptimizer

SHARES = (1.0, 0.3)
DECAY = 100.0
RATE = 1e-5
# Bytes a parameter in float32: a step of AdamW, taking norms, a lerp, the selective rule's look before and after.
STEP, NORMS, LERP, LOOK, LOOK_AGAIN = 28, 4, 12, 12, 8
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console()


@app.command()
def main(
    model: Annotated[str, typer.Option(help="Of benchmarks.speed.workloads.CONFIGS.")] = "135M",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cuda" if torch.cuda.is_available() else "cpu",
    rounds: Annotated[int, typer.Option(help="Timed repetitions of every contender.")] = 21,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Seconds instead of minutes; the figures mean nothing.")
    ] = False,
) -> None:
    """Time one step with each rule of decay, all contenders in turn, ratios within a round."""
    if smoke:
        model, rounds = "smoke", 2
    found: dict[str, Any] = {"stamp": stamp(), "model": model, "rounds": rounds, "shares": {}}
    for share in SHARES:
        found["shares"][share] = time_share(model, share, device, rounds)
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def time_share(model: str, share: float, device: str, rounds: int) -> dict[str, Any]:
    """Time all contenders with about `share` of the parameters updated, and print their table."""
    workload = of_model(model, torch.float32, device)
    inner = AdamW(workload.parameters.items(), lr=RATE, fused=True)
    chosen, true_share = workload.choose(share)
    entered, selective = _contenders(workload, inner, chosen)
    # Weights that have left the start, momentum that leads on, and a gradient that has turned: then the selective rule
    # takes layers back, as it does in training.
    for _ in range(2):
        workload.restore_gradients()
        inner.step()
    workload.noise.mul_(-1e-3)
    timings = interleave(entered, rounds, title=f"{model}, {true_share:.2f} of the parameters")
    report = selective.report()
    back = sum(share > 0 for share in report.anchor_shares or ()) / len(report.updated)
    bare, by_hand, alone = (timings[name] for name in ("AdamW", "AdamW, then lerp", "AdamW on the chosen, then lerp"))
    part = true_share * STEP
    bytes_of = {
        "AdamW": STEP,
        "AdamW, then lerp": STEP + LERP,
        "AdamW on the chosen, then lerp": part + true_share * LERP,
        "fixed, plain": part + true_share * LERP,
        "online, plain": NORMS + part + true_share * LERP,
        "online, cautious": NORMS + part + true_share * (8 + 16),  # a copy before, and three tensors read after
        "online, selective": LOOK + part + true_share * back * (LOOK_AGAIN + LERP),
    }
    rows: dict[str, Any] = {}
    table = Table(title=f"{model}: one step at {true_share:.2f} of the parameters, decay toward the start")
    table.caption = (
        f"Medians (quartiles). The selective rule took {back:.0%} of the updated layers back in the last step."
    )
    for column in ("contender", "/ AdamW", "by its bytes", "/ AdamW, then lerp", "/ the chosen alone, then lerp"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    for name, timing in timings.items():
        ratios = {"AdamW": timing.ratio(bare), "lerp": timing.ratio(by_hand), "chosen": timing.ratio(alone)}
        rows[name] = {**timing.as_dict(), **ratios, "by bytes": bytes_of[name] / STEP}
        shown = [_shown(timing, ratio) for ratio in ratios.values()]
        table.add_row(name, shown[0], f"{bytes_of[name] / STEP:.2f}", *shown[1:])
    console.print(table)
    return {"share": true_share, "taken back": back, "contenders": rows}


def _contenders(
    workload: Workload, inner: AdamW, chosen: Collection[str]
) -> tuple[list[Contender], LocalizedOptimizer]:
    parameters = list(workload.parameters.values())
    mine = [p for name, p in workload.parameters.items() if workload.layer_of[name] in chosen]
    fixed = Fixed({layer: float(layer in chosen) for layer in workload.layers})
    made = {
        "fixed, plain": LocalizedOptimizer(inner, policy=fixed, anchor_decay=DECAY),
        "online, plain": LocalizedOptimizer(inner, policy=Chosen(chosen), anchor_decay=DECAY),
        "online, cautious": LocalizedOptimizer(
            inner, policy=Chosen(chosen), anchor_decay=AnchorDecay(DECAY, rule="cautious")
        ),
        "online, selective": LocalizedOptimizer(
            inner, policy=Chosen(chosen), anchor_decay=AnchorDecay(1.0, rule="selective")
        ),
    }
    start = [p.detach().clone() for p in parameters]
    own = [s for s, name in zip(start, workload.parameters, strict=True) if workload.layer_of[name] in chosen]
    contenders = [
        Contender("AdamW", workload, inner.step),
        Contender("AdamW, then lerp", workload, _then_lerp(inner, parameters, start)),
        Contender("AdamW on the chosen, then lerp", workload, _then_lerp(inner, mine, own), only=chosen),
        *(Contender(name, workload, optimizer.step) for name, optimizer in made.items()),
    ]
    return contenders, made["online, selective"]


def _then_lerp(inner: AdamW, parameters: list[Any], start: list[Tensor]) -> Callable[[], None]:
    """As people write it."""

    def step() -> None:
        inner.step()
        with torch.no_grad():
            torch._foreach_lerp_(parameters, start, RATE * DECAY)

    return step


def _shown(timing: Timing, ratio: tuple[float, float, float]) -> str:
    median, low, high = ratio
    return timing.error or f"{median:.2f} ({low:.2f}-{high:.2f})"


if __name__ == "__main__":
    app()
