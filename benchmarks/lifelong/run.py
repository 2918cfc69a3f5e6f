"""One run: teach a half's passages by one method, then examine it interpolated with the start."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch.optim import AdamW
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.lifelong.data.passages import lessons
from benchmarks.lifelong.exam.divergence import Divergence
from benchmarks.lifelong.exam.exam import Exam
from benchmarks.lifelong.methods.methods import METHODS
from benchmarks.lifelong.methods.norms import Norms, kept_facts
from benchmarks.lifelong.methods.optimizers import layer_names
from benchmarks.lifelong.methods.rules import Case
from benchmarks.lifelong.start import Weights, place
from benchmarks.lifelong.teaching import teach
from benchmarks.lifelong.training import Settings, fit, grouped
from localopt.pretraining.probes import encode

SHARES = (0.25, 0.5, 0.75, 1.0)  # of the change that is kept: weights interpolated between start and end
RELEARNED, RELEARN_STEPS, RELEARN_RATE = 10, 3, 2e-5
DIGITS = 2

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
    """What all runs share, loaded once. `identity` is the start's fingerprint."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prepared: Path
    start: Weights
    exam: Exam
    norms: Norms
    settings: Settings
    identity: str = ""
    divergences: dict[str, Divergence] = field(default_factory=dict)

    def run(self, cell: Cell) -> Row:
        """Train and examine; the record, ready for JSON."""
        began = time.perf_counter()
        place(self.model, self.start)
        self._know_start(cell.half)
        case = Case(layer_names(self.model), cell.half, cell.seed, self.norms)
        record: Row = {"method": cell.method, "lr": cell.lr, "half": cell.half, "seed": cell.seed}
        entry = METHODS[cell.method]
        with entry.extension(self.model, case) if entry.extension else nullcontext({}) as added:
            start = self.start | added
            record |= teach(self.model, self.tokenizer, self.prepared, case, cell.method, cell.lr, self.settings, start)
            end = {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}
            record["points"] = {}
            shares = entry.path(case, start, end) if entry.path else None
            for share in SHARES:
                place(self.model, start, end, shares(share) if shares else share)
                record["points"][str(share)] = self.point(cell.half)
            record["end"] = self.at_the_end(cell.half)
            record["relearned"] = self.relearned()
        return record | {"seconds": round(time.perf_counter() - began, 1)}

    def point(self, half: str) -> Row:
        """What a half's path is made of: the NLL of every answer, question by question in the exam's order; of text."""
        answers: Row = {name: self.ask(self._places(name, half)) for name in ("taught", "held", "near")}
        return answers | {"text": self.read(), "kl": self.diverged(half)}

    def at_the_end(self, half: str) -> Row:
        """What is asked of the end of a path only."""
        with self.settings.autocast():
            found = {"entities": self.exam.entities(self.model)}
            written = self.exam.decode(self.model, self._places("taught", half))
        found |= {name: sum(scores) / len(scores) for name, scores in written.items()}
        rest = {"far": self.ask(self._places("far", half)), "written": written}
        return rest | {name: round(value, 4) for name, value in found.items()}

    def relearned(self) -> list[list[float]]:
        """What is answered to the near facts after a reminder: a few steps on other facts of their kind.

        What comes back was misplaced, what does not was lost. The model is left as it is then.
        """
        reminder = encode(kept_facts(self.prepared, "near", RELEARNED), self.tokenizer)
        at_once = replace(self.settings, batch_size=RELEARNED)
        optimizer = AdamW(grouped(list(self.model.parameters())), lr=RELEARN_RATE, fused=True)
        fit(self.model, [reminder] * RELEARN_STEPS, optimizer, at_once, 0)
        return self.ask(self._places("near", ""))

    def _know_start(self, half: str) -> None:
        """Note what the start, which the model is at, expects to read in a half's passages."""
        if half not in self.divergences:
            with self.settings.autocast():
                passages = lessons(self.prepared, half, self.tokenizer, self.settings.length)
                self.divergences[half] = Divergence(self.model, passages)

    def diverged(self, half: str) -> list[float]:
        """KL(start || model) on passages of a half, text by text."""
        with self.settings.autocast():
            return [round(nats, 5) for nats in self.divergences[half](self.model)]

    def ask(self, chosen: Sequence[int]) -> list[list[float]]:
        with self.settings.autocast():
            answers = self.exam.ask(self.model, chosen)
        return [[round(nll, DIGITS) for nll in answer] for answer in answers]

    def read(self) -> list[float]:
        with self.settings.autocast():
            return [round(nll, 4) for nll in self.exam.read(self.model)]

    def _places(self, name: str, half: str) -> list[int]:
        return self.exam.places({"taught": half, "held": f"not {half}"}.get(name, name))
