"""A model and probes -> what it writes where an answer is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table

from localopt.outside import shown
from localopt.pretraining.evaluate import positions
from localopt.pretraining.probes import Probe
from localopt.pretraining.scoring import ScoredSet
from localopt.pretraining.textfiles import evenly

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LEAST = 12  # tokens that are written, or twice those of the answer


@dataclass(frozen=True)
class Written:
    """What was asked, what the model wrote by greedy decoding (to the end of the sentence), and what was wanted."""

    asked: str
    written: str
    wanted: str


def write_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sets: Sequence[ScoredSet], count: int
) -> dict[str, list[Written]]:
    """Let the model write the answers of ``count`` probes of every set, spaced evenly; sets of text are left out.

    A probe is asked by what stands before its first span.
    """
    found = {}
    for one in sets:
        asked = evenly([probe for probe in one.probes if probe.text[: probe.span[0][0]].strip()], count)
        if asked:
            found[one.name] = [_answer(model, tokenizer, probe) for probe in asked]
    return found


def _answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, probe: Probe) -> Written:
    start, end = probe.span[0]
    asked, wanted = probe.text[:start].rstrip(), probe.text[start:end]
    tokens = max(LEAST, 2 * len(tokenizer(wanted, add_special_tokens=False)["input_ids"]))
    return Written(asked, greedy(model, tokenizer, asked, tokens), wanted)


@torch.inference_mode()
def greedy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, tokens: int) -> str:
    """Return what the model writes after a prompt, up to the end of the sentence.

    Args:
        model: in eval mode.
        tokenizer: that of the model.
        prompt: its oldest part goes where it is too long for the model.
        tokens: at most so many are written.
    """
    read = tokenizer(prompt, return_tensors="pt")
    longest = positions(model)
    keep = read["input_ids"].shape[1] if longest is None else max(1, longest - tokens)
    ids, mask = (read[key][:, -keep:].to(model.device) for key in ("input_ids", "attention_mask"))
    writer: Any = model  # which transformers has no types for
    written = writer.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    return first_sentence(str(tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)))


def first_sentence(text: str) -> str:
    """The text as one line of what can be printed, up to its first full stop.

    >>> first_sentence(" a baker. She")
    'a baker.'
    """
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    end = line.find(". ") + 1
    return line[:end] if end else line


def written_table(name: str, answers: Sequence[Written]) -> Table:
    """Return one row a probe."""
    table = Table(title=shown(f"{name}: what the model writes"))
    for column in ("asked", "written", "wanted"):
        table.add_column(column, overflow="fold")
    for answer in answers:
        table.add_row(shown(answer.asked), shown(answer.written), shown(answer.wanted))
    return table


def as_records(answers: Sequence[Written]) -> list[dict[str, str]]:
    """Return the answers as JSON holds them."""
    return [asdict(answer) for answer in answers]
