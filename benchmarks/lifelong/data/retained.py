"""Facts the start model knows, to see which of them training makes it lose: ParaRel's, and those of `geography`.

A fact is known when its answer is likelier than nine other answers of its relation under two differently worded
prompts. *Near* facts are about what the training text is about (countries and companies, whoever heads them), in other
relations (capitals, continents, currencies, languages, cities, products); *far* facts share no subject and no answer
with it.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.lifelong.data.facts import DISTRACTORS, FEWEST
from benchmarks.lifelong.data.geography import Relation, geography
from benchmarks.lifelong.data.text import components, ngrams
from localopt.errors import InputError
from localopt.pretraining.evaluate import Margins
from localopt.pretraining.probes import Probe, completion
from localopt.pretraining.textfiles import json_lines, string

NEAR = {
    "P36": True,
    "P37": False,
    "P176": False,
    "P178": False,
    "P495": True,
}  # whether answers are named, see Relation
ASKED = ("P103", "P1412")  # far: people's languages
TRACED = ("P364", "P1303")  # far: languages of films and people's instruments, which a trace may see
CANDIDATES = 120  # asked of the model, per relation
SAME_ANSWER = 12  # candidates with one answer: without a limit half of them would be "French"
SHARES = {"dev": 0.25, "test": 0.45, "trace": 0.30}  # of the near facts

Row = dict[str, Any]
Rank = Callable[[Sequence[Probe]], Margins]


def retained(
    folder: Path, corpus: list[str], trained: set[str], taught: set[str], rank: Rank, seed: int
) -> tuple[dict[str, list[Row]], Counter[str]]:
    """Known facts as rows for "dev", "test" and "trace", two a fact (one a phrasing), and what was dropped.

    Args:
        corpus: the training text; no row shares a 6-gram with it.
        trained: subjects of the training text.
        taught: its answers, new and old; no fact here has one as its subject or answer.
        rank: the margins of the start model on probes with distractors.

    No subject is in two of the three lists, no named answer of a near fact either, and no far relation is in both
    "trace" and another.
    """
    read = set().union(*(ngrams(text) for text in corpus))
    pairs: list[list[Row]] = []
    dropped: Counter[str] = Counter()
    near = geography() + [_relation(folder / "pararel", name, named) for name, named in NEAR.items()]
    far = [_relation(folder / "pararel", name, False) for name in ASKED + TRACED]
    for relation in near + far:
        asked = _candidates(relation, relation in near, trained, taught, read, dropped, seed)
        for phrasing in (0, 1):
            known = rank([_probe(pair[phrasing]) for pair in asked]).first if asked else ()
            dropped["not ranked first"] += known.count(False)
            asked = [pair for pair, first in zip(asked, known, strict=True) if first]
        pairs += asked
    return _split(pairs, random.Random(f"{seed}/retained")), dropped


def _candidates(
    relation: Relation,
    near: bool,
    trained: set[str],
    taught: set[str],
    read: set[tuple[str, ...]],
    dropped: Counter[str],
    seed: int,
) -> list[list[Row]]:
    """Pairs of rows, the same fact under two phrasings; near facts whose subject is trained on come first."""
    right: dict[str, set[str]] = {}
    for subject, answer in relation.pairs:
        right.setdefault(subject, set()).add(answer)
    answers = [answer for _, answer in relation.pairs]
    rng = random.Random(f"{seed}/{relation.name}")
    order = rng.sample(relation.pairs, len(relation.pairs))
    if near:
        order.sort(key=lambda pair: not trained & set(pair))
    pairs: list[list[Row]] = []
    seen: Counter[str] = Counter()
    subjects: set[str] = set()
    for subject, answer in order:
        others = list(dict.fromkeys(rng.sample(answers, len(answers))))
        distractors = [other for other in others if other not in right[subject] | taught][:DISTRACTORS]
        pair: list[Row] = [
            {"prompt": prompt.replace("[X]", subject), "answer": answer, "distractors": distractors}
            | {"fact": f"{relation.name}/{subject}", "phrasing": number, "relation": relation.name, "near": near}
            | {"subject": subject, "named": relation.named, "same_subject": bool(trained & {subject, answer})}
            for number, prompt in enumerate(relation.prompts)
        ]
        if answer.casefold() in subject.casefold() or subject.casefold() in answer.casefold():
            dropped["the subject gives the answer away"] += 1
        elif {subject, answer} & taught or (not near and {subject, answer} & trained):
            dropped["shares an entity with the corpus"] += 1
        elif any(read & ngrams(row["prompt"] + " " + answer) for row in pair):
            dropped["shares a 6-gram with the corpus"] += 1
        elif seen[answer] == SAME_ANSWER or len(pairs) == CANDIDATES:
            dropped["more than are asked"] += 1
        elif subject in subjects:
            dropped["a second answer"] += 1
        elif len(distractors) < FEWEST:
            dropped[f"fewer than {FEWEST} distractors"] += 1
        else:
            seen[answer] += 1
            subjects.add(subject)
            pairs.append(pair)
    return pairs


def _relation(folder: Path, name: str, named: bool) -> Relation:
    triples = tuple(
        (string(line, "sub_label", source), string(line, "obj_label", source))
        for source, line in json_lines(folder / f"{name}.jsonl")
    )
    return Relation(name, _prompts(folder / "patterns" / f"{name}.jsonl"), triples, named)


def _prompts(path: Path) -> tuple[str, str]:
    """The first pattern that ends with the answer, and the first such pattern worded with other words."""
    found = []
    for source, line in json_lines(path):
        match = re.fullmatch(r"(.*\[X\].*?)\s*\[Y\]\s*\.?", string(line, "pattern", source))
        if match:
            found.append((match[1], line.get("extended_lemma")))
    if not found:
        raise InputError(f"{path}: has no pattern with [X] before a final [Y].")
    first = found[0]
    second = next((prompt for prompt, lemma in found if lemma != first[1]), found[-1][0])
    return first[0], second


def _probe(row: Row) -> Probe:
    return completion(row["prompt"], row["answer"], row["fact"], row)


def _split(pairs: list[list[Row]], rng: random.Random) -> dict[str, list[Row]]:
    """By the connected components (`group`) of subjects and named answers, each dealt whole to one of the lists.

    Far facts that are asked go to "dev" or "test", those of other relations to "trace" where their subject is new.
    """
    groups = components(
        [{pair[0]["subject"], pair[0]["answer"]} if pair[0]["named"] else {pair[0]["subject"]} for pair in pairs]
    )
    sizes: Counter[int] = Counter()
    for pair, group in zip(pairs, groups, strict=True):
        sizes[group] += pair[0]["near"]
        for row in pair:
            row["group"] = group
            del row["named"]
    order = sorted(rng.sample(list(sizes), len(sizes)), key=lambda group: -sizes[group])
    filled = dict.fromkeys(SHARES, 0.0)
    side = {}
    for number, group in enumerate(order):
        if sizes[group]:
            side[group] = min(SHARES, key=lambda name: filled[name] / SHARES[name])
            filled[side[group]] += sizes[group]
        else:
            side[group] = ("dev", "test")[number % 2]
    lists: dict[str, list[Row]] = {name: [] for name in SHARES}
    asked = {pair[0]["group"] for pair in pairs if pair[0]["relation"] in ASKED}
    for pair in pairs:
        group = pair[0]["group"]
        if pair[0]["near"] or (pair[0]["relation"] in ASKED and side[group] != "trace"):
            lists[side[group]] += pair
        elif pair[0]["relation"] in TRACED and group not in asked and (not sizes[group] or side[group] == "trace"):
            lists["trace"] += pair
    return lists
