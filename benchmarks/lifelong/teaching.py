"""What every run does first: put a method's rule, text and optimizer together, and read the passages."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.lifelong.data.passages import lessons
from benchmarks.lifelong.methods.adapters import adapted
from benchmarks.lifelong.methods.methods import METHODS
from benchmarks.lifelong.methods.optimizers import make_optimizer
from benchmarks.lifelong.methods.replay import Replay, replayed
from benchmarks.lifelong.methods.rules import Case
from benchmarks.lifelong.methods.study import Lesson
from benchmarks.lifelong.start import Weights, place
from benchmarks.lifelong.training import Settings, fit, own_loss
from benchmarks.lifelong.watch import Watch
from benchmarks.memory import peak, reset_peak
from localopt.pretraining.probes import Example

Row = dict[str, Any]


def teach(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prepared: Path,
    case: Case,
    method: str,
    rate: float,
    settings: Settings,
    start: Weights,
) -> Row:
    """Train on the passages of the case's half in `prepared`, from `start`; what it took, ready for JSON."""
    entry = METHODS[method]
    study = entry.study
    place(model, start)
    plan = entry.plan(case)
    place(model, start)  # tracing gave the weights back; who looks at them meanwhile must not matter
    rate = entry.rate * rate
    lesson = Lesson(model, tokenizer, prepared, case, rate, settings, start)
    reset_peak()
    began, busy = time.perf_counter(), time.process_time()
    epochs = study.reads(lesson) if study.reads else _lessons(prepared, case.half, tokenizer, settings, entry.replay)
    loss_of = study.loss(lesson) if study.loss else own_loss
    if study.before:
        study.before(lesson, plan)
    torch.manual_seed(case.seed)  # adapters begin at random
    anchor = entry.anchor if entry.anchor is None else replace(entry.anchor, start=case.anchor)
    with adapted(model, entry.lora) as trained:
        optimizer = make_optimizer(trained, rate, plan, anchor, entry.layers)
        if entry.correct:
            entry.correct(case, trained, optimizer)
        watch = Watch(trained, optimizer, plan)
        if study.instead:
            study.instead(lesson, plan)
        else:
            steps = replace(settings, batch_size=settings.batch_size * study.batches)
            fit(trained, epochs, optimizer, steps, case.seed, watch, loss_of)
    seconds, cpu_seconds, most = time.perf_counter() - began, time.process_time() - busy, peak()
    model.requires_grad_(True)
    return {
        "train_seconds": round(seconds, 1),
        "train_cpu_seconds": round(cpu_seconds, 1),
        "train_peak_mb": None if most is None else round(most / 2**20, 1),
        "share": round(watch.share, 4),
        "scales": [round(watch.scales[layer], 4) for layer in case.layers],
    }


def _lessons(
    prepared: Path, half: str, tokenizer: PreTrainedTokenizerBase, settings: Settings, replay: Replay | None
) -> list[list[Example]]:
    """What is read in each epoch."""
    length, epochs = settings.length, settings.epochs
    passages = lessons(prepared, half, tokenizer, length)
    along = replayed(replay, prepared, tokenizer, length, epochs) if replay else [[]] * epochs
    return [passages + more for more in along]
