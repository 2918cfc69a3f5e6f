"""What every option of a step costs: online, fixed, clipping, anchor decay, signals, PyTorch's kernels, Triton's.

python -m benchmarks.speed.grid --device cuda --model 1B --json FILE
python -m benchmarks.speed.grid --smoke          seconds, on any machine

Every step is timed in turn with fused AdamW, and with `clip_grad_norm_` and fused AdamW, around the same moments.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import statistics
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.optim import AdamW

from benchmarks.memory import growth
from benchmarks.speed.contenders import MAX_NORM, Chosen, Contender, clipped
from benchmarks.speed.launches import calls
from benchmarks.speed.workloads import MODEL_HELP, Workload, of_model
from benchmarks.stamp import stamp, summary
from benchmarks.timing import Timing, bandwidth, interleave
from localopt import AnchorDecay, Fixed, LocalizedOptimizer
from localopt.signals import LayerSignals

SHARES = (1.0, 0.5, 0.3, 0.1)
WATCHED = 0.3  # the share at which memory and calls are looked at
BARE, CLIPPED = "AdamW fused", "clip + AdamW fused"
TAKEN = ("norm", "l1", "pullback", "drift")
DTYPES = {
    "float32": (torch.float32, torch.float32),
    "bfloat16, float32 state": (torch.bfloat16, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
}
DECAYS: dict[str, float | AnchorDecay] = {
    "": 0.0,
    "plain": AnchorDecay(25.0),
    "selective": AnchorDecay(1.0, "selective"),
}
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Option:
    """One way to step.

    Attributes:
        kind: "online" or "fixed".
        clip: whether gradients are clipped.
        decay: of DECAYS.
        signals: whether four signals are taken instead of norms alone.
        triton: whether by Triton's kernels.
    """

    kind: str
    clip: bool
    decay: str
    signals: bool
    triton: bool

    @property
    def name(self) -> str:
        parts = [self.kind, "clip" * self.clip, f"{self.decay} decay" * bool(self.decay), "signals" * self.signals]
        return " + ".join(part for part in parts if part) + ", triton" * self.triton

    def words(self, share: float) -> float:
        """Numbers moved for a parameter, at the least: gradients, weights, moments and starts, read or written."""
        online = self.kind == "online"
        read = float(online or self.clip or self.decay == "selective")
        if (online and self.signals) or self.decay == "selective":
            read = 3.0  # gradient, weight, start
        if self.decay == "selective":
            read += 2.0  # weight and start once more, after the step
        return read + share * (7.0 + {"": 0.0, "plain": 1.0, "selective": 3.0}[self.decay])


class ChosenBySignals(Chosen):
    """The same choice, by a policy that is called with four signals."""

    needs = TAKEN

    def __call__(self, signals: LayerSignals) -> Tensor:  # type: ignore[override]
        return super().__call__(signals.norm)


def options(triton: bool) -> Iterator[list[Option]]:
    """Yield the options that are timed together, with one copy of the start: those alike in decay and signals."""
    for decay, signals in itertools.product(DECAYS, (False, True)):
        kinds = ("online",) if signals else ("online", "fixed")
        yield [
            Option(kind, clip, decay, signals, kernels)
            for kind, clip, kernels in itertools.product(kinds, (False, True), (False, True)[: 1 + triton])
        ]


def with_state(workload: Workload, state: torch.dtype) -> AdamW:
    """Fused AdamW whose moments are of this dtype."""
    inner = AdamW(workload.parameters.items(), lr=1e-5, fused=True)
    for parameter in workload.parameters.values():
        moments = {key: torch.zeros_like(parameter, dtype=state) for key in ("exp_avg", "exp_avg_sq")}
        inner.state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}
    return inner


def localized(
    workload: Workload, inner: AdamW, option: Option, chosen: Collection[str], starts: list[Any]
) -> Callable[[], Any]:
    """One way to step; ``starts`` holds the one copy of the start that all ways share, as soon as there is one."""
    policy: Any = Fixed({name: float(name in chosen) for name in workload.layers})
    if option.kind == "online":
        policy = ChosenBySignals(chosen) if option.signals else Chosen(chosen)
    inner.param_groups[0].pop("localopt", None)  # of the one before: this is no checkpoint of ours
    limit = MAX_NORM if option.clip else None
    optimizer = LocalizedOptimizer(inner, policy=policy, max_grad_norm=limit, anchor_decay=DECAYS[option.decay])
    anchor = optimizer._anchor
    if anchor is not None:
        starts[:] = starts or anchor.starts.held
        anchor.starts.held = starts

    def step() -> None:
        os.environ["LOCALOPT_TRITON"] = "1" if option.triton else "0"
        try:
            optimizer.step()
        finally:
            del os.environ["LOCALOPT_TRITON"]

    return step


def time_share(
    workload: Workload, inner: AdamW, share: float, rounds: int, triton: bool, watch: bool
) -> dict[str, Any]:
    """Time every option at one share of the parameters, each beside the two ways of fused AdamW."""
    chosen, true_share = workload.choose(share)
    device = workload.noise.device
    found: dict[str, Any] = {"share": true_share, "options": {}}
    for alike in options(triton):
        starts: list[Any] = []
        entered = [Contender(BARE, workload, inner.step)]
        entered.append(Contender(CLIPPED, workload, clipped(inner.step, list(workload.parameters.values()))))
        steps = {one.name: localized(workload, inner, one, chosen, starts) for one in alike}
        entered += [Contender(name, workload, step) for name, step in steps.items()]
        timings = interleave(entered, rounds, title=f"{workload.name}, {share:g}, {alike[0].name}")
        words = {one.name: one.words(true_share) for one in alike} | {BARE: 7.0, CLIPPED: 10.0}
        for one in entered:
            timing = timings[one.name]
            entry = {**timing.as_dict(), "words": words[one.name]}
            if not timing.error:
                entry["ratios"] = {base: _ratio(timing, timings[base]) for base in (BARE, CLIPPED)}
            if watch and not timing.error:
                workload.restore_gradients()
                entry["memory"] = growth(one.step, device)
                workload.restore_gradients()
                entry["calls"] = calls(one.step, device)
            found["options"].setdefault(one.name, entry)
        del entered, steps, starts
        gc.collect()
    return found


def _ratio(timing: Timing, base: Timing) -> tuple[float, float, float] | None:
    return None if base.error else timing.ratio(base)


def held(workload: Workload, inner: AdamW) -> dict[str, int]:
    """Bytes that stay, by part."""
    parameters = list(workload.parameters.values())
    moments = [t for state in inner.state.values() for t in state.values()]
    weights = sum(p.nbytes for p in parameters)
    return {
        "parameters": weights,
        "gradients": weights,
        "state": sum(t.nbytes for t in moments),
        "start, with a decay": weights,
    }


def page(name: str, dtype: str, found: dict[str, Any], rates: dict[str, float]) -> str:
    """Return one table a model, in Markdown: ratios, the bytes that must move, what a warm step takes and calls."""
    nbytes = 4 if dtype == "float32" else 2
    parts = ", ".join(f"{part} {count / 1e9:.2f} GB" for part, count in found["memory"].items())
    lines = [
        f"## {name}, {dtype}: {found['parameters'] / 1e6:.0f}M parameters, {found['layers']} layers",
        "",
        f"Memory: {parts}. Copies {rates['copy'] / 1e9:.0f} GB/s, reads {rates['read'] / 1e9:.0f} GB/s.",
        "",
        "| share | step | / AdamW | / clip + AdamW | time / its bytes' time | ms | memory above it | calls, waits |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for entry in found["shares"].values():
        for step, one in entry["options"].items():
            row = [f"{entry['share']:.2f}", step]
            if one.get("error"):
                lines.append(f"| {' | '.join(row)} | failed: {one['error'][:90]} | | | | | |")
                continue
            median = statistics.median(one["seconds"])
            bound = one["words"] * nbytes * found["parameters"] / rates["copy"]
            row += [_shown(one["ratios"][base]) for base in (BARE, CLIPPED)]
            row += [f"{median / bound:.2f}", f"{median * 1e3:.2f}", *_watched(one)]
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def _watched(one: dict[str, Any]) -> list[str]:
    if "memory" not in one:
        return ["", ""]
    grown, counted = one["memory"], one["calls"]
    return [
        "not measured" if grown is None else f"{grown / 1e6:.1f} MB",
        "not measured" if counted is None else f"{counted['launches']}, {counted['waits']}",
    ]


def _shown(ratio: tuple[float, float, float] | None) -> str:
    return "-" if ratio is None else f"{ratio[0]:.2f} ({ratio[1]:.2f}-{ratio[2]:.2f})"


@app.command()
def main(
    model: Annotated[str, typer.Option(help=MODEL_HELP, metavar="MODEL")] = "135M",
    dtype: Annotated[str, typer.Option(help=f"Of weights and state, one of: {'; '.join(DTYPES)}.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cuda" if torch.cuda.is_available() else "cpu",
    rounds: Annotated[int, typer.Option(help="Timed repetitions of every step.")] = 15,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Seconds instead of minutes; the figures mean nothing.")
    ] = False,
) -> None:
    """Time every option of a step at four shares of the parameters."""
    if dtype not in DTYPES:
        raise typer.BadParameter(f"--dtype {dtype}: one of {'; '.join(DTYPES)}")
    if smoke:
        model, rounds = "smoke", 1
    weights, state = DTYPES[dtype]
    triton = device == "cuda"
    if weights is not state and not triton:
        print(f"{model}, {dtype}: not measured. Triton's kernels alone step it, and they need --device cuda.")
        return
    rates = bandwidth(torch.device(device), 1 << 20 if smoke else 1 << 27)
    workload = of_model(model, weights, device)
    workload.restore_gradients()
    inner = with_state(workload, state)
    shares = {
        share: time_share(workload, inner, share, rounds, triton, share == WATCHED)
        for share in (SHARES[2:3] if smoke else SHARES)
    }
    memory = held(workload, inner)
    found = {"parameters": workload.elements, "layers": len(workload.layers), "memory": memory, "shares": shares}
    stamped = stamp("triton")
    missing = "" if triton else " Triton's kernels, launches and waits: not measured, they need --device cuda."
    print(f"{page(model, dtype, found, rates)}\n\n{summary(stamped)}.{missing}")
    if json_file is not None:
        result = {"stamp": stamped, "model": model, "dtype": dtype, "device": device, "rounds": rounds}
        json_file.write_text(json.dumps({**result, "bandwidth": rates, **found}, indent=1) + "\n", encoding="utf-8")
    if all(one.get("error") for entry in shares.values() for one in entry["options"].values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
