"""Named sets of probes and text -> one table of scores, for the command line and after every epoch of training."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from torch import nn

from localopt.errors import InputError
from localopt.outside import shown
from localopt.pretraining.evaluate import Score, evaluate, evaluate_text
from localopt.pretraining.probes import Probe, holds_probes, read_corpus, read_probes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REFERENCE = "reference"


@dataclass(frozen=True)
class ScoredSet:
    """A named set to score a model on: probes (loss on their spans) or ordinary text (loss on every token)."""

    name: str
    content: tuple[Probe, ...] | tuple[str, ...]

    def score(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 8, progress: bool = False
    ) -> Score:
        """Score the model on this set; see :mod:`localopt.pretraining.evaluate`."""
        probes = [item for item in self.content if isinstance(item, Probe)]
        if probes:
            return evaluate(model, tokenizer, probes, batch_size=batch_size, progress=progress)
        texts = [item for item in self.content if isinstance(item, str)]
        return evaluate_text(model, tokenizer, texts, batch_size=batch_size, progress=progress)


def read_sets(probes: Sequence[str], reference: str | Path | None) -> list[ScoredSet]:
    """Read the sets named on a command line.

    Args:
        probes: ``NAME=FILE`` or ``FILE`` (then named after the file), each a probe file.
        reference: text or a probe file: what the model should keep.

    Raises:
        InputError: a file cannot be read, or two sets have one name.
    """
    sets: list[ScoredSet] = []
    for given in probes:
        name, separator, path = given.partition("=")
        if not separator or Path(given).is_file():  # a file's name may have an "=" of its own
            name, path = Path(given).name.split(".")[0], given
        sets.append(ScoredSet(name, tuple(read_probes(path))))
    if reference is not None:
        kept = tuple(read_probes(reference)) if holds_probes(reference) else tuple(read_corpus(reference))
        sets.append(ScoredSet(REFERENCE, kept))
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


def scores_to_json(scores: Mapping[str, Score]) -> str:
    """Return the scores as JSON."""
    return json.dumps(as_numbers(scores), indent=2, allow_nan=False)
