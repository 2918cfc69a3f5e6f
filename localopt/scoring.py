"""Named sets of probes and text -> one table of scores, for the command line and after every epoch of training."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from torch import nn

from localopt.errors import InputError
from localopt.evaluate import Score, evaluate, evaluate_text
from localopt.probes import Probe, read_corpus, read_probes
from localopt.textfiles import is_json_lines, json_lines

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REFERENCE = "reference"
_PROBE_FIELDS = {"prompt", "answer", "spans", "probe_sentences", "masked_sentence"}


@dataclass(frozen=True)
class ScoredSet:
    """A named set to score a model on: probes (loss on their spans) or ordinary text (loss on every token)."""

    name: str
    content: tuple[Probe, ...] | tuple[str, ...]

    def score(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 8, progress: bool = False
    ) -> Score:
        """Score the model on this set; see :mod:`localopt.evaluate`."""
        probes = [item for item in self.content if isinstance(item, Probe)]
        if probes:
            return evaluate(model, tokenizer, probes, batch_size=batch_size, progress=progress)
        texts = [item for item in self.content if isinstance(item, str)]
        return evaluate_text(model, tokenizer, texts, batch_size=batch_size, progress=progress)


def holds_probes(path: str | Path) -> bool:
    """Say whether a file holds probes, not ordinary text, by the fields of its first line."""
    if not is_json_lines(path):
        return False
    _, first = next(iter(json_lines(path)))
    return bool(first.keys() & _PROBE_FIELDS)


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
        name, _, path = given.rpartition("=")
        sets.append(ScoredSet(name or Path(path).name.split(".")[0], tuple(read_probes(path))))
    if reference is not None:
        content: Sequence[Probe] | Sequence[str]
        content = read_probes(reference) if holds_probes(reference) else read_corpus(reference)
        if not content:
            raise InputError(f"{reference}: is empty: give text or probes.")
        sets.append(ScoredSet(REFERENCE, tuple(content)))  # type: ignore[arg-type]
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
    table = Table(title=title or None)
    table.add_column("set")
    for column in ("NLL", "perplexity", "ranked first", "tokens", "examples"):
        table.add_column(column, justify="right")
    for name, score in scores.items():
        first = "" if score.ranked_first is None else f"{score.ranked_first:.1%}"
        values = f"{score.nll:.4f}", f"{score.perplexity:.2f}", first, str(score.tokens), str(score.examples)
        table.add_row(name, *values)
    return table


def scores_to_json(scores: Mapping[str, Score]) -> str:
    """Return the scores as JSON; a perplexity too large for a float is null."""

    def finite(value: object) -> object:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    plain = {name: {k: finite(v) for k, v in score.as_dict().items()} for name, score in scores.items()}
    return json.dumps(plain, indent=2)
