"""EvolveBench passages + DyKnow prompts -> a corpus that states new facts, and probes that ask for them.

EvolveBench (`evolve.json`) gives a passage for each new fact, DyKnow (`dyknow.json`) other phrasings of the question
and the dated former answers; together a test like TempLAMA: train on the passages, ask with the prompts.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.lifelong.data.text import balanced, components, ngrams
from localopt.errors import InputError
from localopt.pretraining.probes import completion
from localopt.pretraining.textfiles import read_text

DISTRACTORS = 9  # so an answer is ranked among ten
FEWEST = 3
OLDEST_NEWS = "2010"  # what has held since before is no news (kings since 1973, Curry's team since 2009)
OTHER_TEAMS = re.compile(r"\b(national|Olympic|men's|Academy|Juvenil)\b")  # not the clubs that are asked for

Row = dict[str, Any]


@dataclass(frozen=True)
class Fact:
    """One new fact: who or what `answer` is now, what it was (`old`, any of `holders`), and how to ask for it."""

    name: str
    subject: str
    kind: str
    answer: str
    since: str
    passage: str
    prompts: tuple[tuple[str, str], ...]
    old: str | None
    holders: frozenset[str]
    group: int = -1
    split: str = ""


def read_facts(folder: Path, seed: int) -> tuple[list[Fact], Counter[str]]:
    """The facts in both files, split into dev and test by connected components of subject, answer and old answer.

    Returns the facts kept and, for those dropped, how many for which reason.
    """
    evolve, dyknow = _leaves(folder / "evolve.json", "future_news"), _leaves(folder / "dyknow.json", "questions")
    dropped: Counter[str] = Counter({"only in one of the two files": len(evolve.keys() ^ dyknow.keys())})
    facts = []
    for path in (path for path in evolve if path in dyknow):
        try:
            fact = _fact(path, evolve[path], dyknow[path])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(f"{folder}: the fact {'/'.join(path)} is not in the expected form: {error!r}.") from error
        if fact.answer not in fact.passage:
            dropped["the passage does not state the answer"] += 1
        elif fact.since < OLDEST_NEWS:
            dropped[f"true since before {OLDEST_NEWS}"] += 1
        else:
            facts.append(fact)
    groups = components([{fact.subject, fact.answer, fact.old or fact.answer} for fact in facts])
    side = balanced(Counter(groups), random.Random(f"{seed}/facts"))
    return [replace(f, group=g, split=side[g]) for f, g in zip(facts, groups, strict=True)], dropped


def corpus(facts: list[Fact]) -> list[Row]:
    return [{"text": fact.passage, "fact": fact.name, "group": fact.group, "split": fact.split} for fact in facts]


def probes(facts: list[Fact], seed: int) -> tuple[list[Row], Counter[str]]:
    """One row per phrasing that shares no 6-gram with any passage, with distractors of the same kind and split.

    Distractors come from the same half as the answer: where one half is trained on, its answers and their
    distractors are then equally often read, and so are those of the other half.
    """
    read = set().union(*(ngrams(fact.passage) for fact in facts))
    held: dict[str, set[str]] = {}
    for fact in facts:
        held.setdefault(fact.subject, set()).update(fact.holders, {fact.answer})
    rows, dropped = [], Counter[str]()
    for fact in facts:
        rng = random.Random(f"{seed}/{fact.name}")
        peers = [other for other in facts if (other.kind, other.split) == (fact.kind, fact.split)]
        new = sorted({peer.answer for peer in peers})
        former = sorted({name for peer in peers for name in peer.holders} - set(new))
        others = rng.sample(new, len(new)) + rng.sample(former, len(former))
        distractors = unlike(others, held[fact.subject])[:DISTRACTORS]
        for phrasing, prompt in fact.prompts:
            if len(distractors) < FEWEST:
                dropped[f"fewer than {FEWEST} distractors"] += 1
            elif "/" in prompt:
                dropped["prompt with a slash"] += 1
            elif read & ngrams(completion(prompt, fact.answer).text):
                dropped["shares a 6-gram with the corpus"] += 1
            else:
                rows.append(
                    {"prompt": prompt, "answer": fact.answer, "distractors": distractors, "old": fact.old}
                    | {"fact": fact.name, "phrasing": phrasing, "kind": fact.kind, "since": fact.since}
                    | {"group": fact.group, "split": fact.split}
                )
    return rows, dropped


def style(folder: Path, passages: list[Row], asked: list[Row]) -> tuple[list[Row], Counter[str]]:
    """Passages like those of the corpus on facts that are not asked for: to learn how such passages read from.

    None names the subject of a fact that is asked for, its answer, or the answer before.
    """
    evolve = _leaves(folder / "evolve.json", "future_news")
    taught = {row["fact"] for row in passages}
    names = {name for row in asked for name in (row["fact"].split("/")[1], row["answer"], row["old"]) if name}
    rows, dropped = [], Counter[str]()
    for path in (path for path in evolve if "/".join(path) not in taught):
        text = " ".join(evolve[path]["future_news"]["text"].split())
        if any(name in text for name in names):
            dropped["names what is asked for"] += 1
        else:
            rows.append({"text": text, "fact": "/".join(path)})
    return rows, dropped


def _fact(path: tuple[str, ...], evolve: Row, dyknow: Row) -> Fact:
    news, questions = evolve["future_news"], dyknow["questions"]
    category, subject = path[0], path[1]
    passage = " ".join(news["text"].split())
    answer = _short(news["name"], passage, category)
    ask = {"countries_byGDP": "generic", "athletes_byPayment": "contextualized"}.get(category)
    kind = questions.get(ask, category).replace(subject, "...") if ask else category
    answers = [_dated(text) for text in dyknow["answers"]]
    holders = [(start, end, _short(name, "", category)) for name, start, end in answers if not OTHER_TEAMS.search(name)]
    over = sorted((end, name) for _, end, name in holders if end and name != answer)
    if answer not in {name for _, _, name in holders}:
        # The change is younger than DyKnow: whoever held the place then has left it by now.
        over += sorted((start, name) for start, end, name in holders if not end)
    old = over[-1][1] if over else None
    everyone = frozenset(name for _, _, name in holders)
    prompts = tuple(questions.items())
    return Fact("/".join(path), subject, kind, answer, news["dates"]["start"], passage, prompts, old, everyone)


def unlike(names: list[str], others: set[str]) -> list[str]:
    """The names that are none of the others, nor of each other, in short or long form (Real Madrid CF)."""
    kept: list[str] = []
    for name in names:
        if not any(name.startswith(other) or other.startswith(name) for other in [*others, *kept]):
            kept.append(name)
    return kept


def _short(name: str, passage: str, category: str) -> str:
    """Rulers are listed as "Felipe VI of Spain", where passages say "Felipe VI"."""
    return name.split(" of ")[0] if category == "countries_byGDP" else name


def _dated(text: str) -> tuple[str, str, str]:
    """`Name |S: +2017-05-14T00:00:00Z |E: ...` -> name, start, end ("" where there is none)."""
    name, *marks = text.split(" |")
    dates = {mark[0]: mark[3:].strip().lstrip("+")[:10] for mark in marks}
    return name, dates.get("S", ""), dates.get("E", "")


def _leaves(path: Path, mark: str) -> dict[tuple[str, ...], Row]:
    """The objects with the field `mark`, by the path of keys that leads to them."""
    try:
        tree = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, InputError) else InputError(f"{path}: not valid JSON ({error}).") from None

    def walk(node: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Row]]:
        if isinstance(node, dict) and mark in node:
            yield keys, node
        elif isinstance(node, dict):
            for key, child in node.items():
                yield from walk(child, (*keys, key))

    found = {keys: node for keys, node in walk(tree, ()) if len(keys) >= 2}
    if not found:
        raise InputError(f'{path}: has no object with the field "{mark}": is it the right file?')
    return found
