"""What is written after a context: how much of it the context explains, and how much what the model would say anyway.

After "When Context Leads but Parametric Memory Follows" (arXiv 2409.08435), which takes long answers of large models
apart into statements. Answers here are a few words, so names are counted: words with a capital letter or a digit that
the question does not have. A context is three sentences; two are about facts that were not taught.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from benchmarks.lifelong.data.passages import SPLITS
from benchmarks.lifelong.exam.exam import DECODED, Exam
from benchmarks.lifelong.measures.asking import written
from benchmarks.lifelong.measures.definitions import Values
from benchmarks.lifelong.measures.source import Source, contradiction, facts_of, statement
from localopt.pretraining.textfiles import evenly

PLACES = ("first", "middle", "last")


class ContextAndMemory:
    """Ready to be asked of a model."""

    absent = ""

    def __init__(self, source: Source, exam: Exam) -> None:
        self.tokenizer = source.tokenizer
        (elsewhere,) = SPLITS.keys() - {source.half}
        others = [statement(fact) for fact in facts_of(source.prepared, elsewhere)]
        told = [(fact, contradiction(fact, fact.wrong[0])) for fact in facts_of(source.prepared, source.half)]
        asked = evenly([(fact, text) for fact, text in told if text], max(1, source.most * 3 // 10))
        self.facts = [fact for fact, _ in asked]
        self.prompts = [fact.prompts[0] for fact in self.facts]
        self.contexts: dict[str, list[str]] = {name: [] for name in ("consistent", *PLACES)}
        for number, (fact, text) in enumerate(asked):
            beside = [others[(number * 7 + step) % len(others)] for step in (0, 3)]
            self.contexts["consistent"].append(_joined(beside, statement(fact), 1))
            for place, name in enumerate(PLACES):
                self.contexts[name].append(_joined(beside, text or "", place))

    def __call__(self, model: PreTrainedModel) -> dict[str, Values]:
        alone = self._write(model, self.prompts)
        groups = [fact.group for fact in self.facts]
        found = {"memory, none": [share(names, fact.answer) for names, fact in zip(alone, self.facts, strict=True)]}
        by_place, remembered = [], []
        for name, contexts in self.contexts.items():
            prompts = [f"{context} {prompt}" for context, prompt in zip(contexts, self.prompts, strict=True)]
            texts = self._write(model, prompts)
            found[f"context, {name}"] = [share(names, text) for names, text in zip(texts, contexts, strict=True)]
            if name in PLACES:
                by_place.append(found[f"context, {name}"])
                remembered.append([explained(*each) for each in zip(texts, contexts, alone, strict=True)])
        found["context, contradicting"] = _means(by_place)
        found["memory, contradicting"] = _means(remembered)
        return {name: Values(values, groups) for name, values in found.items()}

    def _write(self, model: PreTrainedModel, prompts: Sequence[str]) -> list[list[str]]:
        texts = written(model, self.tokenizer, prompts, DECODED)
        return [names(text, prompt) for text, prompt in zip(texts, self.prompts, strict=True)]


def words(text: str) -> list[str]:
    found = [word.strip(".,;:!?()\"'").removesuffix("'s") for word in text.split()]
    return [word for word in found if word]


def names(text: str, question: str) -> list[str]:
    """Words with a capital letter or a digit in front, of the first line, that the question does not have."""
    line = text.strip().split("\n")[0]
    return [word for word in words(line) if (word[0].isupper() or word[0].isdigit()) and word not in words(question)]


def share(found: Sequence[str], text: str) -> float:
    """Share of names that the text has; 0 where no name was written.

    >>> share(["Ada", "Osk"], "Ada Reed leads Norland.")
    0.5
    """
    known = set(words(text))
    return sum(name in known for name in found) / len(found) if found else 0.0


def explained(found: Sequence[str], context: str, alone: Sequence[str]) -> float:
    """Share of names that are written without the context too, and that it does not have."""
    rest = set(alone) - set(words(context))
    return sum(name in rest for name in found) / len(found) if found else 0.0


def _joined(beside: Sequence[str], text: str, place: int) -> str:
    return " ".join([*beside[:place], text, *beside[place:]])


def _means(lists: Sequence[Sequence[float]]) -> list[float]:
    return [sum(values) / len(values) for values in zip(*lists, strict=True)]
