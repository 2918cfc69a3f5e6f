"""One run: teach a half's passages by one method, then examine it interpolated with the start."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.optim import AdamW
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.lifelong.data.passages import lessons
from benchmarks.lifelong.exam.divergence import Divergence
from benchmarks.lifelong.exam.exam import Exam
from benchmarks.lifelong.methods.adapters import adapted
from benchmarks.lifelong.methods.methods import METHODS, layer_names, make_optimizer
from benchmarks.lifelong.methods.norms import Norms, kept_facts
from benchmarks.lifelong.methods.replay import Replay, replayed
from benchmarks.lifelong.methods.rules import Case
from benchmarks.lifelong.start import Weights, place
from benchmarks.lifelong.training import Settings, fit, grouped
from benchmarks.lifelong.watch import Watch
from benchmarks.memory import peak, reset_peak
from localopt.pretraining.probes import Example, encode

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
    """What all runs share, loaded once."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prepared: Path
    start: Weights
    exam: Exam
    norms: Norms
    settings: Settings
    divergences: dict[str, Divergence] = field(default_factory=dict)

    def run(self, cell: Cell) -> Row:
        """Train and examine; the record, ready for JSON."""
        place(self.model, self.start)
        case = Case(layer_names(self.model), cell.half, cell.seed, self.norms)
        method = METHODS[cell.method]
        plan = method.plan(case)
        place(self.model, self.start)  # tracing gave the weights back; who looks at them meanwhile must not matter
        self._know_start(cell.half)
        epochs = self._lessons(cell.half, method.replay)
        torch.manual_seed(cell.seed)  # adapters begin at random
        with adapted(self.model, method.lora) as trained:
            optimizer = make_optimizer(trained, method.rate * cell.lr, plan, method.anchor)
            if method.correct:
                method.correct(case, trained, optimizer)
            watch = Watch(trained, optimizer, plan)
            reset_peak()
            began, busy = time.perf_counter(), time.process_time()
            fit(trained, epochs, optimizer, self.settings, cell.seed, watch)
            seconds, cpu_seconds, most = time.perf_counter() - began, time.process_time() - busy, peak()
        record: Row = {
            "method": cell.method,
            "lr": cell.lr,
            "half": cell.half,
            "seed": cell.seed,
            "train_seconds": round(seconds, 1),
            "train_cpu_seconds": round(cpu_seconds, 1),
            "train_peak_mb": None if most is None else round(most / 2**20, 1),
            "share": round(watch.share, 4),
            "scales": [round(watch.scales[layer], 4) for layer in case.layers],
        }
        del optimizer, watch
        self.model.requires_grad_(True)
        end = {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}
        record["points"] = {}
        for share in SHARES:
            place(self.model, self.start, end, share)
            record["points"][str(share)] = self.point(cell.half)
        record["end"] = self.at_the_end(cell.half)
        record["relearned"] = self.relearned()
        return record | {"seconds": round(time.perf_counter() - began, 1)}

    def _lessons(self, half: str, replay: Replay | None) -> list[list[Example]]:
        """What is read in each epoch."""
        length, epochs = self.settings.length, self.settings.epochs
        passages = lessons(self.prepared, half, self.tokenizer, length)
        along = replayed(replay, self.prepared, self.tokenizer, length, epochs) if replay else [[]] * epochs
        return [passages + more for more in along]

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
