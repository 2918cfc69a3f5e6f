"""Runs in the order of evidence, one JSON line each as it comes; a sweep that was killed goes on where it was."""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.lifelong.data.passages import SPLITS
from benchmarks.lifelong.exam.exam import Exam, Item, masked
from benchmarks.lifelong.methods.norms import Norms
from benchmarks.lifelong.methods.optimizers import layer_names
from benchmarks.lifelong.report.records import Records, append
from benchmarks.lifelong.run import Bench, Cell
from benchmarks.lifelong.start import place, start_weights
from benchmarks.lifelong.training import Settings
from benchmarks.stamp import stamp
from localopt.errors import InputError
from localopt.pretraining.models import load_model

FEW = 6

Row = dict[str, Any]
AnyCell = TypeVar("AnyCell", bound=Any)  # a frozen dataclass with the fields that tell runs apart


def cells(methods: Sequence[str], lrs: Sequence[float], halves: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """The first FEW methods on one half, then on the other, then the next few; all before another rate or seed."""
    few = [methods[i : i + FEW] for i in range(0, len(methods), FEW)]
    return [
        Cell(method, lr, half, seed) for seed, lr, some, half in product(seeds, lrs, few, halves) for method in some
    ]


def sweep(
    prepared: Path,
    model: str,
    out: Path,
    planned: Sequence[AnyCell],
    settings: Settings,
    *,
    resume: bool,
    start_seed: int = 0,
    run: Callable[[Bench, AnyCell], Row] = Bench.run,
    kept: type[Records] = Records,
) -> Path:
    """Do what is not done yet; returns OUT/runs.jsonl.

    `start_seed` is that of the start, where it is made now. `run` makes the record of a cell, and `kept` is how they
    are kept. OUT also keeps the start's weights and the norms
    of its layers, which can be made again.

    Raises:
        InputError: there is a sweep in `out` already, and it is not to be resumed, or is one of other inputs.
    """
    file = out / "runs.jsonl"
    if file.exists() and not resume:
        raise InputError(f"{file}: exists: add --resume to go on with it, or name another --out.")
    records = kept.read([file]) if file.exists() else kept()
    inputs = {"data": _fingerprint(prepared), "model": Path(model).name, **settings.as_dict()}
    if records.exam is not None:
        records.refuse_other(inputs)
    done = {tuple(row[name] for name in kept.cell) for row in [*records.runs, *records.diverged]}
    todo = [cell for cell in planned if astuple(cell) not in done]
    _say(f"{len(planned)} runs, {len(planned) - len(todo)} of them done")
    if not todo:
        return file
    bench, identity = _bench(prepared, model, out, settings, records, start_seed)
    if identity not in records.starts:
        records.add(_begin(bench, identity, inputs, records, file))
    began = time.perf_counter()
    for number, cell in enumerate(todo, 1):
        row = run(bench, cell)
        if not finite(row[kept.results]):
            _say(f"{cell} diverged: what it answers is not a number")
            row = {name: row[name] for name in (*kept.cell, "seconds")}
        append(file, {"kind": "run", "start": identity, **row})
        left = (time.perf_counter() - began) / number * (len(todo) - number)
        _say(f"{number} of {len(todo)}: {cell}, {row['seconds']:.0f} s; about {left / 60:.0f} minutes left")
    return file


def _bench(
    prepared: Path, name: str, out: Path, settings: Settings, records: Records, start_seed: int
) -> tuple[Bench, str]:
    model, tokenizer = load_model(name)
    began = time.perf_counter()
    start, identity = start_weights(model, tokenizer, prepared, out / "start.safetensors", settings, start_seed)
    _say(f"start {identity}, {time.perf_counter() - began:.0f} s")
    norms = Norms(
        out / f"norms-{identity}.json", prepared, model, tokenizer, settings.length, lambda: place(model, start)
    )
    items = None if records.exam is None else [Item.restored(row) for row in records.exam["items"]]
    exam = Exam(prepared, tokenizer, items)
    return Bench(model, tokenizer, prepared, start, exam, norms, settings, identity), identity


def _begin(bench: Bench, identity: str, inputs: Row, records: Records, file: Path) -> Row:
    """Examine a start that is new to the file; the first one settles what is asked."""
    place(bench.model, bench.start)
    exam = bench.exam
    losses = bench.ask(range(len(exam.items)))
    if records.exam is None:
        losses = exam.settle(losses)
        items = [
            asdict(masked(item)) | {"tokens": tree.tokens} for item, tree in zip(exam.items, exam.trees, strict=True)
        ]
        about = {"layers": layer_names(bench.model), "texts": exam.text_splits, "items": items}
        records.add({"kind": "exam", "inputs": inputs, **about})
        file.parent.mkdir(parents=True, exist_ok=True)
        append(file, records.exam or {})
    row: Row = {"kind": "start", "id": identity, "nll": losses, "text": bench.read()}
    row["distance"] = records.refuse_far(row)
    row |= {half: bench.at_the_end(half) for half in SPLITS} | {"relearned": bench.relearned(), "stamp": stamp()}
    append(file, row)
    return row


def finite(values: Any) -> bool:
    """Whether all numbers in nested lists and dicts are finite."""
    if isinstance(values, dict):
        return all(map(finite, values.values()))
    return all(map(finite, values)) if isinstance(values, list) else math.isfinite(values)


def _fingerprint(prepared: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(prepared.iterdir()):
        if path.suffix in (".jsonl", ".txt"):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} [{torch.get_num_threads()} threads] {text}", file=sys.stderr, flush=True)
