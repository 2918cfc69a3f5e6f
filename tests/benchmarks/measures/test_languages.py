"""Topics in one language after the other: what is read, what is said of it, and both kinds of model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import BertConfig, BertForSequenceClassification

from benchmarks.lifelong.measures import languages
from benchmarks.lifelong.start import model_of
from benchmarks.lifelong.training import Settings
from localopt.errors import InputError
from tests.benchmarks.invented_measures import LANGUAGES, TOPICS
from tests.tiny_lm import tiny_tokenizer


def arguments(prepared: Path, public: Path, out: Path, *more: str) -> list[str]:
    return ["--data", str(prepared), "--shared", str(public), "--out", str(out), "--smoke", *more]


def test_average_accuracy_and_backward_transfer_by_hand() -> None:
    known = [[0.2, 0.2, 0.2], [0.9, 0.3, 0.2], [0.5, 0.8, 0.4], [0.6, 0.6, 0.9]]
    average, backward = languages.summary(known)
    assert average == pytest.approx(0.7)  # 0.6, 0.6, 0.9
    assert backward == pytest.approx((0.6 - 0.9 + 0.6 - 0.8) / 2)


def test_a_causal_model_goes_through_all_languages_and_on_where_it_was(
    prepared: Path, public: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    languages.main(arguments(prepared, public, tmp_path, "--methods", "adamw@1e-2"))
    more = ["--methods", "adamw@1e-2", "fp-text@1e-2", "--resume"]
    languages.main(arguments(prepared, public, tmp_path, *more))
    rows = [json.loads(line) for line in (tmp_path / "languages.jsonl").read_text().splitlines()]
    assert [row["method"] for row in rows] == ["adamw", "fp-text"]
    for row in rows:
        assert row["languages"] == list(LANGUAGES)
        assert len(row["accuracy"]) == 4
        assert all(0 <= share <= 1 for known in row["accuracy"] for share in known)
        assert row["accuracy"][0] == rows[0]["accuracy"][0]
        own = [row["accuracy"][number + 1][number] for number in range(3)]
        assert sum(own) > sum(row["accuracy"][0])  # two topics whose words differ: one epoch is enough for some of it
    said = capsys.readouterr()
    assert "does not hold ita_Latn: it is passed over" in said.err
    assert "| adamw | 0.01 | 1 |" in said.out
    assert (tmp_path / "languages.png").stat().st_size > 5_000


def test_an_encoder_goes_through_them_with_methods_that_need_no_trace(
    prepared: Path, public: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = "</s>"
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    given = arguments(prepared, public, tmp_path / "out", "--encoder", str(tmp_path / "bert"))
    languages.main([*given, "--methods", "adamw@5e-3", "online@5e-3", "selective@5e-3"])
    rows = [json.loads(line) for line in (tmp_path / "out" / "languages.jsonl").read_text().splitlines()]
    assert len({json.dumps(row["accuracy"]) for row in rows}) > 1
    assert len({json.dumps(row["accuracy"][0]) for row in rows}) == 1
    with pytest.raises(SystemExit):
        languages.main([*given, "--resume", "--methods", "gain-damage-fp@5e-3"])
    assert "choose one that needs no trace" in capsys.readouterr().err


def test_an_encoder_that_is_not_there_is_refused(
    prepared: Path, public: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        languages.main(arguments(prepared, public, tmp_path / "out", "--encoder", str(tmp_path / "none")))
    assert "cannot be loaded" in capsys.readouterr().err


def test_prompts_end_in_the_question_and_keep_room_for_the_topic(prepared: Path, public: Path, tmp_path: Path) -> None:
    found = languages.read_languages(public / "sib200", 5, 5)
    learner = languages.Learner(prepared, model_of(prepared), tmp_path, found, Settings(length=20))
    prompt = learner.prompt("a long sentence about rivers and lakes and storms, Mira Osk")
    assert prompt.endswith("Osk\nTopic:")
    assert len(learner.tokenizer(prompt)["input_ids"]) <= 20
    assert learner.topics == sorted(TOPICS)


def test_files_that_are_not_of_sib200_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("a\tb\n1\t2\n")
    with pytest.raises(InputError, match="needs the columns category and text"):
        languages.read_sentences(tmp_path / "x.tsv")
    with pytest.raises(InputError, match="holds 0 of the languages"):
        languages.read_languages(tmp_path, 4, 4)
