"""ParaRel triples and patterns -> facts the start model knows, to see which of them training makes it lose.

A fact is known when its answer is likelier than nine other answers of its relation under two differently worded
prompts. *Near* facts are about what the training text is about (places that are governed), in another relation
(capitals); *far* facts share no subject and no answer with it.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.lifelong.facts import DISTRACTORS
from benchmarks.lifelong.text import ngrams
from localopt.errors import InputError
from localopt.evaluate import Margins
from localopt.probes import Probe, completion
from localopt.textfiles import json_lines, string

NEAR = "P36"
FAMILIES = {"P36": "capital", "P103": "tongue", "P1412": "tongue", "P364": "film", "P176": "maker", "P178": "maker"}
TRACED = {"film", "maker"}  # far families a trace may see; the others are asked afterwards
CANDIDATES = {"near": 160, "far": 60}  # asked of the model, per relation
SAME_ANSWER = 8  # far candidates with one answer: without a limit half of them would be "French"

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

    No subject is in two of the three lists, and no far relation is in both "trace" and another.
    """
    read = set().union(*(ngrams(text) for text in corpus))
    rows: list[list[Row]] = []
    dropped: Counter[str] = Counter()
    for relation in FAMILIES:
        asked = _candidates(folder / "pararel", relation, trained, taught, read, dropped, seed)
        for phrasing in (0, 1):
            known = rank([_probe(pair[phrasing]) for pair in asked]).first if asked else ()
            dropped["not ranked first"] += known.count(False)
            asked = [pair for pair, first in zip(asked, known, strict=True) if first]
        rows += asked
    return _split(rows, random.Random(f"{seed}/retained")), dropped


def _candidates(
    folder: Path,
    relation: str,
    trained: set[str],
    taught: set[str],
    read: set[tuple[str, ...]],
    dropped: Counter[str],
    seed: int,
) -> list[list[Row]]:
    """Pairs of rows, the same fact under two phrasings."""
    near = relation == NEAR
    prompts = _prompts(folder / "patterns" / f"{relation}.jsonl")
    triples = [
        (string(line, "sub_label", source), string(line, "obj_label", source))
        for source, line in json_lines(folder / f"{relation}.jsonl")
    ]
    right: dict[str, set[str]] = {}
    for subject, answer in triples:
        right.setdefault(subject, set()).add(answer)
    answers = [answer for _, answer in triples]
    rng = random.Random(f"{seed}/{relation}")
    rng.shuffle(triples)
    pairs: list[list[Row]] = []
    seen: Counter[str] = Counter()
    for subject, answer in triples:
        others = list(dict.fromkeys(rng.sample(answers, len(answers))))
        distractors = [other for other in others if other not in right[subject] | taught][:DISTRACTORS]
        pair: list[Row] = [
            {"prompt": prompt.replace("[X]", subject), "answer": answer, "distractors": distractors}
            | {"fact": f"{relation}/{subject}", "phrasing": number, "relation": relation, "near": near}
            | {"group": subject, "same_subject": subject in trained}
            for number, prompt in enumerate(prompts)
        ]
        if answer.casefold() in subject.casefold() or subject.casefold() in answer.casefold():
            dropped["the subject gives the answer away"] += 1
        elif {subject, answer} & taught or (not near and {subject, answer} & trained):
            dropped["shares an entity with the corpus"] += 1
        elif read & ngrams(pair[0]["prompt"] + " " + answer) or read & ngrams(pair[1]["prompt"] + " " + answer):
            dropped["shares a 6-gram with the corpus"] += 1
        elif seen[answer] == SAME_ANSWER or len(pairs) == CANDIDATES["near" if near else "far"]:
            dropped["more than are asked"] += 1
        elif subject in {pair[0]["group"] for pair in pairs}:
            dropped["a second answer"] += 1
        else:
            seen[answer] += 1
            pairs.append(pair)
    return pairs


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
    """By subject; far facts by family first, so that a trace sees other relations than those asked afterwards."""
    subjects = sorted({pair[0]["group"] for pair in pairs})
    rng.shuffle(subjects)
    place = {subject: index for index, subject in enumerate(subjects)}
    lists: dict[str, list[Row]] = {"dev": [], "test": [], "trace": []}
    for pair in pairs:
        index = place[pair[0]["group"]]
        if pair[0]["near"]:
            lists[("dev", "test", "trace")[index % 3]] += pair
        elif FAMILIES[pair[0]["relation"]] not in TRACED:
            lists[("dev", "test")[index % 2]] += pair
    asked = {row["group"] for row in lists["dev"] + lists["test"]}
    for pair in pairs:
        if FAMILIES[pair[0]["relation"]] in TRACED and pair[0]["group"] not in asked:
            lists["trace"] += pair
    return lists
