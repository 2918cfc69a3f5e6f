"""What a probe or a corpus file means, worked out by other means than the package's: bytes, walks and sets."""

from __future__ import annotations

import json
from typing import Any

from transformers import PreTrainedTokenizerFast

# Unicode's White_Space, which is what WhitespaceSplit splits at; Python's str.isspace has four more.
_SPACE = {*map(chr, [*range(9, 14), 32, 133, 160, 5760, *range(8192, 8203), 8232, 8233, 8239, 8287, 12288])}
_MASK = "<extra_id_0>"
_IGNORED = -100

Meaning = tuple[str, frozenset[int]]  # a text, and the positions of the characters that are asked for


def probes(data: bytes) -> list[Meaning]:
    """Every probe of a file that was accepted, in order."""
    text = data.decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n")
    found: list[Meaning] = []
    for line in text.split("\n"):
        if line.strip():
            found += _of_line(json.loads(line))
    return found


def _of_line(line: dict[str, Any]) -> list[Meaning]:
    if "probe_sentences" in line:
        return [_unmasked(one["probe_sentence"], one["label"]) for one in line["probe_sentences"].values()]
    if "masked_sentence" in line:
        return [_unmasked(line["masked_sentence"], line["answer_str"])]
    if "spans" in line:
        return [(line["text"], frozenset(i for start, end in line["spans"] for i in range(start, end)))]
    prompt, answer = line["prompt"], line["answer"]
    joined = prompt + answer if prompt[-1].isspace() or answer[0].isspace() else f"{prompt} {answer}"
    inside = [i for i in range(len(joined) - len(answer), len(joined)) if not joined[i].isspace()]
    return [(joined, frozenset(range(inside[0], inside[-1] + 1)))]


def _unmasked(masked: str, target: str) -> Meaning:
    while "<extra_id_" in target:  # "<extra_id_0> Westhaven <extra_id_1>"
        before, _, rest = target.partition("<extra_id_")
        number, closed, after = rest.partition(">")
        if not closed or not number or any(not c.isdecimal() for c in number):
            break
        target = before + after
    before, after = masked.split(_MASK)
    answer = target.strip()
    return before + answer + after, frozenset(range(len(before), len(before) + len(answer)))


def labels(tokenizer: PreTrainedTokenizerFast, kind: str, meaning: Meaning) -> tuple[list[int], list[int]]:
    """The token ids of a probe, and its labels: a token's own id where it has an asked character, but the first."""
    text, asked = meaning
    ids = tokenizer(text)["input_ids"]
    pieces = {"BPE": _by_bytes, "WordPiece": _by_longest_match, "Unigram": _by_length}[kind](tokenizer, ids, text)
    return ids, [i if n and asked & piece else _IGNORED for n, (i, piece) in enumerate(zip(ids, pieces, strict=True))]


def _by_bytes(tokenizer: PreTrainedTokenizerFast, ids: list[int], text: str) -> list[set[int]]:
    """Byte-level BPE loses no byte: count them."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]  # these bytes stand for themselves, others after them
    byte_of = {chr(b): b for b in shown} | {
        chr(256 + n): b for n, b in enumerate(b for b in range(256) if b not in shown)
    }
    owner = [position for position, character in enumerate(text) for _ in character.encode()]
    pieces, at = [], 0
    for token in tokenizer.convert_ids_to_tokens(ids):
        read = bytes(byte_of[c] for c in token)
        assert read == text.encode()[at : at + len(read)]
        pieces.append(set(owner[at : at + len(read)]))
        at += len(read)
    assert at == len(owner)
    return pieces


def _by_longest_match(tokenizer: PreTrainedTokenizerFast, ids: list[int], text: str) -> list[set[int]]:
    """WordPiece: the longest piece that the vocabulary has, from the left; a word without one is unknown as a whole."""
    vocabulary = tokenizer.get_vocab()
    pieces: list[set[int]] = []
    found: list[str] = []
    at = 0
    while at < len(text):
        if text[at] in _SPACE:
            at += 1
            continue
        end = next((i for i in range(at, len(text)) if text[i] in _SPACE), len(text))
        split = _split(text[at:end], vocabulary)
        for token, start, stop in split or [("<unk>", 0, end - at)]:
            found.append(token)
            pieces.append(set(range(at + start, at + stop)))
        at = end
    assert tokenizer.convert_tokens_to_ids(found) == ids
    return pieces


def _split(word: str, vocabulary: dict[str, int]) -> list[tuple[str, int, int]]:
    if len(word) > 100:
        return []
    pieces, start = [], 0
    while start < len(word):
        stop = len(word)
        while stop > start and ("##" if start else "") + word[start:stop] not in vocabulary:
            stop -= 1
        if stop == start:
            return []
        pieces.append((("##" if start else "") + word[start:stop], start, stop))
        start = stop
    return pieces


def _by_length(tokenizer: PreTrainedTokenizerFast, ids: list[int], text: str) -> list[set[int]]:
    """Unigram loses no character, after one "▁" in front; what it does not know is one token as long as it goes on."""
    known = {token for token in tokenizer.get_vocab() if len(token) == 1}
    marked = text.replace(" ", "▁")
    shift = 0 if marked.startswith("▁") else 1
    marked = "▁" * shift + marked
    pieces, at = [], 0
    for token in tokenizer.convert_ids_to_tokens(ids):
        if token == "<unk>":
            size = 1
            while at + size < len(marked) and marked[at + size] not in known and marked[at + size] != "▁":
                size += 1
        else:
            size = len(token)
            assert marked[at : at + size] == token
        pieces.append({position - shift for position in range(at, at + size) if position >= shift})
        at += size
    assert at == len(marked)
    return pieces


def documents(data: bytes, lines: bool) -> list[str]:
    """The documents of a corpus file that was accepted."""
    text = data.decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n")
    if lines:
        return [json.loads(line)["text"] for line in text.split("\n") if line.strip()]
    rows = text.split("\n")
    headings = [_is_heading(row) for row in rows]
    pieces: list[list[str]] = [[]]
    for row, heading in zip(rows, headings, strict=True):
        if heading or (not any(headings) and not row.strip(" \t")):
            pieces.append([])
        pieces[-1].append(row)
    return [whole for piece in pieces if (whole := "\n".join(piece).strip())]


def _is_heading(row: str) -> bool:
    """WikiText's " = Title = " of an article; a section has more signs."""
    inner = row.removeprefix(" ").removesuffix(" ")
    return inner.startswith("= ") and inner.endswith(" =") and len(inner) > 4 and "=" not in inner[2:-2]
