"""Every measure's figure, counted by hand from answers that are given instead of a model's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.lifelong.measures import context, evolving, linguistics
from benchmarks.lifelong.measures.context import ContextAndMemory
from benchmarks.lifelong.measures.definitions import DEFINITIONS, Values, figure
from benchmarks.lifelong.measures.evolving import Evolving
from benchmarks.lifelong.measures.knowedit import KnowEdit
from benchmarks.lifelong.measures.linguistics import Linguistics
from benchmarks.lifelong.measures.propagation import Propagation
from benchmarks.lifelong.measures.working_memory import WorkingMemory
from tests.benchmarks.invented_measures import source_of

NOBODY: Any = None  # the model that is not asked
FIRST, SECOND = [1.0, 2.0, 3.0], [2.0, 1.0, 3.0]  # NLL where the right answer is the likeliest, and where it is not


Counted = tuple[dict[str, Values], dict[str, float]]  # what was found, and what was counted


class Given:
    """Says these, over and over, whatever is asked."""

    def __init__(self, *answers: Any, count: int) -> None:
        self.answers = list(islice(cycle(answers), count))

    def __call__(self, model: Any) -> list[Any]:
        return self.answers


def firsts(count: int, every: int) -> tuple[Given, float]:
    """Of so many answers every third (say) is right, and their share."""
    given = Given(FIRST, *[SECOND] * (every - 1), count=count)
    return given, math.ceil(count / every) / count


def figures(found: dict[str, Values]) -> dict[str, float]:
    return {name: figure(name, values) for name, values in found.items()}


def knowedit(prepared: Path, public: Path, _: pytest.MonkeyPatch) -> Counted:
    of, exam, _ = source_of(prepared, public)
    system = KnowEdit(of, exam)
    wanted = {}
    for every, (name, some) in enumerate(system.asked.items(), 2):
        system.choices[name], wanted[name] = firsts(len(some), every)  # type: ignore[assignment]
    exam.read = lambda model: [math.log(2), math.log(8)]  # type: ignore[method-assign]
    return system(NOBODY), wanted | {"text": 4.0}


def propagation(prepared: Path, public: Path, _: pytest.MonkeyPatch) -> Counted:
    of, exam, _ = source_of(prepared, public, "E")
    system = Propagation(of, exam)
    wanted = {}
    for base, name in enumerate(list(system.spans), 2):  # spans of one and of three tokens, as surprising a token
        spans = Values([math.log(base), 3 * math.log(base)], ["a", "b"], [1, 3])
        system.spans[name], wanted[name] = (lambda model, spans=spans: spans), float(base)  # type: ignore[assignment]
    for every, (name, fillings) in enumerate(system.inferences.items(), 2):
        fillings.choices, wanted[name] = firsts(len(fillings.asked), every)  # type: ignore[assignment]
    return system(NOBODY), wanted


def evolved(prepared: Path, public: Path, monkeypatch: pytest.MonkeyPatch) -> Counted:
    of, exam, _ = source_of(prepared, public, most=20)
    system = Evolving(of, exam)
    kept = system.asked
    # The first answer is written, of the second one word of two, beside a wrong one; of the third nothing.
    asked = [("p", "Ada", "A0"), ("q", "Ada Osk", "A1"), ("r", "Ben", "A2")]
    texts = [" Ada", " Ada Reed", " Cyr"]
    system.asked = dict.fromkeys(("updated", "new", "unchanged"), asked)
    monkeypatch.setattr(evolving, "written", lambda *_: texts)
    system.new_and_old, beaten = firsts(len(system.pairs), 3)  # type: ignore[assignment]
    whens = ("until 1999", "2000-2014", "since 2015")
    system.past = [("p", ("then", "now", "other"), f"A{n}", whens[n % 3]) for n in range(6)]
    third = [3.0, 4.0, 1.0]  # likelier than the one of today, and yet not the first
    nll = [FIRST, SECOND, third, FIRST, FIRST, SECOND]
    system.then_and_now = Given(*nll, count=6)  # type: ignore[assignment]
    wanted = {f"{kind} exact": 1 / 3 for kind in kept} | {f"{kind} F1": (1 + 0.5 + 0) / 3 for kind in kept}
    past = {"past": 4 / 6, "past first": 3 / 6, "past until 1999": 1.0, "past 2000-2014": 0.5, "past since 2015": 0.5}
    return system(NOBODY), wanted | past | {"new over old": beaten}


def remembered(prepared: Path, public: Path, _: pytest.MonkeyPatch) -> Counted:
    of, exam, _ = source_of(prepared, public)
    system = WorkingMemory(of, exam)
    count = len(system.ignored_groups)
    system.bare = Given(FIRST, SECOND, count=count)  # type: ignore[assignment]
    system.distracted = Given(FIRST, count=count)  # type: ignore[assignment]
    system.followed, followed = firsts(len(system.followed_groups), 4)  # type: ignore[assignment]
    return system(NOBODY), {"robustness": math.ceil(count / 2) / count, "controllability": followed}


def told(prepared: Path, public: Path, monkeypatch: pytest.MonkeyPatch) -> Counted:
    of, exam, _ = source_of(prepared, public)
    system = ContextAndMemory(of, exam)
    (fact, *_) = system.facts
    system.facts, system.prompts = [fact], ["Who leads it?"]
    system.contexts = {
        "consistent": [f"It is {fact.answer}."],
        "first": ["Cyr Moss leads. Rain falls."],
        "middle": ["Falk rests. Cyr Moss leads."],
        "last": ["Rain falls. It does. Cyr Moss leads."],
    }
    written = {
        "Who leads it?": f" {fact.answer.split()[0]} Falk",  # half of what is written is of the answer
        f"It is {fact.answer}. Who leads it?": f" {fact.answer}",
        "Cyr Moss leads. Rain falls. Who leads it?": " Cyr Moss",
        "Falk rests. Cyr Moss leads. Who leads it?": " Cyr Falk",  # Falk is told here
        "Rain falls. It does. Cyr Moss leads. Who leads it?": " Lund Falk",
    }
    monkeypatch.setattr(context, "written", lambda model, tokenizer, prompts, tokens: [written[p] for p in prompts])
    by_place = {"context, first": 1.0, "context, middle": 1.0, "context, last": 0.0}
    wanted = by_place | {"context, consistent": 1.0, "context, contradicting": 2 / 3, "memory, none": 0.5}
    return system(NOBODY), wanted | {"memory, contradicting": (0 + 0 + 0.5) / 3}


def probed(prepared: Path, public: Path, monkeypatch: pytest.MonkeyPatch) -> Counted:
    of, exam, _ = source_of(prepared, public)
    system = Linguistics(of, exam)
    words = sum(len(sentence.words) for sentence in system.parts["test"])
    states = {0: np.zeros((words, 1), np.float32), 2: np.ones((words, 1), np.float32)}
    monkeypatch.setattr(linguistics, "hidden_states", lambda *_: states)

    def by_hand(train: Any, labels: Sequence[str], test: Any, wanted: Sequence[str]) -> Any:
        """Every word found in the one layer, every second in the other; of control labels every fourth."""
        real = list(wanted) in [[label for s in system.parts["test"] for label in s.labels[task]] for task in TASKS]
        every = (2 if test[0, 0] else 1) if real else 4
        return (np.arange(words) % every == 0).astype(float)

    monkeypatch.setattr(linguistics, "probed", by_hand)
    found = system(NOBODY)
    assert system.by_layer["dependency"] == {"0": 1.0, "2": 0.5}
    assert system.by_layer["dependency, selectivity"] == {"0": 0.75, "2": 0.25}
    return found, dict.fromkeys(TASKS, 0.75) | {f"{task}, selectivity": 0.5 for task in TASKS}


TASKS = tuple(linguistics.TASKS)
SYSTEMS: tuple[Callable[[Path, Path, pytest.MonkeyPatch], Counted], ...] = (
    knowedit,
    propagation,
    evolved,
    remembered,
    told,
    probed,
)


def test_every_measure_is_what_is_counted_by_hand(
    prepared: Path, public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    valued: set[str] = set()
    for system in SYSTEMS:
        found, wanted = system(prepared, public, monkeypatch)
        assert figures(found) == pytest.approx(wanted), system.__name__
        valued |= wanted.keys()
    assert DEFINITIONS.keys() == valued  # none is left out
