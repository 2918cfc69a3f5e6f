"""The comparison: one model learns the same invented facts in three ways, from the same weights."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

from localopt.demo.exam import Exam, Marks
from localopt.demo.lessons import Lessons
from localopt.demo.methods import METHODS, Classroom
from localopt.demo.path import WAY, Path, walk
from localopt.demo.progress import Progress
from localopt.demo.training import Effort, read_passages, teach

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What things cost, in steps of training, for the bar's estimate of the remaining time.
EXAM, WRITING = 1.5, 1.0


@dataclass(frozen=True)
class Result:
    """How one method did.

    ``rate``: the peak learning rate; ``share``: of the weights, how many train; ``seconds``: of preparing (tracing) and
    training, without exams; ``written``: its answers to the questions shown; ``note``: what else there is to say.
    """

    method: str
    rate: float
    share: float
    seconds: float
    path: Path
    written: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Outcome:
    """Everything that came out."""

    parameters: int
    lessons: Lessons
    effort: Effort
    before: Marks
    written: tuple[str, ...]
    results: tuple[Result, ...]


def experiment(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lessons: Lessons,
    effort: Effort,
    folder: FilePath,
    progress: Progress,
) -> Outcome:
    """Teach the model by every method; afterwards its weights are what they were.

    ``folder`` exists; methods leave there what they made on the way (a trace).
    """
    exam = Exam(lessons, tokenizer)
    rows = read_passages(lessons.passages, tokenizer)
    room = Classroom(model, tokenizer, rows, effort, folder)
    steps = effort.steps(len(rows))
    exams = 1 + len(METHODS) * (len(WAY) + 1)
    preparing = sum(method.preparing for method in METHODS)
    progress.expect(len(METHODS) * (steps + WRITING) + WRITING + exams * EXAM + preparing)

    def mark(one: PreTrainedModel) -> Marks:
        marks = exam.mark(one)
        progress.advance(EXAM)
        return marks

    def write() -> tuple[str, ...]:
        written = tuple(exam.write(model))
        progress.advance(WRITING)
        return written

    progress.stage("asking before anything is taught")
    start = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    before, written = mark(model), write()
    results = []
    for method in METHODS:
        if method.first:
            progress.stage(f"{method.name}: {method.first}")
        started = time.perf_counter()
        prepared = method.prepare(room)
        progress.advance(method.preparing)
        progress.stage(f"{method.name}: training")
        teach(model, rows, prepared.optimizer, effort, progress.advance)
        seconds = time.perf_counter() - started
        progress.stage(f"{method.name}: asking")
        answers = write()
        path = walk(model, start, before, mark)
        share = _share_trained(model)
        model.requires_grad_(True)
        results.append(Result(method.name, prepared.rate, share, seconds, path, answers, prepared.note))
        del prepared  # with the optimizer's state, three times the weights, before the next method makes its own
    parameters = sum(weight.numel() for weight in model.parameters())
    return Outcome(parameters, lessons, effort, before, written, tuple(results))


def _share_trained(model: PreTrainedModel) -> float:
    sizes = [(weight.numel(), weight.requires_grad) for weight in model.parameters()]
    return sum(size for size, trains in sizes if trains) / sum(size for size, _ in sizes)
