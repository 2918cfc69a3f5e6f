"""One run of a stream: period after period, each from where the last one ended, and what is known after each."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.lifelong.data.passages import SPLITS
from benchmarks.lifelong.methods.methods import METHODS
from benchmarks.lifelong.methods.norms import Norms
from benchmarks.lifelong.methods.optimizers import layer_names
from benchmarks.lifelong.methods.rules import Case
from benchmarks.lifelong.report.records import Records
from benchmarks.lifelong.run import SHARES, Bench
from benchmarks.lifelong.start import Weights, place
from benchmarks.lifelong.stream.periods import HALF, Period, divide, period_of
from benchmarks.lifelong.teaching import teach
from localopt.errors import InputError

ANCHORS = ("first", "last")  # the start of the stream, or that of the period
NONE = "none"  # of a method that decays toward no start

Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """What tells runs of a stream apart. `anchor`: which start a method decays toward, "first" or "last", or "none"."""

    method: str
    lr: float
    anchor: str
    seed: int

    def __str__(self) -> str:
        decay = "" if self.anchor == NONE else f" toward the {self.anchor} start"
        return f"{self.method}{decay} {self.lr:g} seed {self.seed}"


class StreamRecords(Records):
    """The file of a stream's runs."""

    cell: ClassVar[tuple[str, ...]] = ("method", "lr", "anchor", "seed")
    results: ClassVar[str] = "periods"


def cells(methods: Sequence[str], lrs: Sequence[float], anchors: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """Every method once before any has a second seed. "NAME@RATE" is a method at a rate of its own."""
    for method in methods:
        if METHODS[method.partition("@")[0]].extension:
            raise InputError(f"{method}: adds modules to the model, which a stream cannot hand on to the next period.")
    named = [(name, [float(rate)] if rate else lrs) for name, _, rate in (method.partition("@") for method in methods)]
    return [
        Cell(method, lr, anchor, seed)
        for seed, (method, rates) in product(seeds, named)
        for lr in rates
        for anchor in (anchors if METHODS[method].decays else [NONE])
    ]


class Stream:
    """Makes the record of a cell; the periods' files are in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, bench: Bench, cell: Cell) -> Row:
        began = time.perf_counter()
        periods = divide(bench.prepared, self.folder / str(cell.seed), cell.seed)
        of = period_of(bench.exam.items, periods)
        record: Row = {"method": cell.method, "lr": cell.lr, "anchor": cell.anchor, "seed": cell.seed}
        record |= {"period_of": of, "periods": []}
        weights = bench.start
        for number, period in enumerate(periods):
            taught = self._teach(bench, cell, period, weights, number)
            weights = {name: parameter.detach().clone() for name, parameter in bench.model.named_parameters()}
            asked = [place for place, period in enumerate(of) if 0 <= period <= number]
            record["periods"].append(taught | self._examine(bench) | {"written": self._written(bench, asked)})
        record["path"] = {}
        for share in SHARES[:-1]:
            place(bench.model, bench.start, weights, share)
            record["path"][str(share)] = self._examine(bench)
        return record | {"seconds": round(time.perf_counter() - began, 1)}

    def _teach(self, bench: Bench, cell: Cell, period: Period, weights: Weights, number: int) -> Row:
        model, tokenizer, length = bench.model, bench.tokenizer, bench.settings.length
        anchor = bench.start if cell.anchor == "first" else None
        with tempfile.TemporaryDirectory() as scratch:
            # Before the first period all methods are at one start, and share what is known of its layers.
            folder = bench.norms.file.parent if number == 0 else Path(scratch)
            file = folder / f"norms-{bench.identity}-stream{cell.seed}.json"
            norms = Norms(file, period.folder, model, tokenizer, length, lambda: place(model, weights))
            case = Case(layer_names(model), HALF, cell.seed, norms, anchor)
            return teach(model, tokenizer, period.folder, case, cell.method, cell.lr, bench.settings, weights)

    def _examine(self, bench: Bench) -> Row:
        """The NLL of every answer to what any period teaches, of those to near facts; of text."""
        taught = [place for half in SPLITS for place in bench.exam.places(half)]
        return {
            "taught": bench.ask(taught),
            "near": bench.ask(bench.exam.places("near")),
            "text": bench.read(),
        }

    def _written(self, bench: Bench, asked: Sequence[int]) -> Row:
        """Exact match and F1 of what is written to the first phrasings of these questions, and which they are."""
        first = [place for place in asked if bench.exam.items[place].phrasing == 0]
        with bench.settings.autocast():
            return {"asked": first, **bench.exam.decode(bench.model, first)}
