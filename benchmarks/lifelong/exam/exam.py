"""What is asked of a model: the facts taught, held-out ones and facts to keep, each with other answers; the guards."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.lifelong.data.passages import SPLITS
from localopt.errors import InputError
from localopt.pretraining.candidates import Question, answer_losses, plant
from localopt.pretraining.evaluate import span_losses
from localopt.pretraining.probes import encode, encode_text, read_corpus, read_probes
from localopt.pretraining.textfiles import json_lines

WRONG = 4  # answers beside the right one, and the old one where there is one
PHRASINGS = 2  # of every fact
KEPT = {("near", "dev"): 20, ("near", "test"): 80, ("far", "test"): 40}  # facts, at most
CLOZES = 40  # sentences on new entities
TEXTS = 32  # pieces of WikiText, the first quarter to choose rates by
TEXT_LENGTH = 64
DECODED = 8  # tokens, or as many as the longest answer has

Row = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """One question of the exam: a phrasing of a fact, and its answers, the right one first.

    `part`: "A" or "B" for facts that are taught, else "near" or "far"; `split`: of the facts to keep; `group`: facts
    of one group are not independent; `old`: whether the last answer is the one that used to be right; `kind`: of the
    question, where there are several; `nearest`: whether the likeliest wrong answers are still to be chosen.
    """

    part: str
    split: str
    fact: str
    group: str
    phrasing: int
    prompt: str
    answers: tuple[str, ...]
    old: bool = False
    kind: str = ""
    nearest: bool = False

    @classmethod
    def restored(cls, row: Row) -> Item:
        """From what `asdict` made of one, and JSON of that."""
        known = {name: row[name] for name in cls.__dataclass_fields__ if name in row}
        return cls(**{**known, "answers": tuple(row["answers"])})


def masked(item: Item) -> Item:
    """The item with digests for its texts, which are other people's: enough to tell items apart, and to find them."""
    return replace(
        item, fact=_digest(item.fact), prompt=_digest(item.prompt), answers=tuple(map(_digest, item.answers))
    )


