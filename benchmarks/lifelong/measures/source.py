"""Where questions come from: the facts of a half, and public files in a folder that the user names."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from benchmarks.lifelong.data.passages import SPLITS
from benchmarks.lifelong.exam.exam import WRONG
from benchmarks.lifelong.training import Settings
from localopt.errors import InputError
from localopt.pretraining.textfiles import json_lines, read_text

Row = dict[str, Any]
WORD_END = re.compile(r"(?<=\S)(?=\s|$)")
SENTENCE_END = re.compile(r"(?<=[a-z0-9)][.!?])\s+(?=[A-Z])")


class Absent(Exception):
    """A file that a measure needs is not there; the message names it."""


@dataclass(frozen=True)
class Source:
    """`shared`: the folder with the public files. At most: `most` questions of a kind, `length` tokens of a lesson."""

    prepared: Path
    shared: Path
    half: str
    tokenizer: PreTrainedTokenizerBase
    most: int
    length: int = Settings.length

    def file(self, name: str) -> Path:
        """Raises Absent where the folder does not hold it."""
        if not (self.shared / name).is_file():
            raise Absent(name)
        return self.shared / name

    def lesson(self, text: str) -> str:
        """As much of a text as a method reads and traces: its first words, of at most `length` tokens together."""
        offsets = self.tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        if len(offsets) <= self.length:
            return text
        words = [end for end in WORD_END.finditer(text) if end.start() <= offsets[self.length - 1][1]]
        return text[: words[-1].start()] if words else text[: offsets[self.length - 1][1]]


@dataclass(frozen=True)
class Fact:
    """One fact of a half: its passage, other phrasings, the answer, wrong ones, and the former one."""

    name: str
    group: str
    passage: str
    prompts: tuple[str, ...]
    answer: str
    wrong: tuple[str, ...]
    old: str | None

    @property
    def subject(self) -> str:
        return self.name.split("/")[1]

    @property
    def offered(self) -> tuple[str, ...]:
        """The answer first, the former one last."""
        return (self.answer, *self.wrong, *([self.old] if self.old else []))


def facts_of(prepared: Path, half: str) -> list[Fact]:
    """The facts of a half that are asked for in other words, in the order of the files."""
    asked: dict[str, list[Row]] = {}
    for _, row in json_lines(prepared / f"updated.{SPLITS[half]}.jsonl"):
        asked.setdefault(row["fact"], []).append(row)
    found = []
    for _, row in json_lines(prepared / f"corpus_train.{SPLITS[half]}.jsonl"):
        if rows := asked.get(row["fact"]):
            one, prompts = rows[0], tuple(r["prompt"] for r in rows)
            wrong = tuple(one["distractors"][:WRONG])
            group = f"{half}{one['group']}"
            found.append(Fact(row["fact"], group, row["text"], prompts, one["answer"], wrong, one["old"]))
    return found


def by_fact(path: Path) -> dict[str, Row]:
    """The objects with "answers" in a file of EvolveBench, by the keys that lead to them, as facts are named."""
    try:
        tree = json.loads(read_text(path))
    except ValueError as error:
        raise error if isinstance(error, InputError) else InputError(f"{path}: not valid JSON ({error}).") from None
    found: dict[str, Row] = {}

    def walk(node: Any, keys: tuple[str, ...]) -> None:
        if isinstance(node, dict) and "answers" in node:
            found["/".join(keys)] = node
        elif isinstance(node, dict):
            for key, child in node.items():
                walk(child, (*keys, key))

    walk(tree, ())
    if not found:
        raise InputError(f'{path}: has no object with the field "answers": is it the right file?')
    return found


def holders(row: Row, fact: str) -> list[str]:
    """Everyone that an object of EvolveBench names, once each: `Name |S: ... |E: ...` -> Name."""
    return list(dict.fromkeys(short(text.split(" |")[0], fact) for text in row["answers"]))


def short(name: str, fact: str) -> str:
    """Rulers are listed as "Felipe VI of Spain", where passages say "Felipe VI"."""
    return name.split(" of ")[0] if fact.startswith("countries") else name


def statement(fact: Fact) -> str:
    """The sentence of the passage that first says the answer."""
    begin = fact.passage.find(fact.answer)
    end = begin + len(fact.answer)
    cuts = [match.span() for match in SENTENCE_END.finditer(fact.passage)]
    first = max((after for _, after in cuts if after <= begin), default=0)
    last = min((before for before, _ in cuts if before >= end), default=len(fact.passage))
    return fact.passage[first:last]


def contradiction(fact: Fact, answer: str) -> str | None:
    """The statement with another answer; None where a part of the name would still give the right one away."""
    text = statement(fact).replace(fact.answer, answer)
    words = {word for word in fact.answer.split() if len(word) > 2} - set(answer.split())
    return None if any(word in text for word in words) else text
