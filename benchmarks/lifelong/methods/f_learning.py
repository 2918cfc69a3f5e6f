"""Forgetting before learning, F-Learning (Ni et al. 2023, arXiv 2311.08011).

The model is first fine-tuned on what used to be true, and a share of that change is taken off its weights; then it
learns what is true now from there. With w_0 the start and FT training,

    w' = w_0 - share * (FT(w_0, old) - w_0),    w* = FT(w', new).

With `lora` the first change is that of low-rank adapters, which the authors found to forget as well as a full one.

What used to be true: each passage with the answer before, as DyKnow dates it, in place of the new one, name and last
name. Passages on what nobody was before are left out.

Departures: passages instead of questions with answers. The share, 0.3, was set beforehand, not tuned: at equal rate the
way off the old facts is then a third of the way to the new ones. The forgotten start w' is what decay toward the start
goes to; on paths between start and end the start is w_0, as for all methods.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.lifelong.data.passages import SPLITS, answers_in_passages, window
from benchmarks.lifelong.methods.adapters import adapted
from benchmarks.lifelong.methods.optimizers import make_optimizer
from benchmarks.lifelong.methods.rules import Online, Scales
from benchmarks.lifelong.methods.study import Lesson
from benchmarks.lifelong.training import fit
from localopt.errors import InputError
from localopt.pretraining.probes import Example
from localopt.pretraining.textfiles import json_lines

SHARE = 0.3


def outdated(lesson: Lesson) -> list[Example]:
    """Each passage as it would have read before, as a sequence with the loss on every token.

    Raises:
        InputError: no fact of the half has a former answer.
    """
    file = lesson.prepared / f"updated.{SPLITS[lesson.case.half]}.jsonl"
    before = {row["fact"]: (row["answer"], row["old"]) for _, row in json_lines(file) if row["old"]}
    length, found = lesson.settings.length, []
    for probe in answers_in_passages(lesson.prepared, lesson.case.half):
        if probe.source not in before:
            continue
        new, old = before[probe.source]
        text = as_it_was(probe.text, new, old)
        encoded = lesson.tokenizer(text, return_offsets_mapping=True, verbose=False)
        end = text.index(old) + len(old)
        ids = torch.tensor(encoded["input_ids"][window(encoded["offset_mapping"], end, length)])
        found.append({"input_ids": ids, "labels": ids.clone()})
    if not found:
        raise InputError(f"{file}: no fact has an answer before (`old`), so nothing can be forgotten first: use facts.")
    return found


def as_it_was(text: str, new: str, old: str) -> str:
    """The text with the old answer in place of the new one, and with its last name where only that is said.

    >>> as_it_was("Ada Osk leads. Mrs Osk is tall.", "Ada Osk", "Ben Reed")
    'Ben Reed leads. Mrs Reed is tall.'
    """
    text = text.replace(new, old)
    *first, last = new.split()
    return text.replace(f" {last}", f" {old.split()[-1]}") if first and last not in old.split() else text


def forgotten(share: float = SHARE, lora: int = 0, faster: float = 1.0) -> Callable[[Lesson, Scales | Online], None]:
    """Take a share of what training on the old facts changes off the weights.

    Args:
        lora: rank of adapters that are trained on them; 0 for the layers of the plan themselves.
        faster: what the rate is multiplied by there.
    """

    def before(lesson: Lesson, plan: Scales | Online) -> None:
        model, case, settings = lesson.model, lesson.case, lesson.settings
        epochs = [outdated(lesson)] * settings.epochs
        torch.manual_seed(case.seed)
        with adapted(model, lora) as trained:
            fit(trained, epochs, make_optimizer(trained, faster * lesson.rate, plan), settings, case.seed)
        model.requires_grad_(True)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                start = lesson.start[name]
                parameter.copy_(start - share * (parameter - start))

    return before
