"""What spreads from definitions: which are taught, how far they are read, and what is asked of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.lifelong.data.passages import answers_in_passages, lessons
from benchmarks.lifelong.measures import propagation
from benchmarks.lifelong.measures.source import Source
from localopt.pretraining.probes import encode, read_probes
from tests.benchmarks.invented_measures import source_of


def test_an_inference_has_its_definition_and_the_right_word_first(prepared: Path, public: Path) -> None:
    of, _, _ = source_of(prepared, public, "E")
    taught, untaught = propagation.inferences(of)
    assert len(taught) == len(untaught) == 4
    assert taught[0].definition == "Storm Osk was a storm of the Norish coast."
    assert taught[0].sentence == "Storm Osk hit the <gap> people."
    assert taught[0].offered == ("Norish", "Sudan")
    assert not {one.entity for one in taught} & {one.entity for one in untaught}


def test_definitions_are_taught_of_the_entities_asked_about(prepared: Path, public: Path, tmp_path: Path) -> None:
    of, _, _ = source_of(prepared, public, "E")
    folder = propagation.write_lessons(of, tmp_path / "entities")
    (probe, *more) = read_probes(folder / "corpus_train.dev.jsonl")
    defined, sentences = propagation.entities(of)
    assert len(more) + 1 == len(defined) + 4
    assert {str(p.extra["group"]) for p in sentences} <= set(defined)
    assert probe.text in defined.values()
    assert probe.span == ((probe.text.index(" ") + 1, len(probe.text)),)


def test_a_definition_is_read_from_its_beginning_and_never_further_than_a_passage(
    prepared: Path, public: Path, tmp_path: Path
) -> None:
    wide, _, _ = source_of(prepared, public, "E")
    whole = [text for _, text in taught_texts(propagation.write_lessons(wide, tmp_path / "wide"))]
    length = sorted(len(tokens_of(wide, text)) for text in whole)[len(whole) // 2]
    of = replace(wide, length=length)
    folder = propagation.write_lessons(of, tmp_path / "entities")
    assert len(tokens_of(wide, max(whole, key=len))) > length
    for text, (_, read) in zip(whole, taught_texts(folder), strict=True):
        rest = text.removeprefix(read)
        assert len(tokens_of(wide, read)) <= length
        assert rest == "" or (rest.startswith(" ") and len(tokens_of(wide, text)) > length)  # whole words
    traced = encode(answers_in_passages(folder, "A"), of.tokenizer, length)
    for (_, read), example, lesson in zip(
        taught_texts(folder), traced, lessons(folder, "A", of.tokenizer, length), strict=True
    ):
        assert example["input_ids"].tolist() == lesson["input_ids"].tolist() == tokens_of(wide, read)
    defined, sentences = propagation.entities(of)
    spans = propagation.Propagation(of, source_of(prepared, public, "E")[1]).spans["entity spans defined"]
    behind = f"{defined[str(sentences[0].extra['group'])]} {sentences[0].text}"
    assert (
        tokens_of(wide, behind)[:length] == spans.examples[0]["input_ids"].tolist()[:length]
    )  # the bound has what is taught


def test_a_lesson_of_one_long_word_is_cut_inside_of_it(prepared: Path, public: Path) -> None:
    of, _, _ = source_of(prepared, public, "E")
    word = "Oskoskoskoskosk"
    cut = replace(of, length=2).lesson(word)
    assert word.startswith(cut)
    assert 0 < len(cut) < len(word)
    assert of.lesson(word) == word


def taught_texts(folder: Path) -> list[tuple[str, str]]:
    return [(probe.source, probe.text) for probe in answers_in_passages(folder, "A")]


def tokens_of(of: Source, text: str) -> list[int]:
    return list(of.tokenizer(text)["input_ids"])
