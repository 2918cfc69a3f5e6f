"""One run: teach a half's passages by one method, then examine the model on the way back to where it started."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.optim import AdamW
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.lifelong.exam import Exam
from benchmarks.lifelong.methods import METHODS, Case, layer_names, make_optimizer
from benchmarks.lifelong.norms import Norms, kept_facts
from benchmarks.lifelong.passages import lessons
from benchmarks.lifelong.start import Weights, place
from benchmarks.lifelong.training import Settings, fit, grouped
from benchmarks.lifelong.watch import Watch, peak_mb, reset_peak
from localopt.probes import encode

SHARES = (0.25, 0.5, 0.75, 1.0)  # of the way from the start to the end
GUARDED = (0.5, 1.0)
RELEARNED, RELEARN_STEPS, RELEARN_RATE = 10, 3, 2e-5
DIGITS = 3

Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """What tells runs of one sweep apart."""

    method: str
    lr: float
    half: str
    seed: int

    def __str__(self) -> str:
        return f"{self.method} {self.lr:g} {self.half} seed {self.seed}"


@dataclass
class Bench:
    """What all runs share, loaded once."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prepared: Path
    start: Weights
    exam: Exam
    kept: list[str]
    norms: Norms
    settings: Settings

    def run(self, cell: Cell) -> Row:
        """Train and examine; the record, ready for JSON."""
        place(self.model, self.start)
        case = Case(layer_names(self.model), cell.half, cell.seed, self.norms)
        plan = METHODS[cell.method](case)
        place(self.model, self.start)  # tracing gave the weights back; who looks at them meanwhile must not matter
        sequences = lessons(self.prepared, cell.half, self.tokenizer, self.settings.length)
        optimizer = make_optimizer(self.model, cell.lr, plan)
        watch = Watch(self.model, optimizer, plan)
        reset_peak()
        began, busy = time.perf_counter(), time.process_time()
        fit(self.model, sequences, optimizer, self.settings, cell.seed, watch)
        record: Row = {
            "method": cell.method,
            "lr": cell.lr,
            "half": cell.half,
            "seed": cell.seed,
            "train_seconds": round(time.perf_counter() - began, 1),
            "train_cpu_seconds": round(time.process_time() - busy, 1),
            "train_peak_mb": peak_mb(),
            "share": round(watch.share, 4),
            "scales": [round(watch.scales[layer], 4) for layer in case.layers],
        }
        del optimizer, watch
        self.model.requires_grad_(True)
        end = {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}
        record["points"] = {str(share): self._point(cell.half, share, end) for share in SHARES}
        record["decoded"] = self.decoded(cell.half)
        record["relearned"] = self._relearned()
        return record | {"seconds": round(time.perf_counter() - began, 1)}

    def point(self, half: str, guards: bool) -> Row:
        """The exam of a half, for the weights as they are, as lists in the order of the questions."""
        found: Row = {}
        for name, chosen in self.exam.places(half, self.kept).items():
            answers = self._ask(chosen)
            found[name] = [round(answer["margin"], DIGITS) for answer in answers]
            found[f"{name}_first"] = "".join(str(int(answer["first"])) for answer in answers)
            if name == "taught":
                found["over_old"] = [round(answer["over_old"], DIGITS) for answer in answers if "over_old" in answer]
        return found | (self.guards() if guards else {})

    def guards(self) -> dict[str, float]:
        with self.settings.autocast():
            return {name: round(value, 4) for name, value in self.exam.guards(self.model).items()}

    def decoded(self, half: str) -> dict[str, float]:
        with self.settings.autocast():
            return self.exam.decode(self.model, self.exam.places(half, [])["taught"])

    def ask_everything(self) -> list[Row]:
        return self._ask(range(len(self.exam.items)))

    def _ask(self, chosen: Any) -> list[Row]:
        with self.settings.autocast():
            return self.exam.ask(self.model, chosen)

    def _point(self, half: str, share: float, end: Weights) -> Row:
        place(self.model, self.start, end, share)
        return self.point(half, share in GUARDED)

    def _relearned(self) -> list[float]:
        """Margins of the facts to keep after a reminder: a few steps on other facts of their kind.

        What comes back was misplaced, what does not was lost.
        """
        reminder = encode(kept_facts(self.prepared, "near", RELEARNED), self.tokenizer)
        once = Settings(self.settings.length, RELEARNED, RELEARN_STEPS, self.settings.bf16)
        fit(self.model, reminder, AdamW(grouped(list(self.model.parameters())), lr=RELEARN_RATE, fused=True), once, 0)
        return [round(answer["margin"], DIGITS) for answer in self._ask(self.exam.places("A", self.kept)["kept"])]

    def relearned_start(self) -> list[float]:
        """What the reminder does to the start."""
        place(self.model, self.start)
        found = self._relearned()
        place(self.model, self.start)
        return found
