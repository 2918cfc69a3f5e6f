"""How well does the choice from a corpus alone agree with that from answers and text, and how few examples suffice?

    python -m benchmarks.lifelong.report.choice --data PREPARED --start SWEEP/start.safetensors --out FOLDER

Traces by gains, of all four pairs of what is to be taken in (the raw passages, the loss on every token; or the answers
in them alone) and what is to be kept (what the model writes itself; or ordinary text), 64 examples of each; and traces
of the first pair from random draws of 4 and 16 examples, against the one from 64.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from safetensors.torch import load_file

from benchmarks.lifelong.methods.norms import EXAMPLES, Norms
from benchmarks.lifelong.report.stability import agreement
from benchmarks.lifelong.report.tables import Table
from benchmarks.lifelong.start import model_of, place
from benchmarks.lifelong.training import Settings
from benchmarks.stamp import stamp
from localopt import trace_layers
from localopt.errors import InputError
from localopt.pretraining.models import load_model
from localopt.pretraining.probes import Example
from localopt.tracing.layer_trace import LayerTrace

SIZES = (4, 16)
DRAWS = 5
NAMES = {"corpus": "corpus", "": "answers", "own": "own text", "text": "ordinary text"}
PAIRS = tuple((news, kept) for news in ("corpus", "") for kept in ("own", "text"))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="choice", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="what prepare wrote")
    parser.add_argument("--model", help="hub id, folder or GGUF file; default DATA/model, or that beside it")
    parser.add_argument("--start", type=Path, required=True, metavar="FILE", help="a sweep's start.safetensors")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    given = parser.parse_args(arguments)
    try:
        result = measure(given.data, given.model or model_of(given.data), given.start)
    except (InputError, OSError) as error:
        print(f"choice: {error}", file=sys.stderr)
        sys.exit(2)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "choice.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    shown = table(result)
    (given.out / "choice.md").write_text(f"{shown.markdown()}\n\n{shown.note}\n", encoding="utf-8")
    print(f"{shown.markdown()}\n\n{shown.note}")


def measure(prepared: Path, name: str, file: Path) -> dict[str, Any]:
    """For each half, how the traces compare: rank correlation, layers both choose, layers either chooses."""
    model, tokenizer = load_model(name)
    place(model, load_file(file))
    sets = Norms(Path(), prepared, model, tokenizer, Settings.of(prepared).length, lambda: None)
    kept = {what: sets.examples(f"{what}{EXAMPLES}") for what in ("own", "text")}

    def trace(news: list[Example], against: list[Example]) -> LayerTrace:
        return trace_layers(model, news, against, score="gains", progress=True)

    rows: list[dict[str, Any]] = []
    for half in ("A", "B"):
        news = {what: sets.examples(f"{what}{half}{EXAMPLES}") for what in ("corpus", "")}
        whole = {(one, other): trace(news[one], kept[other]) for one, other in PAIRS}
        alone = whole["corpus", "own"]
        for one, other in PAIRS[1:]:
            rows.append(
                {"half": half, "trace": f"{NAMES[one]} against {NAMES[other]}", **compared(whole[one, other], alone)}
            )
        rng = random.Random(0)
        for size in SIZES:
            drawn = [
                compared(
                    trace(rng.sample(news["corpus"], min(size, len(news["corpus"]))), rng.sample(kept["own"], size)),
                    alone,
                )
                for _ in range(DRAWS)
            ]
            about = {"half": half, "trace": f"corpus against own text, {size} of each"}
            rows.append(about | {key: mean(one[key] for one in drawn) for key in drawn[0]})
    sizes = {what: len(some) for what, some in kept.items()}
    return {"stamp": stamp(), "draws": DRAWS, "kept": sizes, "rows": rows}


def compared(one: LayerTrace, other: LayerTrace) -> dict[str, float]:
    """Rank correlation of gain over damage; layers above the mean in `one`, in `other`, in both; both over either."""
    rank, shared = agreement(one, other)
    chosen = [{layer for layer, scale in t.frozen_parameters().scales.items() if scale} for t in (one, other)]
    both = len(chosen[0] & chosen[1])
    return {"rank": rank, "chosen": len(chosen[0]), "of": len(chosen[1]), "both": both, "shared": shared}


def table(result: dict[str, Any]) -> Table:
    rows = [
        [
            row["half"],
            row["trace"],
            f"{row['rank']:.2f}",
            f"{row['chosen']:.3g}",
            f"{row['both']:.3g} of {row['of']:.3g}",
            f"{row['shared']:.2f}",
        ]
        for row in result["rows"]
    ]
    note = (
        f"Each against the trace of the raw corpus and the model's own text, {EXAMPLES} examples of each (fewer where "
        f"the half has fewer); rows of fewer examples are means over {result['draws']} draws."
    )
    header = ["half", "trace by gains", "rank correlation", "layers chosen", "of the corpus's choice", "both / either"]
    return Table("What a corpus alone chooses", header, rows, note)


if __name__ == "__main__":
    main()
