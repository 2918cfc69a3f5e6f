"""Probe and corpus files -> token ids, with labels on the spans that carry knowledge.

A *probe* is a text and the character ranges (spans) on which the loss is taken: the answer after a prompt, the gold
span of a masked sentence. Everything outside the spans is context and gets the label -100. All files are read as
UTF-8 text and never unpickled; whatever is wrong with one is an `InputError` that names the file and the line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from localopt.errors import InputError
from localopt.pretraining.probe_lines import Probe, completion, probes_of_line
from localopt.pretraining.textfiles import is_json_lines, json_lines, read_text, string

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "IGNORED",
    "Example",
    "Probe",
    "completion",
    "encode",
    "encode_text",
    "holds_probes",
    "read_corpus",
    "read_probes",
    "read_reference",
]

Example = dict[str, Tensor]
IGNORED = -100


def read_probes(path: str | Path) -> list[Probe]:
    """Read a probe file: JSON lines, each in one of these forms (other fields are kept in ``Probe.extra``).

    - ``{"prompt": ..., "answer": ...}``: loss on the answer;
    - ``{"text": ..., "spans": [[start, end], ...]}``: loss on these character ranges;
    - Entity Cloze By Date: ``masked_sentence`` and ``answer_str``, or ``probe_sentences`` with a ``probe_sentence`` and
      a ``label`` each (one probe a sentence); loss on what ``<extra_id_0>`` hides. The entity's definition stays in
      ``extra``: it is what to learn, not part of the question.

    Args:
        path: of the file, UTF-8.

    Returns:
        The probes, in the order of the file.

    Raises:
        InputError: no such file, not UTF-8, empty, a bad line, a missing or ill-typed field, a span outside the text.

    Examples:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "probes.jsonl"
        >>> _ = file.write_text('{"prompt": "The capital of France is", "answer": "Paris", "group": 3}')
        >>> probe, = read_probes(file)
        >>> probe.text, probe.extra
        ('The capital of France is Paris', {'group': 3})

    References:
        Onoe et al. 2022, NAACL Findings, arXiv 2205.02832: Entity Cloze By Date.
    """
    return [probe for source, line in json_lines(path) for probe in probes_of_line(line, source)]


def read_corpus(path: str | Path) -> list[str]:
    """Read the documents of a corpus: JSON lines with ``text``, or plain text.

    Plain text is split at blank lines; where it has WikiText's article headings (`` = Title = ``), at those instead.

    Args:
        path: of the file, UTF-8.

    Returns:
        The documents, in the order of the file.

    Raises:
        InputError: as :func:`read_probes`.

    Examples:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "corpus.txt"
        >>> _ = file.write_text("Paris is large.\\n\\nSo is Lyon.")
        >>> read_corpus(file)
        ['Paris is large.', 'So is Lyon.']
    """
    if is_json_lines(path):
        return [string(line, "text", source) for source, line in json_lines(path)]
    text = read_text(path)
    article = r"(?m)^(?= ?= [^=\n]+ = ?$)"
    pieces = re.split(article if re.search(article, text) else r"\n[ \t]*\n", text)
    return [piece.strip() for piece in pieces if piece.strip()]


def holds_probes(path: str | Path) -> bool:
    """Say whether a file holds probes or ordinary text, by the fields of its first line."""
    if not is_json_lines(path):
        return False
    _, first = next(json_lines(path))
    return bool(first.keys() & {"prompt", "answer", "spans", "probe_sentences", "masked_sentence"})


def read_reference(path: str | Path, tokenizer: PreTrainedTokenizerBase, length: int) -> list[Example]:
    """Read ordinary text (loss on every token) or a probe file of facts to keep (loss on the spans), by its content.

    Args:
        path: of the file, UTF-8.
        tokenizer: the model's.
        length: the number of tokens of a packed chunk of text, and the most tokens a probe may have.

    Returns:
        As :func:`encode`, or as :func:`encode_text`.

    Raises:
        InputError: what :func:`read_probes`, :func:`encode` or :func:`encode_text` refuse.

    Examples:
        >>> import tempfile
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> words = Tokenizer(models.WordLevel({"Paris": 0, "is": 1, "large": 2}, unk_token="is"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> file = Path(tempfile.mkdtemp()) / "keep.txt"
        >>> _ = file.write_text("Paris is large")
        >>> read_reference(file, PreTrainedTokenizerFast(tokenizer_object=words), length=8)[0]["labels"]
        tensor([0, 1, 2])
    """
    if holds_probes(path):
        return encode(read_probes(path), tokenizer, length)
    return encode_text(read_corpus(path), tokenizer, length)


def encode(probes: Sequence[Probe], tokenizer: PreTrainedTokenizerBase, max_length: int | None = None) -> list[Example]:
    """Tokenize probes, with labels on the spans alone.

    The text is tokenized as a whole, as a model would read it, and a token is labeled when its characters overlap a
    span; so an answer's first token carries the space before it where the tokenizer writes it that way. A text longer
    than ``max_length`` loses first what follows its last labeled token (which no causal model sees), then the oldest
    context; special tokens at the front stay. The first token of a text is never labeled: nothing predicts it.

    The character offsets this needs come from fast tokenizers alone, so a slow (pure Python) one is refused.

    Args:
        probes: what to ask.
        tokenizer: the model's, a fast one.
        max_length: the most tokens of a text; None for all.

    Returns:
        One ``{"input_ids": (T,), "labels": (T,)}`` a probe, int64, labels -100 off the spans.

    Raises:
        InputError: a slow tokenizer, a span without a token to predict, a span that does not fit in ``max_length``.

    Examples:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> words = Tokenizer(models.WordLevel({"Paris": 0, "is": 1, "large": 2}, unk_token="is"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> encode([completion("Paris is", "large")], PreTrainedTokenizerFast(tokenizer_object=words))
        [{'input_ids': tensor([0, 1, 2]), 'labels': tensor([-100, -100,    2])}]
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"{type(tokenizer).__name__} does not say which characters a token stands for, so labels cannot be placed: "
            "use the fast version of this tokenizer (one with a tokenizer.json)."
        )
    return [_encode_one(probe, tokenizer, max_length) for probe in probes]


def encode_text(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int) -> list[Example]:
    """Pack documents into chunks with the loss on every token.

    Each document is written as the tokenizer writes it and followed by the end-of-sequence token.

    Args:
        texts: the documents.
        tokenizer: the model's.
        length: tokens of a chunk, at least 2. The last one may be shorter (at least 2 tokens too).

    Returns:
        One ``{"input_ids": (T,), "labels": (T,)}`` a chunk, int64.

    Raises:
        InputError: a length below 2, a text of which nothing can be predicted.

    Examples:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> words = Tokenizer(models.WordLevel({"Paris": 0, "is": 1, "large": 2}, unk_token="is"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> chunks = encode_text(["Paris is", "is large"], PreTrainedTokenizerFast(tokenizer_object=words), length=2)
        >>> [chunk["input_ids"].tolist() for chunk in chunks]
        [[0, 1], [1, 2]]
    """
    if length < 2:
        raise InputError(f"length is {length}: a chunk needs at least 2 tokens, one to read and one to predict.")
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    documents = _tokenized(tokenizer, list(texts), "the text")["input_ids"] if texts else []
    special = set(tokenizer.all_special_ids)
    if any(map(str.strip, texts)) and all(token in special for ids in documents for token in ids):
        raise InputError(
            f"{type(tokenizer).__name__} makes no token of the text but special ones, so there is nothing to learn: "
            "check that the tokenizer is the model's own, and for this language."
        )
    stream = torch.tensor([token for ids in documents for token in [*ids, *end]], dtype=torch.int64)
    chunks = [chunk for chunk in torch.split(stream, length) if len(chunk) > 1]
    if not chunks:
        raise InputError("the text has fewer than 2 tokens: nothing can be predicted from it; give more text.")
    return [{"input_ids": chunk.clone(), "labels": chunk.clone()} for chunk in chunks]


def _tokenized(tokenizer: PreTrainedTokenizerBase, text: str | list[str], source: str, **options: Any) -> Any:
    try:
        return tokenizer(text, verbose=False, **options)
    except Exception as error:  # the class that the tokenizers package raises for what a tokenizer cannot read
        raise InputError(f"{source}: {type(tokenizer).__name__} cannot read this text: {error}.") from error


def _encode_one(probe: Probe, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Example:
    encoded = _tokenized(tokenizer, probe.text, probe.source, return_offsets_mapping=True)
    ids, offsets = torch.tensor(encoded["input_ids"]), encoded["offset_mapping"]
    labeled = torch.tensor([any(a < end and start < b for start, end in probe.span) for a, b in offsets])
    labeled[:1] = False
    where = labeled.nonzero().flatten()
    if not len(where):
        raise InputError(
            f"{probe.source}: no token of {probe.text!r} can be predicted on its span: a span needs text before it, "
            "made of characters the tokenizer knows."
        )
    labels = ids.where(labeled, IGNORED)
    if max_length is not None and len(ids) > max_length:
        first, stop = int(where[0]), int(where[-1]) + 1
        front = next((i for i, (a, b) in enumerate(offsets) if a != b), 0)
        needed = stop - first + max(front, 1)
        if needed > max_length:
            raise InputError(
                f"{probe.source}: the span and the token before it take {needed} tokens, more than the maximum of "
                f"{max_length}: shorten the span or raise the maximum length."
            )
        keep = torch.cat([torch.arange(front), torch.arange(max(front, stop - (max_length - front)), stop)])
        ids, labels = ids[keep], labels[keep]
    return {"input_ids": ids, "labels": labels}