def unmasked(items: Sequence[Item], candidates: Sequence[Item]) -> list[Item]:
    """The items with their texts, which are looked up among those of the candidates.

    Raises:
        InputError: one is not there.
    """
    known = {(item.part, item.split, _digest(item.fact), item.phrasing): item for item in candidates}
    found = []
    for item in items:
        of = known.get((item.part, item.split, item.fact, item.phrasing))
        texts = {} if of is None else {_digest(answer): answer for answer in of.answers}
        if of is None or not texts.keys() >= set(item.answers):
            raise InputError(
                f"a question of the sweep ({item.part}, {item.fact}) is not in the prepared files: were "
                "they made again from other data?"
            )
        found.append(replace(item, fact=of.fact, prompt=of.prompt, answers=tuple(texts[a] for a in item.answers)))
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Exam:
    """The questions, tokenized once; the guards.

    Args:
        items: the questions of an exam that was settled before, masked; None for all that the prepared files allow for.
    """

    def __init__(self, prepared: Path, tokenizer: PreTrainedTokenizerBase, items: list[Item] | None = None) -> None:
        self.tokenizer = tokenizer
        candidates = _candidates(prepared)
        self._ask_about(candidates if items is None else unmasked(items, candidates))
        pieces = encode_text(read_corpus(prepared / "wikitext.txt"), tokenizer, TEXT_LENGTH)
        whole = [piece for piece in pieces if len(piece["input_ids"]) == TEXT_LENGTH]
        self.texts = _spread(whole or pieces, TEXTS)
        few = max(1, len(self.texts) // 4)
        self.text_splits = ["dev"] * few + ["test"] * (len(self.texts) - few)
        clozes = _spread(read_probes(prepared / "new_entities.test.jsonl"), CLOZES)
        self.clozes = encode(clozes, tokenizer, TEXT_LENGTH)

    def _ask_about(self, items: list[Item]) -> None:
        self.items = items
        self.trees = plant([Question(item.prompt, item.answers) for item in items], self.tokenizer)

    def ask(self, model: PreTrainedModel, chosen: Sequence[int]) -> list[list[float]]:
        """NLL in nats of every answer to the questions at these places, summed over its tokens, the right one first."""
        return [nll.tolist() for nll in answer_losses(model, [self.trees[i] for i in chosen])]

    def settle(self, losses: Sequence[list[float]]) -> list[list[float]]:
        """Leave the facts to keep that are known, and of many wrong answers those that come nearest to the right one.

        Known are those ranked first under both phrasings; as many stay as KEPT allows of each part and split.

        Args:
            losses: the start's, on all questions.

        Returns:
            The start's losses on the questions that are left.
        """
        known: dict[str, bool] = {}
        for item, nll in zip(self.items, losses, strict=True):
            known[item.fact] = known.get(item.fact, True) and min(nll[1:]) > nll[0]
        kept: set[str] = set()
        for (part, split), most in KEPT.items():
            facts = dict.fromkeys(i.fact for i in self.items if (i.part, i.split) == (part, split) and known[i.fact])
            kept.update(_spread(list(facts), most))
        items, left = [], []
        for item, nll in zip(self.items, losses, strict=True):
            if item.nearest or (item.part not in SPLITS and item.fact in kept):
                nearest = [0, *sorted(range(1, len(nll)), key=lambda n: nll[n])[:WRONG]]
                items.append(replace(item, answers=tuple(item.answers[n] for n in nearest), nearest=False))
                left.append([nll[n] for n in nearest])
            elif item.part in SPLITS:
                items.append(item)
                left.append(nll)
        self._ask_about(items)
        return left

    def places(self, part: str) -> list[int]:
        """Where the questions of a part stand: "A", "B", "near", "far".

        "not A" and "not B" are the other half, one phrasing a fact, which is enough for a control.
        """
        half = part.removeprefix("not ")
        if half != part:
            return [i for i, item in enumerate(self.items) if item.part in SPLITS.keys() - {half} and not item.phrasing]
        return [i for i, item in enumerate(self.items) if item.part == part]

    def read(self, model: PreTrainedModel) -> list[float]:
        """NLL a token of every piece of WikiText."""
        losses = span_losses(model, self.texts, batch_size=16)
        return (losses.nll / losses.tokens).tolist()

    def entities(self, model: PreTrainedModel) -> float:
        """NLL a token on the masked spans of sentences on new entities."""
        losses = span_losses(model, self.clozes, batch_size=16)
        return losses.nll.sum().item() / int(losses.tokens.sum())

    def decode(self, model: PreTrainedModel, chosen: Sequence[int]) -> dict[str, list[float]]:
        """Greedy answers to the first phrasing of each of these questions: exact match and word F1, one by one."""
        first = [i for i in chosen if self.items[i].phrasing == 0]
        asked = [self.items[i] for i in first]
        longest = max(self.trees[i].tokens[0] for i in first)
        self.tokenizer.padding_side = "left"
        inputs = self.tokenizer([item.prompt for item in asked], return_tensors="pt", padding=True)
        with torch.inference_mode():
            written = model.generate(
                **inputs,
                max_new_tokens=max(DECODED, longest),
                do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        texts = self.tokenizer.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        scores = [match(text, item.answers[0]) for text, item in zip(texts, asked, strict=True)]
        return {name: [round(score[i], 3) for score in scores] for i, name in enumerate(("exact", "f1"))}


def _candidates(prepared: Path) -> list[Item]:
    items = []
    for half, split in SPLITS.items():
        items += _taught(half, [row for _, row in json_lines(prepared / f"updated.{split}.jsonl")])
    for split in ("dev", "test"):
        for _, row in json_lines(prepared / f"retained.{split}.jsonl"):
            part, answers = "near" if row["near"] else "far", (row["answer"], *row["distractors"])
            items.append(Item(part, split, row["fact"], str(row["group"]), row["phrasing"], row["prompt"], answers))
    return items


def _taught(half: str, rows: Sequence[Row]) -> list[Item]:
    items = []
    count: Counter[str] = Counter()
    for row in rows:
        if count[row["fact"]] < PHRASINGS:
            nearest, kind = row.get("nearest", False), row["kind"] if "nearest" in row else ""
            wrong = row["distractors"] if nearest else row["distractors"][:WRONG]
            answers = (row["answer"], *wrong, *([row["old"]] if row["old"] else []))
            about = half, half, row["fact"], f"{half}{row['group']}", count[row["fact"]]
            items.append(Item(*about, row["prompt"], answers, bool(row["old"]), kind, nearest))
            count[row["fact"]] += 1
    return items


def _spread(items: list[Any], most: int) -> list[Any]:
    """At most so many, from everywhere in the list."""
    return items if len(items) <= most else [items[i * len(items) // most] for i in range(most)]


def match(text: str, answer: str) -> tuple[float, float]:
    """Whether the text begins with the answer; F1 of the answer's words and as many words of the text."""
    wanted = answer.casefold().split()
    found = [word.strip(".,;:!?()\"'") for word in text.casefold().split()][: len(wanted)]
    exact = text.strip().casefold().startswith(answer.casefold())
    common = sum(min(found.count(word), wanted.count(word)) for word in set(found))
    return float(exact), 2 * common / (len(found) + len(wanted)) if found else 0.0
