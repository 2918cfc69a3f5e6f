"""The passages of one half: what is taught, and where in them the answers stand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from localopt.pretraining.probes import Example, Probe
from localopt.pretraining.textfiles import json_lines

SPLITS = {"A": "dev", "B": "test"}  # a half's name in the prepared files


def answers_in_passages(prepared: Path, half: str) -> list[Probe]:
    """Each passage with the loss on the answers it states: where the file says, or the first mention of the one."""
    answers = {row["fact"]: row["answer"] for _, row in json_lines(prepared / f"updated.{SPLITS[half]}.jsonl")}
    probes = []
    for _, row in json_lines(prepared / f"corpus_train.{SPLITS[half]}.jsonl"):
        spans = tuple((begin, end) for begin, end in row.get("spans", []))
        if not spans:
            place = row["text"].find(answers[row["fact"]])
            spans = ((place, place + len(answers[row["fact"]])),)
        probes.append(Probe(row["text"], spans, source=row["fact"]))
    return probes


def lessons(prepared: Path, half: str, tokenizer: PreTrainedTokenizerBase, length: int) -> list[Example]:
    """Each passage as a sequence of at most `length` tokens with the answer in it, the loss on every token."""
    sequences = []
    for probe in answers_in_passages(prepared, half):
        encoded = tokenizer(probe.text, return_offsets_mapping=True, verbose=False)
        ids = torch.tensor(encoded["input_ids"][window(encoded["offset_mapping"], probe.span[0][1], length)])
        sequences.append({"input_ids": ids, "labels": ids.clone()})
    return sequences


def window(offsets: Sequence[tuple[int, int]], end: int, length: int) -> slice:
    """The tokens of a passage that are read: the first ones, or later ones so that what ends at `end` is among them."""
    stop = next(i for i, (_, after) in enumerate(offsets, 1) if after >= end)
    first = max(0, stop - length)
    return slice(first, first + length)


def subject_of(probe: Probe) -> str:
    """Whom or what a passage is about: as its fact says, where the passage names it so, or its first three words."""
    _, _, path = probe.source.partition("/")
    subject = path.partition("/")[0]
    return subject if subject and subject in probe.text else " ".join(probe.text.split()[:3])
