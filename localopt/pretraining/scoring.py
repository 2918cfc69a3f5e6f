"""Named sets of probes and text -> one table of scores, for the command line and after every epoch of training."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from torch import nn

from localopt.errors import InputError
from localopt.outside import shown
from localopt.pretraining.evaluate import Score, evaluate, evaluate_examples, positions
from localopt.pretraining.probes import (
    Example,
    Probe,
    encode,
    encode_text,
    holds_probes,
    read_corpus,
    read_probes,
)
from localopt.pretraining.textfiles import evenly

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REFERENCE = "reference"
LENGTH = 512  # tokens of a piece of text that is scored


@dataclass(frozen=True)
class ScoredSet:
    """A named set to score a model on: probes (loss on their spans), ordinary text, or examples (on every token).

    Attributes:
        name: what the tables call it.
        content: probes, documents, or what is encoded already.
        limit: score at most so many probes or pieces of text, spaced evenly.
        length: tokens of a piece of text, at most what the model reads at once.
    """

    name: str
    content: tuple[Probe, ...] | tuple[str, ...] | tuple[Example, ...]
    limit: int | None = None
    length: int = LENGTH

    @property
    def probes(self) -> list[Probe]:
        """The probes to score; empty for text."""
        return evenly([item for item in self.content if isinstance(item, Probe)], self.limit)

    def examples(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[Example]:
        """Everything to score, with its labels.

        Raises:
            InputError: what cannot be encoded; see :mod:`localopt.pretraining.probes`.
        """
        longest = positions(model)
        if self.probes:
            return encode(self.probes, tokenizer, longest)
        texts = [item for item in self.content if isinstance(item, str)]
        if texts:
            return evenly(encode_text(texts, tokenizer, min(self.length, longest or self.length)), self.limit)
        return evenly([item for item in self.content if isinstance(item, dict)], self.limit)

    def encoded(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> tuple[ScoredSet, int]:
        """Return the same set with its text encoded once, and how many probes or pieces there are without the limit."""
        whole = replace(self, limit=None)
        if whole.probes:
            return self, len(whole.probes)
        pieces = whole.examples(model, tokenizer)
        return ScoredSet(self.name, tuple(evenly(pieces, self.limit))), len(pieces)

    def part(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, first: int, every: int) -> ScoredSet:
        """The same set with only every so many of its probes or pieces, from the first one named on."""
        if self.probes:
            return ScoredSet(self.name, tuple(self.probes[first::every]))
        return ScoredSet(self.name, tuple(self.examples(model, tokenizer)[first::every]))

    def score(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 8, progress: bool = False
    ) -> Score:
        """Score the model on this set; see :mod:`localopt.pretraining.evaluate`."""
        if self.probes:
            return evaluate(model, tokenizer, self.probes, batch_size=batch_size, progress=progress)
        return evaluate_examples(model, self.examples(model, tokenizer), batch_size=batch_size, progress=progress)


def read_sets(
    probes: Sequence[str], reference: str | Path | None, *, limit: int | None = None, length: int = LENGTH
) -> list[ScoredSet]:
    """Read the sets named on a command line.

    Args:
        probes: ``NAME=FILE`` or ``FILE`` (then named after the file), each a probe file.
        reference: text or a probe file: what the model should keep.
        limit, length: see :class:`ScoredSet`.

    Raises:
        InputError: a file cannot be read, or two sets have one name.
    """
    sets: list[ScoredSet] = []
    for given in probes:
        name, separator, path = given.partition("=")
        if not separator or Path(given).is_file():  # a file's name may have an "=" of its own
            name, path = Path(given).name.split(".")[0], given
        sets.append(ScoredSet(name, tuple(read_probes(path)), limit))
    if reference is not None:
        kept = tuple(read_probes(reference)) if holds_probes(reference) else tuple(read_corpus(reference))
        sets.append(ScoredSet(REFERENCE, kept, limit, length))
    names = [one.name for one in sets]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"several sets are named {', '.join(twice)}: name them apart, --probe NAME=FILE.")
    return sets


def score_sets(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    sets: Sequence[ScoredSet],
    *,
    batch_size: int = 8,
    progress: bool = False,
) -> dict[str, Score]:
    """Score a model on every set, by name."""
    return {one.name: one.score(model, tokenizer, batch_size=batch_size, progress=progress) for one in sets}


def score_table(scores: Mapping[str, Score], title: str = "") -> Table:
    """Return one row a set: loss, perplexity, share of answers ranked first, size."""
    table = Table(title=shown(title) if title else None)
    table.add_column("set")
    for column in ("NLL", "perplexity", "ranked first", "tokens", "examples"):
        table.add_column(column, justify="right")
    for name, score in scores.items():
        first = "" if score.ranked_first is None else f"{score.ranked_first:.1%}"
        values = f"{score.nll:.4f}", f"{score.perplexity:.2f}", first, str(score.tokens), str(score.examples)
        table.add_row(shown(name), *values)
    return table


def as_numbers(scores: Mapping[str, Score]) -> dict[str, dict[str, Any]]:
    """Return the scores as JSON can hold them: None for what is not finite, as the NLL of a model that diverged."""

    def finite(value: object) -> object:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {name: {key: finite(value) for key, value in score.as_dict().items()} for name, score in scores.items()}


def scores_to_json(scores: Mapping[str, Score], written: Mapping[str, Any] | None = None) -> str:
    """Return the scores as JSON, each with what was ``written`` for its set where there is that."""
    numbers = as_numbers(scores)
    for name, answers in (written or {}).items():
        numbers[name]["written"] = answers
    return json.dumps(numbers, indent=2, allow_nan=False)
