"""Any bytes in a probe or a corpus, read with three kinds of tokenizer: the right labels, or one clear refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from benchmarks.faults import oracle
from benchmarks.faults.count import Clock, Count
from benchmarks.faults.generate import ANYTHING, damaged, examples
from benchmarks.faults.material import SENTENCES, SPECIAL, TOKENIZERS
from localopt.errors import InputError
from localopt.pretraining.probes import encode, encode_text, read_corpus, read_probes
from localopt.pretraining.textfiles import is_json_lines

_LENGTH = 8  # tokens of a packed chunk, or of a probe cut short
_WORDS = st.sampled_from([word for sentence in SENTENCES for word in sentence.split()])
_TEXT = st.lists(_WORDS | st.text(max_size=5), min_size=1, max_size=8).map(" ".join) | st.text(max_size=20)


def _spans(text: str) -> st.SearchStrategy[Any]:
    place = st.integers(-1, len(text) + 1)
    return st.lists(st.tuples(place, place).map(sorted) | ANYTHING, min_size=1, max_size=3)


_LINES = (
    st.fixed_dictionaries({"prompt": _TEXT, "answer": _TEXT})
    | _TEXT.flatmap(lambda text: st.fixed_dictionaries({"text": st.just(text), "spans": _spans(text)}))
    | st.fixed_dictionaries(
        {
            "masked_sentence": st.tuples(_TEXT, _TEXT).map("<extra_id_0>".join),
            "answer_str": _TEXT.map("<extra_id_0> {} <extra_id_1>".format),
        }
    )
    | st.fixed_dictionaries(
        {
            "probe_sentences": st.dictionaries(
                st.text(max_size=3),
                st.fixed_dictionaries({"probe_sentence": _TEXT.map("{} <extra_id_0>.".format), "label": _TEXT}),
                max_size=2,
            )
        }
    )
)
_SOME = st.lists(
    _WORDS | st.sampled_from(["é", "漢字", "a\u0301", "🙂", "▁", "x_y"]) | st.text(max_size=3), min_size=2
).map(" ".join)
_GOOD_LINES = (
    st.fixed_dictionaries({"prompt": _SOME, "answer": _SOME})
    | st.tuples(_SOME, st.integers(0, 9), st.integers(1, 9)).map(
        lambda made: {"text": made[0] + " and so on", "spans": [[made[1], made[1] + made[2]]]}
    )
    | st.fixed_dictionaries({"masked_sentence": _SOME.map("So {} <extra_id_0>.".format), "answer_str": _SOME})
)


def _file(lines: list[object], end: str) -> bytes:
    return end.join(json.dumps(line, ensure_ascii=bool(len(lines) % 2)) for line in lines).encode("utf-8", "replace")


_PROBES = st.builds(_file, st.lists(_LINES, min_size=1, max_size=3), st.sampled_from(["\n", "\r\n", "\n\n"]))
_FINE = st.builds(_file, st.lists(_GOOD_LINES, min_size=1, max_size=2), st.just("\n"))
_GOOD = _file(
    [{"prompt": "The capital of Norland is", "answer": "Westhaven"}, {"text": "é a b", "spans": [[2, 5]]}], "\n"
)
_ROWS = st.sampled_from([" = A title = \n", " = = A part = = \n", "words and words\n", " \n", "\t\n"]) | st.text()
_PLAIN = st.lists(_TEXT, min_size=1, max_size=5).map("\n\n".join) | st.lists(_ROWS, max_size=9).map("".join)
_CORPUS = _PLAIN.map(lambda text: text.encode("utf-8", "replace")) | st.builds(
    _file, st.lists(st.fixed_dictionaries({"text": _TEXT}), min_size=1, max_size=4), st.just("\n")
)


def a_probe(count: Count, number: int, seed: int, folder: Path, clock: Clock) -> None:
    """Try so many files, each with every kind of tokenizer."""
    tokenizers = {kind: make() for kind, make in TOKENIZERS.items()}
    path = folder / "any.jsonl"

    def one(data: bytes) -> None:
        path.write_bytes(data)
        count.add("files")
        for kind, tokenizer in tokenizers.items():
            with count.one(f"{kind}: {data[:300]!r}", expected=(InputError,)):
                read = read_probes(path)
                meant = oracle.probes(data)
                if [(p.text, frozenset(i for s in p.span for i in range(*s))) for p in read] != meant:
                    count.note("wrong", f"other probes than the file has: {data[:300]!r}")
                    continue
                if any(special in text for text, _ in meant for special in SPECIAL):
                    continue  # which no oracle here knows to split
                found = encode(read, tokenizer)
                count.add("probes labeled", len(found))
                expected = [oracle.labels(tokenizer, kind, one) for one in meant]
                if [(e["input_ids"].tolist(), e["labels"].tolist()) for e in found] != expected:
                    count.note("wrong", f"{kind}: other labels than the file asks for: {data[:300]!r}")
                _cut_short(count, kind, [(ids, marked) for ids, marked in expected], encode(read, tokenizer, _LENGTH))

    examples(st.binary(max_size=100) | _PROBES | _FINE | damaged(_GOOD), one, number, seed, clock)


def _cut_short(count: Count, kind: str, whole: list[tuple[list[int], list[int]]], cut: list[dict[str, Any]]) -> None:
    """A probe that is cut has all its labels, and a stretch of its tokens with what stands before the first label."""
    for (ids, marked), example in zip(whole, cut, strict=True):
        left, left_marked = example["input_ids"].tolist(), example["labels"].tolist()
        places = [
            n for n in range(len(ids)) if ids[n : n + len(left)] == left and marked[n : n + len(left)] == left_marked
        ]
        asked = [label for label in marked if label >= 0]
        if (
            not places
            or len(left) > _LENGTH
            or [label for label in left_marked if label >= 0] != asked
            or left_marked[0] >= 0
        ):
            count.note("wrong", f"{kind}: cut to {left} with {left_marked} from {ids} with {marked}")


def a_corpus(count: Count, number: int, seed: int, folder: Path, clock: Clock) -> None:
    """Try so many files, each with every kind of tokenizer."""
    tokenizers = {kind: make() for kind, make in TOKENIZERS.items()}
    path = folder / "any.txt"

    def one(data: bytes) -> None:
        path.write_bytes(data)
        count.add("files")
        for kind, tokenizer in tokenizers.items():
            with count.one(f"{kind}: {data[:300]!r}", expected=(InputError,)):
                read = read_corpus(path)
                if read != oracle.documents(data, is_json_lines(path)):
                    count.note("wrong", f"other documents than the file has: {data[:300]!r}")
                    continue
                chunks = encode_text(read, tokenizer, _LENGTH)
                count.add("chunks packed", len(chunks))
                if problem := _problem(read, tokenizer, chunks):
                    count.note("wrong", f"{kind}: {problem}: {data[:300]!r}")

    examples(st.binary(max_size=100) | _CORPUS, one, number, seed, clock)


def _problem(read: list[str], tokenizer: PreTrainedTokenizerFast, chunks: list[dict[str, Any]]) -> str:
    stream = [token for text in read for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    packed = [token for chunk in chunks for token in chunk["input_ids"].tolist()]
    if packed != stream[: len(packed)] or len(stream) - len(packed) > 1:
        return "tokens were lost, or changed"
    if any(chunk["input_ids"].tolist() != chunk["labels"].tolist() for chunk in chunks):
        return "a token without its loss"
    if any(not 2 <= len(chunk["input_ids"]) <= _LENGTH for chunk in chunks):
        return "a chunk that is too long or too short"
    return ""
