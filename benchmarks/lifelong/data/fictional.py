"""Fictional Knowledge: invented passages -> a corpus nothing of which can be known before, and questions by depth.

The data set (`fictional_knowledge.json`, kaistAI/factual-knowledge-acquisition) has 130 passages on people, places and
firms that do not exist, and for each three kinds of question: *verbatim* (a sentence of the passage, cut before its
last words), *paraphrased* (the same facts in other words), *compositional* (an answer that takes more than one sentence
or some thought). What is read of a passage is a run of whole sentences of at most LENGTH tokens, so that a run takes
minutes, and what is asked is what those sentences state: as many questions of each kind, at most MOST.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.lifelong.data.text import balanced, ngrams, words
from localopt.errors import InputError
from localopt.pretraining.textfiles import read_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILE = "fictional_knowledge.json"
LENGTH = 96  # tokens: 122 of the 130 passages have so short a run of sentences that answers every kind of question
MOST = 2  # questions of a kind and passage
POOL = 24  # other answers offered to the start, which leaves those it finds likeliest
KINDS = ("verbatim", "paraphrased", "compositional")
SENTENCE = re.compile(r"[.!?][\"\u201d\u2019)]?\s+(?=[A-Z\"\u201c\u2018(])")

Row = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """A question with where its passage states the answer: character ranges that end with it, one of which is read."""

    kind: str
    prompt: str
    answer: str
    stated: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Excerpt:
    """What is read of a passage, what it is asked, and where in it the answers stand."""

    name: str
    text: str
    questions: tuple[Question, ...]
    spans: tuple[tuple[int, int], ...]
    split: str = ""


def read_excerpts(folder: Path, tokenizer: PreTrainedTokenizerBase, seed: int) -> tuple[list[Excerpt], Counter[str]]:
    """The excerpts, split into dev and test with as many questions, and how many questions or passages were dropped.

    Raises:
        InputError: no such file, or one of another form.
    """
    path = folder / FILE
    try:
        rows = json.loads(read_text(path))
        dropped: Counter[str] = Counter()
        found = [_excerpt(f"{n:03d}", row, tokenizer, dropped) for n, row in enumerate(rows)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise (
            error
            if isinstance(error, InputError)
            else InputError(f"{path}: not in the form of Fictional Knowledge ({error!r}): is it the right file?")
        ) from error
    kept = [excerpt for excerpt in found if excerpt]
    sizes = Counter({number: len(excerpt.questions) for number, excerpt in enumerate(kept)})
    side = balanced(sizes, random.Random(f"{seed}/fictional"))
    split = [Excerpt(e.name, e.text, e.questions, e.spans, side[number]) for number, e in enumerate(kept)]
    return split, dropped


def corpus(excerpts: Sequence[Excerpt]) -> list[Row]:
    """A row a passage; `spans` are those of the answers that are asked for."""
    return [
        {"text": e.text, "fact": e.name, "group": int(e.name), "split": e.split, "spans": e.spans} for e in excerpts
    ]


def probes(excerpts: Sequence[Excerpt], seed: int) -> list[Row]:
    """A row a question, with answers to questions of the same kind on other passages of the same half beside it.

    They are as long as the right one, as near as there are any, and the passage does not say them.
    """
    rows = []
    for excerpt in excerpts:
        for question in excerpt.questions:
            others = [
                other.answer
                for peer in excerpts
                if peer.split == excerpt.split and peer is not excerpt
                for other in peer.questions
                if other.kind == question.kind and not _says(excerpt.text, other.answer)
                if not _says(other.answer, question.answer)
            ]
            rng = random.Random(f"{seed}/{excerpt.name}/{question.prompt}")
            rng.shuffle(others)
            length = len(words(question.answer))
            others.sort(key=lambda answer: abs(len(words(answer)) - length))
            distractors = list(dict.fromkeys(others))[:POOL]
            rows.append(
                {"prompt": question.prompt, "answer": question.answer, "distractors": distractors, "old": None}
                | {"fact": f"{excerpt.name}/{question.kind}", "kind": question.kind, "nearest": True}
                | {"group": int(excerpt.name), "split": excerpt.split}
            )
    return rows


def apart(rows: Sequence[Row], excerpts: Sequence[Excerpt]) -> list[Row]:
    """The facts to keep of which no phrasing shares a 6-gram with a passage."""
    read = set().union(*(ngrams(excerpt.text) for excerpt in excerpts))
    shared = {row["fact"] for row in rows if read & ngrams(f"{row['prompt']} {row['answer']}")}
    return [row for row in rows if row["fact"] not in shared]


def _excerpt(name: str, row: Row, tokenizer: PreTrainedTokenizerBase, dropped: Counter[str]) -> Excerpt | None:
    """The run of sentences that answers most questions, evenly over the kinds; the first of those that do."""
    text = " ".join(row["train_context"].split())
    asked = _questions(text, row, dropped)
    cuts = [0, *(match.end() for match in SENTENCE.finditer(text)), len(text)]
    best: tuple[int, int, int] | None = None
    most = 0
    for first, begin in enumerate(cuts[:-1]):
        for end in cuts[first + 1 :]:
            if len(tokenizer(text[begin:end].rstrip(), verbose=False)["input_ids"]) > LENGTH:
                break
            count = min(Counter(q.kind for q in _answered(asked, begin, end))[kind] for kind in KINDS)
            if min(count, MOST) > most:
                best, most = (begin, end, min(count, MOST)), min(count, MOST)
    if best is None:
        dropped["passages without a short run of sentences that answers every kind"] += 1
        return None
    begin, end, most = best
    answered = _answered(asked, begin, end)
    facts = [q.stated for q in answered if q.kind == "verbatim"][:most]
    kept = [q for q in answered if q.kind != "compositional" and q.stated in facts]
    kept += [q for q in answered if q.kind == "compositional"][:most]
    ends = {(next(b for a, b in q.stated if begin <= a and b <= end) - begin, len(q.answer)) for q in kept}
    spans = {(stop - length, stop) for stop, length in ends}
    return Excerpt(name, text[begin:end].rstrip(), tuple(kept), tuple(sorted(spans)))


def _questions(text: str, row: Row, dropped: Counter[str]) -> list[Question]:
    """Those whose answer the passage states, and the prompt does not."""
    found = []
    pairs = zip(row["mem_input"], row["gen_input"], row["mem_target"], strict=True)
    for verbatim, paraphrased, answer in ([_plain(part) for part in pair] for pair in pairs):
        sentence = " ".join(f"{verbatim} {answer}".split())
        place = text.find(sentence)
        if place < 0:
            dropped["the passage has no such sentence"] += 2
        elif any(_says(prompt, answer) for prompt in (verbatim, paraphrased)):
            dropped["the prompt gives the answer away"] += 2
        else:
            stated = ((place, place + len(sentence)),)
            found += [Question("verbatim", verbatim, answer, stated)]
            found += [Question("paraphrased", paraphrased, answer, stated)]
    for prompt, answer in zip(row["hard_gen_input"], row["hard_gen_target"], strict=True):
        prompt, answer = _plain(prompt), _plain(answer)
        places = tuple(match.span() for match in re.finditer(re.escape(answer), text, re.IGNORECASE))
        if not places:
            dropped["the passage does not say the answer"] += 1
        elif _says(prompt, answer):
            dropped["the prompt gives the answer away"] += 1
        else:
            found.append(Question("compositional", prompt, answer, places))
    return found


def _answered(questions: Sequence[Question], begin: int, end: int) -> list[Question]:
    """What the text from `begin` to `end` answers. An answer that it begins with cannot be predicted, and is none."""

    def read(question: Question, a: int, b: int) -> bool:
        return begin <= a and b <= end and b - len(question.answer) > begin

    return [q for q in questions if any(read(q, a, b) for a, b in q.stated)]


def _plain(text: str) -> str:
    """Without the full stop that some answers have."""
    return text.strip().rstrip(".")


def _says(text: str, answer: str) -> bool:
    return answer.casefold() in text.casefold()
