"""A corpus alone -> the layers to train and what to score, where the user gives neither trace nor reference.

What the model should keep is then what it writes itself: one set of its samples is compared with the corpus to choose
the layers, another one, of another seed, is what forgetting is measured on. Both are made once, by the untouched model,
and kept in the run's folder, so that a run that goes on has the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from localopt.errors import InputError, writing
from localopt.pretraining.evaluate import positions
from localopt.pretraining.probes import Example
from localopt.pretraining.processes import processes, say
from localopt.pretraining.scoring import REFERENCE, ScoredSet
from localopt.pretraining.settings import Settings
from localopt.pretraining.textfiles import evenly, json_lines, write_whole
from localopt.tracing.layer_trace import LayerTrace
from localopt.tracing.samples import Samples, first_token, readable, sample
from localopt.tracing.trace import trace_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CORPUS = "corpus"
TRACE = "trace.safetensors"
OWN_TEXT = "own-text.jsonl"
TRACED = 64  # pieces of the corpus, and of the reference, that choose the layers
SCORED = 32  # sequences of the corpus that are scored where there are no probes


def own_samples(model: PreTrainedModel, settings: Settings) -> Samples:
    """How the model writes the text that layers are chosen against; what is scored is ``.held_out()`` of it.

    Raises:
        InputError: the model cannot write, or knows no token to begin with.
    """
    longest = positions(model)
    usual = Samples(seed=2 * settings.seed)  # the next seed is the held-out one's
    samples = usual if longest is None else Samples(seed=usual.seed, length=max(1, min(usual.length, longest - 1)))
    try:
        first_token(model, samples)
    except InputError as error:
        raise InputError(f"{error}; on the command line: --reference FILE.") from None
    return samples


def scored_sets(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sequences: Sequence[Example],
    sets: Sequence[ScoredSet],
    settings: Settings,
    out: Path,
    *,
    halve: bool,
    progress: bool,
) -> list[ScoredSet]:
    """Return what to score: the sets given, completed by the corpus and the model's own text where they are missing.

    With ``halve``, every other piece of the reference given is left for choosing layers against it.
    """
    found = [one for one in sets if one.name != REFERENCE] or [
        ScoredSet(CORPUS, tuple(evenly(list(sequences), SCORED)))
    ]
    given = next((one for one in sets if one.name == REFERENCE), None)
    if given is None:
        samples = own_samples(model, settings).held_out()
        return [*found, ScoredSet(REFERENCE, tuple(_own_text(model, tokenizer, samples, out / OWN_TEXT, progress)))]
    return [*found, _halves(given, model, tokenizer)[1] if halve else given]


def trace_corpus(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sequences: Sequence[Example],
    sets: Sequence[ScoredSet],
    settings: Settings,
    out: Path,
    *,
    progress: bool,
) -> LayerTrace:
    """Return the trace by gains of the corpus against the reference given or the model's own samples; made once."""
    path = out / TRACE
    with processes().main_process_first():  # the others read what it wrote
        if not path.exists():
            given = next((one for one in sets if one.name == REFERENCE), None)
            against: Samples | list[Example] = own_samples(model, settings)
            if given is not None:
                against = evenly(_halves(given, model, tokenizer)[0], TRACED)
            pieces = evenly(_whole(sequences), TRACED)
            if progress:
                what = "what the model writes itself" if given is None else "the reference"
                say(f"choosing layers: what {len(pieces)} pieces of the corpus gain, over what it costs {what}")
            made = trace_layers(model, pieces, against, score="gains", progress=progress)
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                made.save(path)
    return LayerTrace.load(path)


def _whole(sequences: Sequence[Example]) -> list[Example]:
    """Leave out a last piece of less than half the length: each counts alike in a trace."""
    longest = len(sequences[0]["input_ids"])
    return [sequence for sequence in sequences if 2 * len(sequence["input_ids"]) >= longest]


def _halves(
    given: ScoredSet, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Example], ScoredSet]:
    """Every other piece to choose layers against, the others to score; a single piece has to serve for both."""
    pieces = given.examples(model, tokenizer)
    scored = given.part(model, tokenizer, 0, 2)
    return pieces[1::2] or pieces, scored


def _own_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, samples: Samples, path: Path, progress: bool
) -> list[Example]:
    """What the untouched model wrote, kept in a file that a person can read too."""
    with processes().main_process_first():
        if not path.exists():
            if progress:
                say("no --reference: forgetting is measured on text the model writes now, before it trains")
            written = sample(model, samples, progress=progress)
            lines = (
                json.dumps({"text": text, "input_ids": example["input_ids"].tolist()})
                for text, example in zip(readable(written, tokenizer), written, strict=True)
            )
            write_whole(path, "".join(line + "\n" for line in lines))
    rows = [torch.tensor(line["input_ids"]) for _, line in json_lines(path)]
    return [{"input_ids": row, "labels": row.clone()} for row in rows]


