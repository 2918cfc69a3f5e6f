"""Unchanged, updated and new facts, as EvolvingQA tells them apart (arXiv 2311.08106), and what was true before.

Updated facts had another answer; new ones had none (a few here). Unchanged ones are those the start ranks first among
ten answers. Questions about past intervals are EvolveBench's ("from 28 May 1992 to 15 May 1999, who was ...?").
"""

from __future__ import annotations

import re

from transformers import PreTrainedModel

from benchmarks.lifelong.exam.exam import DECODED, Exam, match
from benchmarks.lifelong.measures.asking import Choices, is_first, written
from benchmarks.lifelong.measures.definitions import Values
from benchmarks.lifelong.measures.knowedit import PHRASINGS, as_question
from benchmarks.lifelong.measures.source import Absent, Fact, Row, Source, by_fact, facts_of, holders, short
from localopt.pretraining.textfiles import evenly

INTERVALS = "evolve_temporal_interval_qa.json"
OTHERS = 3  # holders offered beside the right one and the one of today

Past = tuple[str, tuple[str, ...], str, str]  # a prompt, (then, now, others), a group, when


class Evolving:
    """Ready to be asked of a model. `absent`: a file that was not there."""

    def __init__(self, source: Source, exam: Exam) -> None:
        facts = facts_of(source.prepared, source.half)
        near = [exam.items[place] for place in exam.places("near")]
        unchanged = [item for item in near if item.split == "test" and item.phrasing == 0]
        asked = {
            "updated": [(fact.prompts[0], fact.answer, fact.group) for fact in facts if fact.old],
            "new": [(fact.prompts[0], fact.answer, fact.group) for fact in facts if not fact.old],
            "unchanged": [(item.prompt, item.answers[0], item.group) for item in unchanged],
        }
        self.asked = {name: evenly(some, source.most // 2) for name, some in asked.items() if some}
        self.tokenizer = source.tokenizer
        pairs = [(prompt, fact) for fact in facts if fact.old for prompt in fact.prompts[:PHRASINGS]]
        self.pairs = evenly(pairs, source.most)
        self.new_and_old = Choices(
            [(prompt, (fact.answer, fact.old or "")) for prompt, fact in self.pairs], self.tokenizer
        )
        self.past: list[Past] = []
        self.absent = ""
        try:
            self.past = evenly(past_intervals(facts, by_fact(source.file(INTERVALS))), source.most)
        except Absent as error:
            self.absent = str(error)
        self.then_and_now = Choices([(prompt, answers) for prompt, answers, *_ in self.past], self.tokenizer)

    def __call__(self, model: PreTrainedModel) -> dict[str, Values]:
        found: dict[str, Values] = {}
        for name, some in self.asked.items():
            texts = written(model, self.tokenizer, [prompt for prompt, *_ in some], DECODED)
            scores = [match(text, answer) for text, (_, answer, _) in zip(texts, some, strict=True)]
            groups = [group for *_, group in some]
            found[f"{name} exact"] = Values([exact for exact, _ in scores], groups)
            found[f"{name} F1"] = Values([f1 for _, f1 in scores], groups)
        if self.pairs:
            beaten = [is_first(nll) for nll in self.new_and_old(model)]
            found["new over old"] = Values(beaten, [fact.group for _, fact in self.pairs])
        return found | self._past(model)

    def _past(self, model: PreTrainedModel) -> dict[str, Values]:
        if not self.past:
            return {}
        losses = self.then_and_now(model)
        groups = [group for *_, group, _ in self.past]
        kept = [is_first(nll[:2]) for nll in losses]
        found = {"past": Values(kept, groups), "past first": Values([is_first(nll) for nll in losses], groups)}
        for name in dict.fromkeys(when for *_, when in self.past):
            some = [number for number, (*_, when) in enumerate(self.past) if when == name]
            found[f"past {name}"] = Values([kept[n] for n in some], [groups[n] for n in some])
        return found


def past_intervals(facts: list[Fact], rows: dict[str, Row]) -> list[Past]:
    """A question a fact: who held its place in an interval that is over."""
    found = []
    for fact in facts:
        row = rows.get(fact.name)
        then = short(row["ground_truth"], fact.name) if row else fact.answer
        if row is None or then == fact.answer:
            continue
        question = row["questions"]["rephrased_3"]
        year = int(re.findall(r"\b\d{4}\b", question)[-1])
        when = "until 1999" if year < 2000 else "2000-2014" if year < 2015 else "since 2015"
        others = [name for name in holders(row, fact.name) if name not in (then, fact.answer)][-OTHERS:]
        found.append((as_question(question), (then, fact.answer, *others), fact.group, when))
    return found
