"""Probe and corpus files: what is read, where the labels go, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from localopt.errors import InputError
from localopt.pretraining.probes import (
    IGNORED,
    Example,
    Probe,
    completion,
    encode,
    encode_text,
    read_corpus,
    read_probes,
    read_reference,
)
from tests.tiny_lm import tiny_tokenizer

BYTES = tiny_tokenizer()
TOKENIZERS = [BYTES, tiny_tokenizer(start=True), tiny_tokenizer("marked"), tiny_tokenizer("marked", start=True)]


def write(folder: Path, *lines: object, name: str = "probes.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(line + "\n" if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def labeled(example: Example) -> list[int]:
    return example["input_ids"][example["labels"] != IGNORED].tolist()


# What is read


def test_a_prompt_and_its_answer_are_joined_by_one_space_and_other_fields_are_kept(tmp_path: Path) -> None:
    path = write(tmp_path, {"prompt": "The river is", "answer": "Amber", "group": 3, "distractors": ["Reed"]})
    (probe,) = read_probes(path)
    assert probe == Probe("The river is Amber", ((13, 18),), "The river is", "Amber", f"{path}:1")
    assert probe.extra == {"group": 3, "distractors": ["Reed"]}


@pytest.mark.parametrize(("prompt", "answer"), [("The river is ", "Amber"), ("The river is", " Amber")])
def test_a_space_that_is_already_there_is_not_doubled(prompt: str, answer: str) -> None:
    probe = completion(prompt, answer)
    assert probe.text == "The river is Amber"
    assert probe.span == ((13, 18),)


def test_a_text_with_spans_keeps_its_character_ranges(tmp_path: Path) -> None:
    path = write(tmp_path, {"text": "Mira Osk lives in Westhaven.", "spans": [[0, 4], [18, 27]], "year": 2030})
    (probe,) = read_probes(path)
    assert [probe.text[a:b] for a, b in probe.span] == ["Mira", "Westhaven"]
    assert (probe.prompt, probe.answer, probe.extra) == (None, None, {"year": 2030})


def test_both_formats_of_entity_cloze_by_date_fill_the_mask_and_label_what_it_hid(tmp_path: Path) -> None:
    sentences = {
        "template_0": {"probe_sentence": "Osk won <extra_id_0> in 2030.", "label": "<extra_id_0> the cup <extra_id_1>"},
        "template_1": {"probe_sentence": "Osk is <extra_id_0>-born.", "label": "<extra_id_0> Norland <extra_id_1>"},
    }
    path = write(
        tmp_path,
        {"ent_str": "Osk", "definition": "Osk is a player <extra_id_0>.", "probe_sentences": sentences},
        "",
        {
            "masked_sentence": "Osk has <extra_id_0>.",
            "answer_str": "<extra_id_0> two dogs <extra_id_1>",
            "year": "2030",
        },
    )
    probes = read_probes(path)
    assert [probe.text for probe in probes] == ["Osk won the cup in 2030.", "Osk is Norland-born.", "Osk has two dogs."]
    assert [probe.text[slice(*probe.span[0])] for probe in probes] == ["the cup", "Norland", "two dogs"]
    assert [probe.source for probe in probes] == [f"{path}:1", f"{path}:1", f"{path}:3"]
    assert probes[0].extra == {"ent_str": "Osk", "definition": "Osk is a player <extra_id_0>."}
    assert probes[2].extra == {"year": "2030"}


def test_windows_line_ends_and_a_byte_order_mark_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "probes.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "A", "answer": "B"}\r\n{"prompt": "C", "answer": "D"}\r\n')
    assert [probe.text for probe in read_probes(path)] == ["A B", "C D"]


# What is refused


@pytest.mark.parametrize(
    ("line", "because"),
    [
        ("{not json", "not valid JSON"),
        ("[1, 2]", "expected a JSON object, not [1, 2]"),
        ('{"prompt": "A"}', 'field "answer" is missing'),
        ('{"answer": "A"}', 'field "prompt" is missing'),
        ('{"prompt": "A", "answer": ""}', "must be text that is not empty, not ''"),
        ('{"prompt": "A", "answer": 7}', "must be text that is not empty, not 7"),
        ('{"prompt": "A", "answer": "\\ud800"}', "surrogate"),
        ('{"text": "abc"}', "not a probe, its fields are ['text']"),
        ('{"text": "abc", "spans": []}', "must be a list of [start, end] pairs, not []"),
        ('{"text": "abc", "spans": [[0]]}', "must be [start, end], two character positions, not [0]"),
        ('{"text": "abc", "spans": [[0, true]]}', "two character positions, not [0, True]"),
        ('{"text": "abc", "spans": [[0, 4]]}', "the span [0, 4] lies outside the text of 3 characters"),
        ('{"text": "abc", "spans": [[-1, 2]]}', "the span [-1, 2] lies outside"),
        ('{"text": "abc", "spans": [[2, 2]]}', "the span [2, 2] lies outside the text of 3 characters or is empty"),
        ('{"text": "a c", "spans": [[1, 2]]}', "covers only white space"),
        ('{"probe_sentences": []}', "must map names to objects, not []"),
        ('{"probe_sentences": {"a": {"probe_sentence": "x"}}}', 'field "label" is missing'),
        ('{"masked_sentence": "no mask", "answer_str": "x"}', "needs <extra_id_0> exactly once"),
        (
            '{"masked_sentence": "a <extra_id_0>", "answer_str": "<extra_id_0> <extra_id_1>"}',
            "target that is not empty",
        ),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_a_bad_line_is_named_with_its_file_and_number(tmp_path: Path, line: str, because: str) -> None:
    path = write(tmp_path, {"prompt": "Fine", "answer": "line"}, line)
    with pytest.raises(InputError) as caught:
        read_probes(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert because in str(caught.value)


def test_files_that_are_no_text_are_refused_by_name(tmp_path: Path) -> None:
    empty, latin = tmp_path / "empty.jsonl", tmp_path / "latin.txt"
    empty.write_text(" \n\n")
    latin.write_bytes(b"fine\ncaf\xe9\n")
    for path, because in [
        (tmp_path / "none.jsonl", "no such file"),
        (tmp_path, "is a folder"),
        (empty, "the file is empty"),
    ]:
        with pytest.raises(InputError, match=because) as caught:
            read_probes(path)
        assert str(path) in str(caught.value)
    with pytest.raises(InputError, match=r"latin\.txt:2: not UTF-8"):
        read_corpus(latin)


# Corpora and references


def test_a_plain_text_corpus_is_split_at_blank_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "One line", "and another.", "", "  ", "A second document.", name="corpus.txt")
    assert read_corpus(path) == ["One line\nand another.", "A second document."]


def test_a_wikitext_corpus_is_split_at_article_headings_alone(tmp_path: Path) -> None:
    first = [" ", " = First article = ", " ", " Text . ", " ", " = = Section = = ", " More . "]
    second = [" = Second = ", " End ."]
    documents = read_corpus(write(tmp_path, *first, *second, name="wiki.txt"))
    assert [document.split("\n")[0].strip() for document in documents] == ["= First article =", "= Second ="]
    assert "= = Section = =" in documents[0]


def test_a_corpus_of_json_lines_gives_its_texts_whatever_the_file_is_called(tmp_path: Path) -> None:
    for name in ("corpus.jsonl", "corpus.txt"):
        assert read_corpus(write(tmp_path, {"text": "One."}, {"text": "Two.", "id": 4}, name=name)) == ["One.", "Two."]
    with pytest.raises(InputError, match=r"corpus\.jsonl:2: .*\"text\" is missing"):
        read_corpus(write(tmp_path, {"text": "One."}, {"body": "Two."}, name="corpus.jsonl"))


def test_a_reference_is_text_or_facts_to_keep_by_its_content(tmp_path: Path) -> None:
    text = read_reference(write(tmp_path, "Mira Osk plays the violin.", name="text.txt"), BYTES, 8)
    assert all((example["labels"] == example["input_ids"]).all() for example in text)
    facts = read_reference(write(tmp_path, {"prompt": "Mira Osk plays the", "answer": "violin"}), BYTES, 64)
    assert BYTES.decode(labeled(facts[0])) == " violin"
    texts = read_reference(write(tmp_path, {"text": "Mira Osk lives in Westhaven."}), BYTES, 64)
    assert (texts[0]["labels"] == texts[0]["input_ids"]).all()


# Tokens and labels


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_the_labels_are_the_tokens_of_the_answer_within_the_whole_text(tokenizer: PreTrainedTokenizerFast) -> None:
    (example,) = encode([completion("The capital of Norland is", "Port Amber")], tokenizer)
    assert example["input_ids"].tolist() == tokenizer("The capital of Norland is Port Amber")["input_ids"]
    assert tokenizer.decode(labeled(example)).strip() == "Port Amber"
    assert example["input_ids"].dtype == example["labels"].dtype == torch.int64


@given(
    st.lists(st.text(min_size=1, max_size=8).filter(lambda word: word.split() == [word]), min_size=2, max_size=8),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_every_character_of_a_span_is_in_a_labeled_token_and_no_other_token_is_labeled(
    words: list[str], data: st.DataObject
) -> None:
    text = " ".join(words)
    first = data.draw(st.integers(1, len(words) - 1))
    start = len(" ".join(words[:first])) + 1
    end = start + len(words[first])
    (example,) = encode([Probe(text, ((start, end),))], BYTES)
    ids, labels = example["input_ids"], example["labels"]
    before = BYTES.decode(ids[: int((labels != IGNORED).nonzero()[0])])
    span = BYTES.decode(labeled(example))
    assert before in (text[:start], text[: start - 1])
    assert span.strip(" ") == text[start:end].strip(" ")


def test_several_spans_are_all_labeled() -> None:
    text = "Mira Osk lives in Westhaven since 2021."
    (example,) = encode([Probe(text, ((5, 8), (18, 27)))], BYTES)
    assert BYTES.decode(labeled(example)) == " Osk Westhaven"


def test_a_long_prompt_loses_its_oldest_tokens_and_keeps_bos_and_answer() -> None:
    tokenizer = TOKENIZERS[1]
    probe = completion("The river runs through Sudania. " * 9 + "The capital of Norland is", "Westhaven")
    (whole,) = encode([probe], tokenizer)
    (cut,) = encode([probe], tokenizer, 20)
    assert len(cut["input_ids"]) == 20
    assert cut["input_ids"][0] == tokenizer.bos_token_id
    assert (cut["input_ids"][1:] == whole["input_ids"][-19:]).all()
    assert labeled(cut) == labeled(whole)


def test_what_follows_the_span_goes_before_any_of_its_context() -> None:
    text = "The capital of Norland is Westhaven. " + "Mira Osk plays the violin. " * 5
    (whole,) = encode([Probe(text, ((26, 35),))], BYTES)
    stop = int((whole["labels"] != IGNORED).nonzero()[-1]) + 1
    (cut,) = encode([Probe(text, ((26, 35),))], BYTES, stop)
    assert (cut["input_ids"] == whole["input_ids"][:stop]).all()


def test_a_span_that_does_not_fit_is_refused_by_line_with_both_numbers() -> None:
    probe = completion("The capital is", "Westhaven, Port Amber and Norland", source="probes.jsonl:4")
    with pytest.raises(InputError, match=r"probes\.jsonl:4: .* tokens, more than the maximum of 3"):
        encode([probe], BYTES, 3)


def test_a_span_with_nothing_before_it_cannot_be_predicted() -> None:
    probe = Probe("The river", ((0, 1),), source="probes.jsonl:1")
    with pytest.raises(InputError, match=r"probes\.jsonl:1: no token of 'The river' can be predicted"):
        encode([probe], BYTES)
    (example,) = encode([probe], TOKENIZERS[1])
    assert len(labeled(example)) == 1, "after a BOS token it can"


def test_a_tokenizer_without_character_offsets_is_refused_with_the_remedy() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(InputError, match=r"Slow does not say which characters .* use the fast version"):
        encode([completion("A", "B")], Slow())  # type: ignore[arg-type]


def test_text_is_packed_end_to_end_with_every_token_labeled() -> None:
    texts = ["Mira Osk plays the violin.", "The river runs."]
    stream = [token for text in texts for token in [*BYTES(text)["input_ids"], BYTES.eos_token_id]]
    chunks = encode_text(texts, BYTES, 7)
    assert torch.cat([chunk["input_ids"] for chunk in chunks]).tolist() == stream
    assert all(len(chunk["input_ids"]) == 7 for chunk in chunks[:-1])
    assert all((chunk["labels"] == chunk["input_ids"]).all() for chunk in chunks)


def test_text_without_a_token_to_predict_is_refused() -> None:
    with pytest.raises(InputError, match="fewer than 2 tokens"):
        encode_text([], BYTES, 8)
    with pytest.raises(InputError, match="length is 1"):
        encode_text(["Fine."], BYTES, 1)


def test_the_real_files_are_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "probes.jsonl"
    path.write_bytes(b"\x80\x04\x95cos\nsystem\n")
    with pytest.raises(InputError, match="not UTF-8"):
        read_probes(path)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_may_never_end_is_refused_unread(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "pipe" if kind == "pipe" else Path("/dev/zero")
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(InputError, match="is a pipe or a device, not a file"):
        read_probes(path)
