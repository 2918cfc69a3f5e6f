"""One line of a probe file -> probes: a text, and where in it the loss is taken."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from localopt.errors import InputError
from localopt.pretraining.textfiles import short, string

MASK = "<extra_id_0>"


@dataclass(frozen=True)
class Probe:
    """A text and the character ranges on which the loss is taken.

    Attributes:
        text: as a model reads it.
        span: (start, end) of each range, in characters.
        prompt: what comes before the answer; of prompt/answer probes only.
        answer: likewise.
        source: "file:line", for messages.
        extra: the fields of the line that nothing here reads (``distractors``, ``group``, ...).

    Examples:
        >>> probe = Probe("The Seine flows through Paris.", ((24, 29),))
        >>> [probe.text[start:end] for start, end in probe.span]
        ['Paris']
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


def probes_of_line(line: dict[str, Any], source: str) -> Iterator[Probe]:
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
