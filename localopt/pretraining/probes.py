"""Probe and corpus files -> token ids, with labels on the spans that carry knowledge.

A *probe* is a text and the character ranges (spans) on which the loss is taken: the answer after a prompt, the gold
span of a masked sentence. Everything outside the spans is context and gets the label -100. All files are read as
UTF-8 text and never unpickled; whatever is wrong with one is an `InputError` that names the file and the line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from localopt.errors import InputError
from localopt.pretraining.textfiles import is_json_lines, json_lines, read_text, short, string

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Example = dict[str, Tensor]
IGNORED = -100
MASK = "<extra_id_0>"


@dataclass(frozen=True)
class Probe:
    """A text and the character ranges on which the loss is taken.

    `prompt` and `answer` are set for prompt/answer probes only. `source` is "file:line"; `extra` holds the fields of
    the line that nothing here reads (`distractors`, `group`, ...).
    """

    text: str
    span: tuple[tuple[int, int], ...]
    prompt: str | None = None
    answer: str | None = None
    source: str = "probe"
    extra: dict[str, Any] = field(default_factory=dict, compare=False)


def completion(prompt: str, answer: str, source: str = "probe", extra: dict[str, Any] | None = None) -> Probe:
    """The probe whose loss is taken on `answer`, read after `prompt`.

    One space joins them unless the prompt ends or the answer begins with white space.

    >>> probe = completion("The capital of France is", "Paris")
    >>> probe.text, [probe.text[start:end] for start, end in probe.span]
    ('The capital of France is Paris', ['Paris'])
    """
    for name, value in (("prompt", prompt), ("answer", answer)):
        if not value.strip():
            raise InputError(f"{source}: the {name} is empty ({value!r}): give it at least one word, or drop the line.")
    glue = "" if prompt[-1].isspace() or answer[0].isspace() else " "
    text = prompt + glue + answer
    start = len(text) - len(answer.lstrip())
    return Probe(text, ((start, len(text.rstrip())),), prompt, answer, source, extra or {})


def read_probes(path: str | Path) -> list[Probe]:
    """Read a probe file: JSON lines, each in one of these forms (other fields are kept in `Probe.extra`).

    - `{"prompt": ..., "answer": ...}`: loss on the answer;
    - `{"text": ..., "spans": [[start, end], ...]}`: loss on these character ranges;
    - Entity Cloze By Date (Onoe et al., NAACL Findings 2022, arXiv 2205.02832): `masked_sentence` and `answer_str`, or
      `probe_sentences` with a `probe_sentence` and a `label` each (one probe a sentence); loss on what `<extra_id_0>`
      hides. The entity's definition stays in `extra`: it is what to learn, not part of the question.

    Raises:
        InputError: no such file, not UTF-8, empty, a bad line, a missing or ill-typed field, a span outside the text.
    """
    return [probe for source, line in json_lines(path) for probe in _parse(line, source)]


def read_corpus(path: str | Path) -> list[str]:
    """Read the documents of a corpus: JSON lines with `text`, or plain text.

    Plain text is split at blank lines; where it has WikiText's article headings (` = Title = `), at those instead.

    Raises:
        InputError: as `read_probes`.
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

    `length` is the number of tokens of a packed chunk of text, and the most tokens a probe may have.
    """
    if holds_probes(path):
        return encode(read_probes(path), tokenizer, length)
    return encode_text(read_corpus(path), tokenizer, length)


def encode(probes: Sequence[Probe], tokenizer: PreTrainedTokenizerBase, max_length: int | None = None) -> list[Example]:
    """Tokenize probes: one `{"input_ids": (T,), "labels": (T,)}` each, int64, labels -100 off the spans.

    The text is tokenized as a whole, as a model would read it, and a token is labeled when its characters overlap a
    span; so an answer's first token carries the space before it where the tokenizer writes it that way. A text longer
    than `max_length` loses first what follows its last labeled token (which no causal model sees), then the oldest
    context; special tokens at the front stay. The first token of a text is never labeled: nothing predicts it.

    The character offsets this needs come from fast tokenizers alone, so a slow (pure Python) one is refused.

    Raises:
        InputError: a slow tokenizer, a span without a token to predict, a span that does not fit in `max_length`.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"{type(tokenizer).__name__} does not say which characters a token stands for, so labels cannot be placed: "
            "use the fast version of this tokenizer (one with a tokenizer.json)."
        )
    return [_encode_one(probe, tokenizer, max_length) for probe in probes]


def encode_text(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int) -> list[Example]:
    """Pack documents into chunks of `length` tokens with the loss on every token: `{"input_ids", "labels"}`, int64.

    Each document is written as the tokenizer writes it and followed by the end-of-sequence token. The last chunk may
    be shorter (at least 2 tokens).
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


def _parse(line: dict[str, Any], source: str) -> Iterator[Probe]:
    """Every probe of one line, by the fields it has."""
    if "probe_sentences" in line:
        sentences = line["probe_sentences"]
        if not isinstance(sentences, dict) or not sentences or not all(isinstance(s, dict) for s in sentences.values()):
            raise InputError(f'{source}: "probe_sentences" must map names to objects, not {short(sentences)}.')
        for sentence in sentences.values():
            extra = _without(line, "probe_sentences")
            yield _unmask(string(sentence, "probe_sentence", source), string(sentence, "label", source), source, extra)
    elif "masked_sentence" in line:
        masked, target = string(line, "masked_sentence", source), string(line, "answer_str", source)
        yield _unmask(masked, target, source, _without(line, "masked_sentence", "answer_str"))
    elif "spans" in line:
        text = string(line, "text", source)
        yield Probe(text, _spans(line["spans"], text, source), source=source, extra=_without(line, "text", "spans"))
    elif "prompt" in line or "answer" in line:
        extra = _without(line, "prompt", "answer")
        yield completion(string(line, "prompt", source), string(line, "answer", source), source, extra)
    else:
        raise InputError(
            f"{source}: not a probe, its fields are {sorted(line)}: a line needs prompt and answer, or text and spans, "
            "or ECBD's probe_sentences."
        )


def _unmask(masked: str, target: str, source: str, extra: dict[str, Any]) -> Probe:
    answer = re.sub(r"<extra_id_\d+>", "", target).strip()
    if masked.count(MASK) != 1 or not answer:
        raise InputError(
            f"{source}: a masked sentence needs {MASK} exactly once and a target that is not empty, "
            f"not {short(masked)} with {short(target)}."
        )
    start = masked.index(MASK)
    return Probe(masked.replace(MASK, answer), ((start, start + len(answer)),), source=source, extra=extra)


def _spans(spans: Any, text: str, source: str) -> tuple[tuple[int, int], ...]:
    if not isinstance(spans, list) or not spans:
        raise InputError(f'{source}: "spans" must be a list of [start, end] pairs, not {short(spans)}.')
    for span in spans:
        if not (isinstance(span, list) and len(span) == 2 and all(type(end) is int for end in span)):
            raise InputError(f"{source}: a span must be [start, end], two character positions, not {short(span)}.")
        start, end = span
        if not 0 <= start < end <= len(text):
            raise InputError(
                f"{source}: the span [{start}, {end}] lies outside the text of {len(text)} characters or is empty: "
                "0 <= start < end <= length must hold."
            )
        if not text[start:end].strip():
            raise InputError(f"{source}: the span [{start}, {end}] covers only white space.")
    return tuple((start, end) for start, end in spans)


def _without(line: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in keys}
