"""Named sets, read as a command line names them, and the table and JSON of their scores."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from localopt.errors import InputError
from localopt.pretraining.evaluate import Score, evaluate, evaluate_text
from localopt.pretraining.probes import read_corpus, read_probes
from localopt.pretraining.scoring import read_sets, score_sets, score_table, scores_to_json
from tests.tiny_files import FACTS, write_lines
from tests.tiny_lm import SENTENCES, tiny_model, tiny_tokenizer


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "facts.dev.jsonl", *FACTS)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "text.txt", *SENTENCES)


def test_a_set_is_called_what_the_user_calls_it_or_else_as_its_file(facts: Path) -> None:
    named, unnamed = read_sets([f"news={facts}", str(facts)], None)
    assert (named.name, unnamed.name) == ("news", "facts")
    assert named.content == unnamed.content == tuple(read_probes(facts))


def test_a_path_may_hold_an_equals_sign(facts: Path, tmp_path: Path) -> None:
    (tmp_path / "lr=1").mkdir()
    path = facts.rename(tmp_path / "lr=1" / "a=b.jsonl")
    named, unnamed = read_sets([f"news={path}", str(path)], None)
    assert (named.name, unnamed.name) == ("news", "a=b")


def test_the_reference_is_text_or_facts_by_what_the_file_holds(facts: Path, text: Path) -> None:
    assert read_sets([], text)[0].content == tuple(read_corpus(text))
    assert read_sets([], facts)[0].content == tuple(read_probes(facts))


def test_two_sets_of_one_name_are_refused(facts: Path) -> None:
    with pytest.raises(InputError, match="several sets are named news"):
        read_sets([f"news={facts}", f"news={facts}"], None)
    with pytest.raises(InputError, match="several sets are named reference"):
        read_sets([f"reference={facts}"], facts)


def test_a_bad_line_is_named_with_its_file(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "bad.jsonl", FACTS[0], {"prompt": "The capital of Norland is"})
    with pytest.raises(InputError, match=r'bad\.jsonl:2: the field "answer" is missing'):
        read_sets([f"news={path}"], None)


def test_probes_are_scored_on_their_spans_and_text_on_every_token(facts: Path, text: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    scores = score_sets(model, tokenizer, read_sets([f"news={facts}"], text), batch_size=2)
    assert scores == {
        "news": evaluate(model, tokenizer, read_probes(facts), batch_size=2),
        "reference": evaluate_text(model, tokenizer, read_corpus(text), batch_size=2),
    }


SCORES = {"news": Score(2.5, math.exp(2.5), 30, 12, 0.25), "reference": Score(1.125, math.exp(1.125), 4000, 9)}


def test_the_table_shows_every_number_in_80_columns() -> None:
    console = Console(width=80, record=True)
    console.print(score_table(SCORES, title="model"))
    lines = console.export_text().splitlines()
    assert [line.strip("│ ").replace("│", "").split() for line in lines if line.startswith("│")] == [
        ["news", "2.5000", "12.18", "25.0%", "30", "12"],
        ["reference", "1.1250", "3.08", "4000", "9"],
    ]


def test_json_holds_every_score() -> None:
    assert json.loads(scores_to_json(SCORES)) == {name: score.as_dict() for name, score in SCORES.items()}


def test_what_is_not_a_number_is_null_in_json() -> None:
    written = scores_to_json({"news": Score(math.nan, math.inf, 3, 1)})
    assert json.loads(written, parse_constant=lambda name: pytest.fail(name))["news"]["nll"] is None
