"""A corpus alone -> the layers to train and what to score, where the user gives neither trace nor reference.

What the model should keep is then what it writes itself: one set of its samples is compared with the corpus to choose
the layers, another one, of another seed, is what forgetting is measured on. Both are made once, by the untouched model,
and kept in the run's folder, so that a run that goes on has the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
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


def own_samples(model: PreTrainedModel, seed: int = 0) -> Samples:
    """How the model writes the text that layers are chosen against; what is scored is ``.held_out()`` of it.

    Raises:
        InputError: the model cannot write, or knows no token to begin with.
    """
    longest = positions(model)
    usual = Samples(seed=2 * seed)  # the next seed is the held-out one's
    samples = usual if longest is None else Samples(seed=usual.seed, length=max(1, min(usual.length, longest - 1)))
    try:
        first_token(model, samples)
    except InputError as error:
        raise InputError(f"{error}; on the command line: --reference FILE.") from None
    return samples


def whole(sequences: Sequence[Example]) -> list[Example]:
    """Leave out a last piece of less than half the length of the first: each counts alike in a trace."""
    longest = len(sequences[0]["input_ids"]) if sequences else 0
    return [sequence for sequence in sequences if 2 * len(sequence["input_ids"]) >= longest]


def scored_part(one: ScoredSet, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> ScoredSet:
    """Leave every other piece of a reference to choose layers against; by any method, so that runs can be compared."""
    return one.part(model, tokenizer, 0, 2) if one.name == REFERENCE else one


@dataclass(frozen=True)
class Material:
    """What a run is given, and what it makes of that: ``sets()`` to score, and the ``trace()`` that chooses layers.

    Attributes:
        model: untouched by training.
        tokenizer: that of the model.
        sequences: the corpus.
        given: the sets the user named; the one called "reference" is what the model should keep.
        settings: of the run.
        out: its folder, where what is made is kept.
        progress: say on standard error what is done.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sequences: Sequence[Example]
    given: Sequence[ScoredSet]
    settings: Settings
    out: Path
    progress: bool

    def sets(self) -> list[ScoredSet]:
        """Return the sets given, completed by the corpus and the model's own text where there is none to score."""
        corpus = ScoredSet(CORPUS, tuple(evenly(list(self.sequences), SCORED)))
        learned = [one for one in self.given if one.name != REFERENCE] or [corpus]
        reference = self._reference()
        if reference is None:
            return [*learned, ScoredSet(REFERENCE, tuple(self._own_text()))]
        return [*learned, scored_part(reference, self.model, self.tokenizer)]

    def trace(self) -> LayerTrace:
        """Return the trace by gains of the corpus against the reference given or the model's own samples; made once."""
        path = self.out / TRACE
        with processes().main_process_first():  # the others read what it wrote
            if not path.exists():
                pieces = evenly(whole(self.sequences), TRACED)
                against, what = self._against()
                if self.progress:
                    say(f"choosing layers: what {len(pieces)} pieces of the corpus gain, over what it costs {what}")
                made = trace_layers(self.model, pieces, against, score="gains", progress=self.progress)
                with writing(path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    made.save(path)
        return LayerTrace.load(path)

    def _reference(self) -> ScoredSet | None:
        return next((one for one in self.given if one.name == REFERENCE), None)

    def _against(self) -> tuple[Samples | list[Example], str]:
        reference = self._reference()
        if reference is None:
            return own_samples(self.model, self.settings.seed), "text the model writes itself"
        pieces = reference.examples(self.model, self.tokenizer)
        # The other pieces are scored; a single one has to serve for both.
        return evenly(pieces[1::2] or pieces, TRACED), "every other piece of the reference (the rest is scored)"

    def _own_text(self) -> list[Example]:
        """What the untouched model wrote, kept in a file that a person can read too."""
        path = self.out / OWN_TEXT
        with processes().main_process_first():
            if not path.exists():
                samples = own_samples(self.model, self.settings.seed).held_out()
                if self.progress:
                    say("no --reference: forgetting is measured on text the model writes now, before it trains")
                written = sample(self.model, samples, progress=self.progress)
                lines = (
                    json.dumps({"text": text, "input_ids": example["input_ids"].tolist()})
                    for text, example in zip(readable(written, self.tokenizer), written, strict=True)
                )
                write_whole(path, "".join(line + "\n" for line in lines))
        rows = [torch.tensor(line["input_ids"]) for _, line in json_lines(path)]
        return [{"input_ids": row, "labels": row.clone()} for row in rows]
