"""The package's data files -> what the demo teaches, what it asks, and what a model should still know afterwards.

Everything was written for this demo: towns, people, companies, medicines, ships, festivals, novels and animals are
invented, and so is what is said of them. A question's wrong answers are the right ones of the other facts of its kind,
which are read just as often: to have seen the words is not enough.

There are two sets that share no name and no kind of fact. Rates are chosen on one (``"tuning"``), methods are compared
on the other (``"test"``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

PASSAGES = 3  # of each fact
SHOWN = 5  # questions whose written answers are printed

Part = Literal["test", "tuning"]


@dataclass(frozen=True)
class Asked:
    """A question as the beginning of a sentence, and the answers offered, the right one first."""

    prompt: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Lessons:
    """What is taught and asked.

    ``passages``: what the model reads, three for each fact. ``taught``: a question a fact, in words of its own.
    ``known``: questions about the world as it is. ``page``: ordinary text. ``shown``: places in ``taught`` of the
    questions whose written answers are printed, the first of each kind.
    """

    passages: tuple[str, ...]
    taught: tuple[Asked, ...]
    known: tuple[Asked, ...]
    page: str
    shown: tuple[int, ...]


def read_lessons(part: Part = "test") -> Lessons:
    """Read one of the two sets.

    >>> lessons = read_lessons()
    >>> len(lessons.taught), lessons.taught[0].answers[0]
    (40, 'salt')
    """
    prefix = "" if part == "test" else "tuning_"
    facts = _rows(f"{prefix}facts.jsonl")
    kinds: dict[str, list[str]] = {}
    for fact in facts:
        kinds.setdefault(fact["kind"], []).append(fact["answer"])
    taught = []
    for fact in facts:
        others = [answer for answer in kinds[fact["kind"]] if answer != fact["answer"]]
        taught.append(Asked(fact["prompt"], (fact["answer"], *others)))
    known = tuple(Asked(row["prompt"], (row["answer"], *row["wrong"])) for row in _rows(f"{prefix}known.jsonl"))
    firsts = [next(i for i, fact in enumerate(facts) if fact["kind"] == kind) for kind in kinds]
    passages = tuple(passage for fact in facts for passage in fact["passages"])
    return Lessons(passages, tuple(taught), known, _text(f"{prefix}page.txt"), tuple(firsts[:SHOWN]))


def _text(name: str) -> str:
    return (files("localopt.demo") / "data" / name).read_text(encoding="utf-8").strip()


def _rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in _text(name).splitlines()]
