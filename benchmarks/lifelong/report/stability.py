"""How many examples does a trace need?

    python -m benchmarks.lifelong.report.stability --data PREPARED --start SWEEP/start.safetensors --out FOLDER

Measures every example's gradient norms once, then makes many traces from random draws of 4, 16 and 64 of them, and
compares each with the trace made from all: rank correlation of R over the layers, and the share of the layers chosen by
TGL+FP that both choose. Draws are without replacement, so the largest ones also agree because they share examples: two
traces from disjoint halves of everything are the yardstick.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import torch
from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.lifelong.methods.norms import Norms
from benchmarks.lifelong.report.tables import Table
from benchmarks.lifelong.start import model_of, place
from benchmarks.lifelong.training import Settings
from benchmarks.stamp import stamp
from localopt import trace_layers
from localopt.errors import InputError
from localopt.pretraining.models import load_model
from localopt.pretraining.probes import Example
from localopt.tracing.layer_trace import LayerTrace

SIZES = (4, 16, 64)
DRAWS = 200
MOST = 128  # examples of a set


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="stability", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="what prepare wrote")
    parser.add_argument("--model", help="hub id, folder or GGUF file; default DATA/model, or that beside it")
    parser.add_argument("--start", type=Path, required=True, metavar="FILE", help="a sweep's start.safetensors")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    given = parser.parse_args(arguments)
    try:
        result = measure(given.data, given.model or model_of(given.data), given.start)
    except (InputError, OSError) as error:
        print(f"stability: {error}", file=sys.stderr)
        sys.exit(2)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "stability.json").write_text(json.dumps(result) + "\n", encoding="utf-8")
    shown = table(result)
    (given.out / "stability.md").write_text(f"{shown.markdown()}\n\n{shown.note}\n", encoding="utf-8")
    print(f"{shown.markdown()}\n\n{shown.note}")


def measure(prepared: Path, name: str, file: Path) -> dict[str, object]:
    """For each half and reference, how traces from few examples compare with the trace from all."""
    model, tokenizer = load_model(name)
    place(model, load_file(file))
    sets = Norms(Path(), prepared, model, tokenizer, Settings.of(prepared).length, lambda: None)
    examples = {kind: sets.examples(f"{kind}{MOST}") for kind in ("A", "B", "text", "kept")}
    norms: dict[str, Tensor] = {}
    for kind, some in track(examples.items(), "norms", console=Console(stderr=True), transient=True):
        layers, norms[kind] = each(model, some)
    rows = []
    for half in ("A", "B"):
        for reference in ("text", "kept"):
            news, kept = norms[half], norms[reference]
            whole = LayerTrace(layers, news.mean(0), kept.mean(0))
            rng = random.Random(0)
            if min(len(news), len(kept)) > 1:
                halves = [agreement(*split_in_two(layers, news, kept, rng)) for _ in range(DRAWS)]
                rows.append({"half": half, "reference": reference, "examples": "half", **averages(halves)})
            for size in SIZES:
                drawn = [agreement(draw(layers, news, kept, size, rng), whole) for _ in range(DRAWS)]
                rows.append({"half": half, "reference": reference, "examples": size, **averages(drawn)})
    return {"stamp": stamp(), "sizes": {kind: len(some) for kind, some in examples.items()}, "rows": rows}


def each(model: torch.nn.Module, examples: Sequence[Example]) -> tuple[tuple[str, ...], Tensor]:
    """The layers, and the norms (N, L) of every example."""
    found: list[Tensor] = []
    layers: tuple[str, ...] = ()
    for i in range(0, len(examples), 2):  # a trace measures two sets: here of one example each
        two = trace_layers(model, examples[i : i + 1], examples[i : i + 2][-1:], batch_size=1)
        layers = two.layers
        found += [two.probe_norms, two.reference_norms]
    return layers, torch.stack(found[: len(examples)])


def draw(layers: tuple[str, ...], news: Tensor, kept: Tensor, size: int, rng: random.Random) -> LayerTrace:
    chosen = [rng.sample(range(len(norms)), min(size, len(norms))) for norms in (news, kept)]
    return LayerTrace(layers, news[chosen[0]].mean(0), kept[chosen[1]].mean(0))


def split_in_two(
    layers: tuple[str, ...], news: Tensor, kept: Tensor, rng: random.Random
) -> tuple[LayerTrace, LayerTrace]:
    """Two traces that share no example."""
    orders = [rng.sample(range(len(norms)), len(norms)) for norms in (news, kept)]
    sides = [[order[: len(order) // 2], order[len(order) // 2 :]] for order in orders]
    one, other = (LayerTrace(layers, news[sides[0][i]].mean(0), kept[sides[1][i]].mean(0)) for i in (0, 1))
    return one, other


def agreement(one: LayerTrace, other: LayerTrace) -> tuple[float, float]:
    """(rank correlation of R, layers both choose / layers either chooses)."""
    ranks = torch.stack([trace.relative_norms.argsort().argsort().double() for trace in (one, other)])
    chosen = [{name for name, scale in trace.frozen_parameters().scales.items() if scale} for trace in (one, other)]
    return torch.corrcoef(ranks)[0, 1].item(), len(chosen[0] & chosen[1]) / len(chosen[0] | chosen[1])


def averages(found: list[tuple[float, float]]) -> dict[str, float]:
    ranks, shares = (sorted(column) for column in zip(*found, strict=True))
    low = len(found) // 20
    return {"rank": mean(ranks), "rank_low": ranks[low], "shared": mean(shares), "shared_low": shares[low]}


def table(result: dict[str, object]) -> Table:
    rows = [
        [row["half"], {"text": "ordinary text", "kept": "facts to keep"}[row["reference"]], str(row["examples"])]
        + [f"{row[name]:.2f} ({row[f'{name}_low']:.2f})" for name in ("rank", "shared")]
        for row in result["rows"]  # type: ignore[attr-defined]
    ]
    note = (
        f"Means over {DRAWS} draws, in brackets what 95% of them exceed. Each draw against the trace from all "
        f'examples {result["sizes"]}; "half": two traces that share none, half of all examples each.'
    )
    header = [
        "half",
        "reference",
        "examples of each set, at most",
        "rank correlation of R",
        "chosen by both / by either",
    ]
    return Table("How stable traces are", header, rows, note)


if __name__ == "__main__":
    main()
