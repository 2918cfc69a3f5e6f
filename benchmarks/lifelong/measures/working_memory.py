"""Controllability and robustness of what a context says against what the weights know (arXiv 2211.05110).

A context that contradicts what was taught is to be followed, one about something else to be ignored.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from benchmarks.lifelong.data.passages import SPLITS
from benchmarks.lifelong.exam.exam import Exam
from benchmarks.lifelong.measures.asking import Choices, is_first, likeliest
from benchmarks.lifelong.measures.definitions import Values
from benchmarks.lifelong.measures.source import Source, contradiction, facts_of, statement
from localopt.pretraining.textfiles import evenly


class WorkingMemory:
    """Ready to be asked of a model."""

    absent = ""

    def __init__(self, source: Source, exam: Exam) -> None:
        facts = facts_of(source.prepared, source.half)
        followed = []
        for fact in facts:
            other, *rest = fact.wrong
            context = contradiction(fact, other)
            if context:
                offered = (other, fact.answer, *rest, *([fact.old] if fact.old and fact.old != other else []))
                followed.append((f"{context} {fact.prompts[0]}", offered, fact.group))
        followed = evenly(followed, source.most // 2)
        self.followed_groups = [group for *_, group in followed]
        self.followed = Choices([(prompt, answers) for prompt, answers, _ in followed], source.tokenizer)
        (elsewhere,) = SPLITS.keys() - {source.half}
        irrelevant = facts_of(source.prepared, elsewhere)
        near = [exam.items[place] for place in exam.places("near")]
        asked = evenly([(fact.prompts[0], fact.offered, fact.group) for fact in facts], source.most // 2)
        asked += evenly([(i.prompt, i.answers, i.group) for i in near if i.split == "test"], source.most // 2)
        bare, distracted = [], []
        for number, (prompt, answers, _) in enumerate(asked):
            about = irrelevant[number * 7 % len(irrelevant)]  # neighbours in a file are of one kind
            offered = tuple(dict.fromkeys((*answers, about.answer)))
            bare.append((prompt, offered))
            distracted.append((f"{statement(about)} {prompt}", offered))
        self.ignored_groups = [group for *_, group in asked]
        self.bare, self.distracted = Choices(bare, source.tokenizer), Choices(distracted, source.tokenizer)

    def __call__(self, model: PreTrainedModel) -> dict[str, Values]:
        pairs = zip(self.bare(model), self.distracted(model), strict=True)
        kept = [float(likeliest(without) == likeliest(after)) for without, after in pairs]
        found = {"robustness": Values(kept, self.ignored_groups)}
        if self.followed_groups:
            followed = [is_first(nll) for nll in self.followed(model)]
            found["controllability"] = Values(followed, self.followed_groups)
        return found
