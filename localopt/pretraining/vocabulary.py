"""A tokenizer's numbers and a model's embedding have to fit: a number without a row would end deep inside the model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from localopt.errors import InputError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from localopt.pretraining.probes import Example

_REMEDY = "use the model's own tokenizer, or model.resize_token_embeddings(len(tokenizer)) and save it again."


def check_vocabulary(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise InputError if text would be cut into tokens the model has no embedding for.

    Special tokens may lie beyond: some tokenizers have more than their model ever reads.
    """
    rows = _rows(model)
    added = set(tokenizer.get_added_vocab().values())
    largest = max((number for number in tokenizer.get_vocab().values() if number not in added), default=-1)
    if rows is not None and largest >= rows:
        raise InputError(
            f"{name}: the tokenizer's tokens go up to {largest}, but the model's embedding has {rows} rows: {_REMEDY}"
        )


def refuse_beyond(examples: Iterable[Example], model: nn.Module) -> None:
    """Raise InputError if a token of the examples has no row in the model's embedding."""
    rows = _rows(model)
    largest = max((int(example["input_ids"].max()) for example in examples), default=-1)
    if rows is not None and largest >= rows:
        raise InputError(
            f"the text has a token with number {largest}, but the model's embedding has {rows} rows: {_REMEDY}"
        )


def _rows(model: nn.Module) -> int | None:
    """How many tokens a model of transformers can read; None for another module."""
    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    return cast(Any, embedding).num_embeddings if hasattr(embedding, "num_embeddings") else None
