"""What is asked of a model: the facts taught, held-out ones and facts to keep, each with other answers; the guards."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.lifelong.candidates import Question, Tree, answer_losses, plant
from benchmarks.lifelong.passages import SPLITS
from localopt.evaluate import span_losses
from localopt.probes import Example, encode, encode_text, read_corpus, read_probes
from localopt.textfiles import json_lines

DISTRACTORS = 4
PHRASINGS = 2  # of every fact
KEPT = {("near", "dev"): 20, ("near", "test"): 80, ("far", "test"): 40}  # facts, at most
CLOZES = 40  # sentences on new entities
TEXTS, TEXT_LENGTH = 12, 128  # of WikiText
DECODED = 8  # tokens

Row = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """One question of the exam: a phrasing of a fact.

    `part`: "A" or "B" for facts that are taught, else "near" or "far"; `split`: of the facts to keep; `group`: facts
    of one group are not independent.
    """

    part: str
    split: str
    fact: str
    group: str
    phrasing: int
    question: Question = field(repr=False)
    old: bool = False  # whether the last answer is the one that used to be right

    @property
    def key(self) -> str:
        return f"{self.fact}#{self.phrasing}"


@dataclass
class Exam:
    """The questions, tokenized once."""

    items: list[Item]
    trees: list[Tree]
    wikitext: list[Example]
    clozes: list[Example]
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def read(cls, prepared: Path, tokenizer: PreTrainedTokenizerBase) -> Exam:
        """Every question the prepared files allow for; the facts to keep are those `known` after the start's exam."""
        items = [
            item
            for half, split in SPLITS.items()
            for item in _taught(half, [row for _, row in json_lines(prepared / f"updated.{split}.jsonl")])
        ]
        for split in ("dev", "test"):
            items += _kept(split, [row for _, row in json_lines(prepared / f"retained.{split}.jsonl")])
        chunks = encode_text(read_corpus(prepared / "wikitext.txt"), tokenizer, TEXT_LENGTH)[:TEXTS]
        clozes = encode(_spread(read_probes(prepared / "new_entities.test.jsonl"), CLOZES), tokenizer, TEXT_LENGTH)
        return cls(items, plant([item.question for item in items], tokenizer), chunks, clozes, tokenizer)

    def ask(self, model: PreTrainedModel, chosen: Sequence[int]) -> list[list[float]]:
        """NLL in nats of every answer to the questions at these places, summed over its tokens, the right one first."""
        return [nll.tolist() for nll in answer_losses(model, [self.trees[i] for i in chosen])]

    def known(self, answers: Sequence[list[float]]) -> list[str]:
        """The facts to keep: ranked first under both phrasings, as many as KEPT allows of each part and split.

        Args:
            answers: the start's, to all questions.
        """
        first: dict[str, bool] = {}
        for item, answer in zip(self.items, answers, strict=True):
            first[item.fact] = first.get(item.fact, True) and min(answer[1:]) > answer[0]
        kept: list[str] = []
        for (part, split), most in KEPT.items():
            facts = dict.fromkeys(i.fact for i in self.items if (i.part, i.split) == (part, split) and first[i.fact])
            kept += _spread(list(facts), most)
        return kept

    def places(self, part: str, kept: Collection[str] = ()) -> list[int]:
        """Where the questions of a part stand.

        Args:
            part: "A" or "B"; "not A" or "not B" for the other half, one phrasing a fact, which is enough for a control;
                "near" or "far".
            kept: the facts to keep that are asked about.
        """
        if part.startswith("not "):
            half = part.removeprefix("not ")
            return [i for i, item in enumerate(self.items) if item.part in SPLITS.keys() - {half} and not item.phrasing]
        asked = [i for i, item in enumerate(self.items) if item.part == part]
        return asked if part in SPLITS else [i for i in asked if self.items[i].fact in kept]

    def guards(self, model: PreTrainedModel) -> dict[str, float]:
        """NLL a token on WikiText, and on the masked spans of sentences on new entities."""
        found = {}
        for name, examples in {"wikitext": self.wikitext, "entities": self.clozes}.items():
            losses = span_losses(model, examples, batch_size=16)
            found[name] = losses.nll.sum().item() / int(losses.tokens.sum())
        return found

    def decode(self, model: PreTrainedModel, chosen: Sequence[int]) -> dict[str, float]:
        """Greedy answers to the first phrasing of each of these questions: exact match and word F1."""
        asked = [self.items[i].question for i in chosen if self.items[i].phrasing == 0]
        self.tokenizer.padding_side = "left"
        inputs = self.tokenizer([question.prompt for question in asked], return_tensors="pt", padding=True)
        with torch.inference_mode():
            written = model.generate(
                **inputs, max_new_tokens=DECODED, do_sample=False, pad_token_id=self.tokenizer.pad_token_id
            )
        texts = self.tokenizer.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        scores = [_match(text, question.answers[0]) for text, question in zip(texts, asked, strict=True)]
        return {name: sum(score[i] for score in scores) / len(scores) for i, name in enumerate(("exact", "f1"))}


def _taught(half: str, rows: Sequence[Row]) -> list[Item]:
    items = []
    count: dict[str, int] = {}
    for row in rows:
        phrasing = count.get(row["fact"], 0)
        if phrasing < PHRASINGS:
            count[row["fact"]] = phrasing + 1
            answers = (row["answer"], *row["distractors"][:DISTRACTORS], *([row["old"]] if row["old"] else []))
            question = Question(row["prompt"], answers)
            items.append(Item(half, half, row["fact"], f"{half}{row['group']}", phrasing, question, bool(row["old"])))
    return items


def _kept(split: str, rows: Sequence[Row]) -> list[Item]:
    return [
        Item(
            "near" if row["near"] else "far",
            split,
            row["fact"],
            str(row["group"]),
            row["phrasing"],
            Question(row["prompt"], (row["answer"], *row["distractors"][:DISTRACTORS])),
        )
        for row in rows
    ]


def _spread(items: list[Any], most: int) -> list[Any]:
    """At most so many, from everywhere in the list."""
    return items if len(items) <= most else [items[i * len(items) // most] for i in range(most)]


def _match(text: str, answer: str) -> tuple[float, float]:
    """Whether the text begins with the answer; F1 of the answer's words and as many words of the text."""
    wanted = answer.casefold().split()
    found = [word.strip(".,;:!?()\"'") for word in text.casefold().split()][: len(wanted)]
    exact = text.strip().casefold().startswith(answer.casefold())
    common = sum(min(found.count(word), wanted.count(word)) for word in set(found))
    return float(exact), 2 * common / (len(found) + len(wanted)) if found else 0.0
