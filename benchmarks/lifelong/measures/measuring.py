"""One run: teach by one method as the sweep does, then take all measures; "start" is the run that teaches nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedModel

from benchmarks.lifelong.data.passages import SPLITS
from benchmarks.lifelong.exam.exam import Exam
from benchmarks.lifelong.measures.context import ContextAndMemory
from benchmarks.lifelong.measures.definitions import Values, figure
from benchmarks.lifelong.measures.evolving import Evolving
from benchmarks.lifelong.measures.knowedit import KnowEdit
from benchmarks.lifelong.measures.linguistics import Linguistics
from benchmarks.lifelong.measures.propagation import Propagation, write_lessons
from benchmarks.lifelong.measures.source import Source
from benchmarks.lifelong.measures.working_memory import WorkingMemory
from benchmarks.lifelong.methods.methods import layer_names
from benchmarks.lifelong.methods.norms import Norms
from benchmarks.lifelong.methods.rules import Case
from benchmarks.lifelong.report.records import Records
from benchmarks.lifelong.run import Bench, Cell
from benchmarks.lifelong.start import place
from benchmarks.lifelong.stream.periods import HALF
from benchmarks.lifelong.sweep import finite
from benchmarks.lifelong.teaching import teach

START = "start"
ENTITIES = "E"  # the part that teaches definitions of entities
MOST = 100  # questions of a kind
DIGITS = 4

Row = dict[str, Any]
System = Callable[[PreTrainedModel], dict[str, Values]]
SYSTEMS = (KnowEdit, Evolving, WorkingMemory, ContextAndMemory, Linguistics)  # of the halves


class MeasureRecords(Records):
    """The file of runs with measures."""

    results: ClassVar[str] = "measures"


def cells(methods: Sequence[str], lrs: Sequence[float], halves: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """For each half the start, then every method; "NAME@RATE" is a method at a rate of its own."""
    named = [(name, [float(rate)] if rate else lrs) for name, _, rate in (method.partition("@") for method in methods)]
    found = []
    for seed, half in product(seeds, halves):
        if seed == seeds[0]:
            found.append(Cell(START, 0.0, half, seed))
        found += [Cell(method, lr, half, seed) for method, rates in named for lr in rates]
    return found


class Measuring:
    """Makes the record of a cell; `shared` has the public files, `out` gets what entities teach."""

    def __init__(self, shared: Path, out: Path, most: int = MOST) -> None:
        self.shared, self.out, self.most = shared, out, most
        self.systems: dict[str, list[System]] = {}

    def __call__(self, bench: Bench, cell: Cell) -> Row:
        began = time.perf_counter()
        source = Source(bench.prepared, self.shared, cell.half, bench.tokenizer, self.most, bench.settings.length)
        record: Row = {"method": cell.method, "lr": cell.lr, "half": cell.half, "seed": cell.seed}
        place(bench.model, bench.start)
        bench.model.eval()
        if cell.method != START:
            record |= self._teach(bench, cell, source)
        asked = time.perf_counter()
        record |= self.measure(bench, cell, source)
        record["measure_seconds"] = round(time.perf_counter() - asked, 1)
        return record | {"seconds": round(time.perf_counter() - began, 1)}

    def _teach(self, bench: Bench, cell: Cell, source: Source) -> Row:
        folder, half, norms = bench.prepared, cell.half, bench.norms
        model, tokenizer, length = bench.model, bench.tokenizer, bench.settings.length
        if half == ENTITIES:
            folder, half = self.out / "entities", HALF
            if not folder.is_dir():
                write_lessons(source, folder)
            file = self.out / f"norms-{bench.identity}-entities.json"
            norms = Norms(file, folder, model, tokenizer, length, lambda: place(model, bench.start))
        case = Case(layer_names(model), half, cell.seed, norms)
        return teach(model, tokenizer, folder, case, cell.method, cell.lr, bench.settings, bench.start)

    def measure(self, bench: Bench, cell: Cell, source: Source) -> Row:
        """All measures of a part: values by name; groups and weights too for the start, for they are all the same."""
        if cell.half not in self.systems:
            self.systems[cell.half] = systems_of(source, bench.exam)
        found: dict[str, Values] = {}
        layers: Row = {}
        with bench.settings.autocast():
            for system in self.systems[cell.half]:
                found |= system(bench.model)
                layers |= getattr(system, "by_layer", {})
        if all(finite(list(values.values)) for values in found.values()):  # else the sweep calls the run diverged
            for name, values in found.items():
                figure(name, values)
        row: Row = {"measures": {name: [round(v, DIGITS) for v in values.values] for name, values in found.items()}}
        if layers:
            row["layers"] = layers
        if cell.method == START:
            row["groups"] = {name: list(values.groups) for name, values in found.items()}
            row["weights"] = {name: list(values.weights) for name, values in found.items() if values.weights}
        return row


def systems_of(source: Source, exam: Exam) -> list[System]:
    """What is asked of a model that was taught a part; says which files are missing."""
    made = [kind(source, exam) for kind in (SYSTEMS if source.half in SPLITS else (Propagation,))]
    for system in made:
        if system.absent:
            name = type(system).__name__
            print(f"{source.shared} does not hold {system.absent}: {name} goes without it.", file=sys.stderr)
    return made
