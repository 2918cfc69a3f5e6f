"""Reliability, generality, portability and locality, as KnowEdit asks for (arXiv 2401.01286).

There one edit is tested at a time by what is written; here all facts of a half are taught at once, and an answer
counts where it is the likeliest of those offered. Two-step questions are EvolveBench's: who of two was the earlier one,
and who held the place so many years before or after somebody. Most ask for holders that were not taught.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from benchmarks.lifelong.exam.exam import Exam, Item
from benchmarks.lifelong.measures.asking import Choices, is_first
from benchmarks.lifelong.measures.definitions import Values
from benchmarks.lifelong.measures.source import Absent, Fact, Row, Source, by_fact, facts_of, holders, short
from localopt.pretraining.textfiles import evenly

REASONING = "evolve_reasoning_qa_20250210.json"
CUT = 240  # characters of a passage before its answer
PHRASINGS = 2  # of a fact
OTHERS = 4  # holders offered beside the right one

Asked = tuple[str, tuple[str, ...], str]  # a prompt, answers with the right one first, a group


class KnowEdit:
    """Ready to be asked of a model. `absent`: a file that was not there."""

    def __init__(self, source: Source, exam: Exam) -> None:
        facts = facts_of(source.prepared, source.half)
        asked = {"reliability": [_taught(fact) for fact in facts], "generality": _phrased(facts)}
        self.absent = ""
        try:
            asked |= portability(facts, by_fact(source.file(REASONING)))
        except Absent as error:
            self.absent = str(error)
        for name, part in (("locality near", "near"), ("locality far", "far")):
            items = [exam.items[place] for place in exam.places(part)]
            asked[name] = [(item.prompt, item.answers, item.group) for item in items if _asked_once(item)]
        self.asked = {name: evenly(some, source.most) for name, some in asked.items() if some}
        self.exam = exam
        self.choices = {
            name: Choices([(prompt, answers) for prompt, answers, _ in some], source.tokenizer)
            for name, some in self.asked.items()
        }

    def __call__(self, model: PreTrainedModel) -> dict[str, Values]:
        found = {
            name: Values([is_first(nll) for nll in self.choices[name](model)], [group for *_, group in some])
            for name, some in self.asked.items()
        }
        text = self.exam.read(model)
        return found | {"text": Values(text, [f"text{number}" for number in range(len(text))])}


def portability(facts: list[Fact], rows: dict[str, Row]) -> dict[str, list[Asked]]:
    """Questions of both kinds about the facts, and of these the ones whose answer is the one taught."""
    all_of_them: list[Asked] = []
    taught: list[Asked] = []
    for fact in facts:
        row = rows.get(fact.name)
        if row is None:
            continue
        right = short(row["ground_truth"], fact.name)
        others = [name for name in holders(row, fact.name) if name != right]
        for kind in ("ranking_qa", "accumulate_qa"):
            question = row[kind]["rephrased_1"]
            # The first kind names the two that are to be told apart; the other may mean any holder but the named one.
            named = [name for name in others if name in question]
            offered = named if kind == "ranking_qa" else [name for name in others if name not in named][:OTHERS]
            if offered:
                one = (as_question(question), (right, *offered), fact.group)
                all_of_them.append(one)
                if right == fact.answer:
                    taught.append(one)
    return {"portability": all_of_them, "portability taught": taught}


def _asked_once(item: Item) -> bool:
    return item.split == "test" and item.phrasing == 0


def as_question(text: str) -> str:
    return f"Question: {text}\nAnswer:"


def _taught(fact: Fact) -> Asked:
    """The passage as it was read, up to the answer."""
    before = fact.passage[: fact.passage.find(fact.answer)].rstrip()
    before = before if len(before) <= CUT else before[-CUT:].split(" ", 1)[1]
    # A passage may begin with its answer.
    return (before or fact.prompts[0], fact.offered, fact.group)


def _phrased(facts: list[Fact]) -> list[Asked]:
    return [(prompt, fact.offered, fact.group) for fact in facts for prompt in fact.prompts[:PHRASINGS]]
