"""The checkpoint every method starts from: the model, adapted to plain text and to passages of the corpus's style.

Weights that were stored in 4 bits or tuned to chat improve on anything at first, and passages of one style teach that
style: both would look like learning. The passages read here state facts that are never asked for.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.lifelong.training import Settings, fit, grouped, texts
from localopt.layers import partition
from localopt.pretraining.probes import encode_text, read_corpus
from localopt.pretraining.textfiles import json_lines

RATE = 1e-4
SEQUENCES = 192  # of plain text
READINGS = 2  # of each passage
LENGTH = 64  # tokens, at most, so that data sets whose passages differ in length have one start

Weights = dict[str, Tensor]


def model_of(prepared: Path) -> str:
    """The folder of the prepared model: in the prepared folder, or in the one around it, which two data sets share."""
    return str(next((f / "model" for f in (prepared, prepared.parent) if (f / "model").is_dir()), prepared / "model"))


def start_weights(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prepared: Path,
    file: Path,
    settings: Settings,
    seed: int = 0,
) -> tuple[Weights, str]:
    """The start's weights by parameter name, and their fingerprint: read from `file`, or trained and written there.

    Another seed reads other ordinary text, and everything in another order: another start, so that no finding hangs on
    one.

    The same files, settings, machine and number of threads give the same weights to the bit; another machine gives
    others that differ by rounding.
    """
    if not file.is_file():
        passages = [row for _, row in json_lines(prepared / "corpus_style.jsonl")]
        length = min(settings.length, LENGTH)
        sequences = plain_text(tokenizer, prepared, length)[seed * SEQUENCES :][:SEQUENCES]
        sequences += texts(passages, tokenizer, length) * READINGS
        random.Random(seed).shuffle(sequences)
        fit(model, [sequences], AdamW(grouped(list(model.parameters())), lr=RATE, fused=True), settings, seed=seed)
        partial = file.with_suffix(".partial")
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: parameter.detach() for name, parameter in model.named_parameters()}, partial)
        partial.rename(file)
    weights = load_file(file)
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(weights[name].numpy().tobytes())
    return weights, digest.hexdigest()[:16]


def plain_text(tokenizer: PreTrainedTokenizerBase, prepared: Path, length: int) -> list[dict[str, Tensor]]:
    """Ordinary text in chunks; the start reads the first, traces and replay take the last."""
    return encode_text(read_corpus(prepared / "text.txt"), tokenizer, length)


@torch.no_grad()
def place(
    model: nn.Module, start: Weights, end: Weights | None = None, share: float | Mapping[str, float] = 0.0
) -> None:
    """Set the model to start + share * (end - start), with one share or one a layer."""
    layer_of = partition((name for name, _ in model.named_parameters()), "sublayer")
    for name, parameter in model.named_parameters():
        part = share[layer_of[name]] if isinstance(share, Mapping) else share
        parameter.copy_(start[name] if end is None else torch.lerp(start[name], end[name], part))
