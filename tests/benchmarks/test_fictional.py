"""The second data set: what is read of a passage, what is asked, and that it runs like the first."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.lifelong import prepare
from benchmarks.lifelong.__main__ import main
from benchmarks.lifelong.data import fictional
from benchmarks.lifelong.data.passages import answers_in_passages, lessons
from benchmarks.lifelong.exam.exam import WRONG, Exam
from benchmarks.lifelong.report import __main__ as report
from benchmarks.lifelong.start import model_of
from benchmarks.lifelong.training import Settings
from localopt.errors import InputError
from localopt.pretraining.models import load_model
from tests.benchmarks.invented import save_learned_model, write_data


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both data sets, the second in a folder of its own."""
    data = write_data(tmp_path_factory.mktemp("data"))
    model = save_learned_model(data, tmp_path_factory.mktemp("models") / "tiny")
    out = tmp_path_factory.mktemp("prepared") / "p"
    prepare.main(["--data", str(data), "--out", str(out), "--model", str(model)])
    model.rename(out / "model")
    return out


@pytest.fixture(scope="module")
def folder(prepared: Path) -> Path:
    return prepared / "fictional"


def rows(folder: Path, name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def excerpts(tmp_path: Path, *passages: dict[str, object]) -> tuple[list[fictional.Excerpt], Counter[str]]:
    from tests.tiny_lm import tiny_tokenizer

    (tmp_path / fictional.FILE).write_text(json.dumps(passages))
    return fictional.read_excerpts(tmp_path, tiny_tokenizer(), 0)


def passage(text: str, verbatim: str, paraphrased: str, answer: str, deep: str, found: str) -> dict[str, object]:
    return {
        "train_context": text,
        "mem_input": [verbatim],
        "gen_input": [paraphrased],
        "mem_target": [answer],
        "gen_target": [answer],
        "hard_gen_input": [deep],
        "hard_gen_target": [found],
    }


def test_what_is_read_is_a_short_run_of_sentences_that_answers_every_kind_of_question(tmp_path: Path) -> None:
    long = "It was a long way" + " in the hills of that old and quiet land of many lakes" * 2 + "."
    row = passage(
        f"{long} Osk met Reed. Reed owned a mill. {long}", "Osk met", "The one Osk saw was", "Reed", "He had", "a mill"
    )
    (one,), dropped = excerpts(tmp_path, row)
    assert one.text == "Osk met Reed. Reed owned a mill."
    assert [one.text[a:b] for a, b in one.spans] == ["Reed", "a mill"]
    assert [question.kind for question in one.questions] == list(fictional.KINDS)
    assert not dropped


def test_a_question_whose_prompt_says_the_answer_is_not_asked(tmp_path: Path) -> None:
    row = passage(
        "Osk met Reed. He has a mill.", "Osk met", "Reed was seen by Osk: it was", "Reed", "He owns", "a mill"
    )
    found, dropped = excerpts(tmp_path, row)
    assert found == []
    assert dropped["the prompt gives the answer away"] == 2


def test_a_file_of_another_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not in the form of Fictional Knowledge \(KeyError\('train_context'\)\)"):
        excerpts(tmp_path, {"text": "Osk met Reed."})


def test_the_two_sets_differ_in_what_is_taught_and_asked_alone(prepared: Path, folder: Path) -> None:
    for path in folder.iterdir():
        same = path.read_bytes() == (prepared / path.name).read_bytes()
        assert same is (not path.name.startswith(("corpus_train", "updated", "manifest"))), path.name
    assert model_of(folder) == model_of(prepared) == str(prepared / "model")
    assert (Settings.of(folder).length, Settings.of(prepared).length) == (fictional.LENGTH, 64)


def test_halves_share_no_passage_and_every_passage_is_asked_evenly(folder: Path) -> None:
    asked = {split: rows(folder, f"updated.{split}.jsonl") for split in ("dev", "test")}
    groups = {split: {row["group"] for row in some} for split, some in asked.items()}
    assert groups["dev"]
    assert groups["test"]
    assert not groups["dev"] & groups["test"]
    for some in asked.values():
        assert len(set(Counter(row["kind"] for row in some).values())) == 1
        right = {row["answer"] for row in some}
        assert all(set(row["distractors"]) <= right - {row["answer"]} for row in some)  # type: ignore[call-overload]


def test_passages_are_read_whole_and_traced_on_the_answers_that_are_asked_for(folder: Path) -> None:
    _, tokenizer = load_model(model_of(folder))
    for half, split in (("A", "dev"), ("B", "test")):
        texts = [str(row["text"]) for row in rows(folder, f"corpus_train.{split}.jsonl")]
        read = [tokenizer.decode(x["input_ids"]) for x in lessons(folder, half, tokenizer, fictional.LENGTH)]
        assert read == texts
        answers = {str(row["answer"]) for row in rows(folder, f"updated.{split}.jsonl")}
        assert {p.text[a:b] for p in answers_in_passages(folder, half) for a, b in p.span} == answers


def test_the_start_leaves_the_wrong_answers_it_finds_likeliest(folder: Path) -> None:
    _, tokenizer = load_model(model_of(folder))
    exam = Exam(folder, tokenizer)
    before = {item.prompt: item for item in exam.items if item.kind}
    losses = [[5.0, *(float(n) for n in range(len(item.answers) - 1, 0, -1))] for item in exam.items]
    left = exam.settle(losses)
    for item, nll in zip(exam.items, left, strict=True):
        if item.kind:
            assert item.answers == (before[item.prompt].answers[0], *before[item.prompt].answers[: -WRONG - 1 : -1])
            assert nll == [5.0, 1.0, 2.0, 3.0, 4.0]


def test_a_sweep_and_a_report_run_on_it_as_on_the_first(folder: Path, tmp_path: Path) -> None:
    main(["--data", str(folder), "--out", str(tmp_path), "--smoke", "--methods", "adamw", "gain-damage-fp"])
    main(["--data", str(folder), "--out", str(tmp_path), "--smoke", "--methods", "adamw", "gain-damage-fp", "--resume"])
    report.main([str(tmp_path / "runs.jsonl"), "--out", str(tmp_path / "page")])
    table = (tmp_path / "page" / "lifelong-tables.md").read_text()
    assert "**By kind of question**" in table
    assert all(kind in table for kind in fictional.KINDS)
    assert "new beats old" not in table
    assert "nan" not in table
