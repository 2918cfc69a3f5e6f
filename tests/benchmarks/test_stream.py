"""A stream from data to picture: periods apart, each taught from where the last one ended, and what is said of it."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.lifelong import prepare
from benchmarks.lifelong.exam.exam import Exam
from benchmarks.lifelong.methods.methods import METHODS
from benchmarks.lifelong.report import stream as report
from benchmarks.lifelong.start import model_of
from benchmarks.lifelong.stream.__main__ import main
from benchmarks.lifelong.stream.periods import divide, period_of
from benchmarks.lifelong.stream.stream import Cell, StreamRecords, cells
from localopt.errors import InputError
from localopt.pretraining.models import load_model
from tests.benchmarks.invented import save_learned_model, write_data

METHODS_RUN = ["adamw@1e-2", "selective@1e-2", "anchor@2e-3", "gain-damage-fp"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = write_data(tmp_path_factory.mktemp("data"))
    model = save_learned_model(data, tmp_path_factory.mktemp("models") / "tiny")
    out = tmp_path_factory.mktemp("prepared") / "p"
    prepare.main(["--data", str(data), "--out", str(out), "--model", str(model)])
    model.rename(out / "model")
    return out


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Path:
    """A finished stream; only read."""
    folder = tmp_path_factory.mktemp("streams") / "stream"
    main(arguments(prepared, folder))
    return folder


def arguments(prepared: Path, out: Path, *more: str) -> list[str]:
    given = ["--data", str(prepared), "--out", str(out), "--smoke", "--lrs", "2e-2"]
    return [*given, "--methods", *METHODS_RUN, *more]


def runs(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()][2:]


def passages(folder: Path, split: str) -> set[str]:
    return {json.loads(line)["text"] for line in (folder / f"corpus_train.{split}.jsonl").read_text().splitlines()}


def test_periods_share_nothing_and_teach_all_that_is_taught(prepared: Path, tmp_path: Path) -> None:
    periods = divide(prepared, tmp_path)
    read = [passages(period.folder, "dev") for period in periods]
    assert len(periods) == 4
    assert all(read)
    assert sum(map(len, read)) == len(set().union(*read))
    assert set().union(*read) == passages(prepared, "dev") | passages(prepared, "test")
    _, tokenizer = load_model(model_of(prepared))
    items = Exam(prepared, tokenizer).items
    for item, of in zip(items, period_of(items, periods), strict=True):
        assert (of >= 0) is (item.part in "AB")
        assert of < 0 or item.group in periods[of].groups


def test_another_seed_has_the_same_periods_in_another_order(prepared: Path, tmp_path: Path) -> None:
    orders = [[p.groups for p in divide(prepared, tmp_path / str(seed), seed)] for seed in range(4)]
    assert all(set(order) == set(orders[0]) for order in orders)
    assert any(order != orders[0] for order in orders)


def test_too_few_facts_for_so_many_periods_are_refused(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"half A has \d+ independent facts, too few for 50 periods"):
        divide(prepared, tmp_path, count=100)


def test_a_method_that_decays_is_run_toward_both_starts_and_others_once(out: Path) -> None:
    found = [(run["method"], run["anchor"]) for run in runs(out)]
    decayed = [(name, anchor) for name in ("selective", "anchor") for anchor in ("first", "last")]
    assert found == [("adamw", "none"), *decayed, ("gain-damage-fp", "none")]
    assert [name for name in METHODS if METHODS[name].decays] == [
        name
        for name in METHODS
        if any(word in name for word in ("anchor", "selective", "cautious", "recadam", "chosen"))
    ]


def test_the_anchor_is_the_same_in_the_first_period_and_another_afterwards(out: Path) -> None:
    first, last = (run for run in runs(out) if run["method"] == "anchor")
    assert first["periods"][0]["taught"] == last["periods"][0]["taught"]
    assert first["periods"][1]["taught"] != last["periods"][1]["taught"]


def test_every_period_begins_where_the_last_one_ended_and_is_written_about_up_to_then(out: Path) -> None:
    for run in runs(out):
        answers = [period["taught"] for period in run["periods"]]
        assert all(one != other for one, other in pairwise(answers))
        asked = [{run["period_of"][place] for place in period["written"]["asked"]} for period in run["periods"]]
        assert asked == [{0}, {0, 1}, {0, 1, 2}, {0, 1, 2, 3}]
        assert sorted(run["path"]) == ["0.25", "0.5", "0.75"]


def test_every_period_is_traced_anew(out: Path) -> None:
    (traced,) = (run for run in runs(out) if run["method"] == "gain-damage-fp")
    assert len({tuple(period["scales"]) for period in traced["periods"]}) > 1


def test_a_stream_that_was_killed_goes_on_where_it_was(out: Path, prepared: Path, tmp_path: Path) -> None:
    text = (out / "runs.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "runs.jsonl").write_text("".join(text[:6]) + text[6][:100])  # in the middle of a line
    main(arguments(prepared, tmp_path, "--resume"))
    for run, whole in zip(runs(tmp_path), runs(out), strict=True):
        assert [p["taught"] for p in run["periods"]] == [p["taught"] for p in whole["periods"]]
        assert (run["method"], run["anchor"], run["path"]) == (whole["method"], whole["anchor"], whole["path"])


def test_a_method_may_have_a_rate_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert cells(["adamw@1e-2", "lora"], [1e-4, 2e-4], ["last"], [0]) == [
        *(Cell("adamw", 1e-2, "none", 0), Cell("lora", 1e-4, "none", 0), Cell("lora", 2e-4, "none", 0))
    ]
    for wrong, because in (("adamwx", "no such method"), ("adamw@fast", "fast is no rate")):
        with pytest.raises(SystemExit):
            main(["--data", "x", "--out", "y", "--methods", wrong])
        assert because in capsys.readouterr().err


def test_the_report_says_what_is_known_of_every_period(out: Path, tmp_path: Path) -> None:
    report.main([str(out / "runs.jsonl"), "--out", str(tmp_path)])
    table = (tmp_path / "stream.md").read_text()
    assert "| AdamW, selective anchor decay | 0.01 | the last start | 1 |" in table
    assert "nan" not in table
    assert (tmp_path / "stream.png").stat().st_size > 10_000


def test_accuracy_is_that_of_ranking_the_right_answer_first(out: Path) -> None:
    found = report.Streams(StreamRecords.read([out / "runs.jsonl"]))
    run = runs(out)[0]
    exam = json.loads((out / "runs.jsonl").read_text().splitlines()[0])
    taught = [(of, item) for of, item in zip(run["period_of"], exam["items"], strict=True) if of >= 0]
    shares = np.zeros((4, 4))
    for after, period in enumerate(run["periods"]):
        right: dict[int, list[bool]] = {}
        for (of, item), nll in zip(taught, period["taught"], strict=True):
            wrong = nll[1:-1] if item["old"] else nll[1:]
            right.setdefault(of, []).append(all(nll[0] < other for other in wrong))
        shares[after] = [np.mean(right[of]) for of in range(4)]
    np.testing.assert_allclose(found.known["adamw", 1e-2, "none"].accuracy[1:], shares)


def test_a_report_without_adamw_says_what_to_run(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = [line for line in (out / "runs.jsonl").read_text().splitlines() if '"adamw"' not in line]
    (tmp_path / "runs.jsonl").write_text("\n".join(kept))
    with pytest.raises(SystemExit):
        report.main([str(tmp_path / "runs.jsonl"), "--out", str(tmp_path)])
    assert "no stream of adamw yet" in capsys.readouterr().err
