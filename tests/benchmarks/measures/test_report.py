"""What is said of runs with measures: figures and noise computed by hand, the table, the picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.lifelong.measures import report
from benchmarks.lifelong.measures.measuring import MeasureRecords
from localopt.errors import InputError

GROUPS = [f"A{number}" for number in range(40)]
LAYERS = {"dependency": {"0": 0.5, "2": 0.75}}


def run(method: str, lr: float, half: str, **more: Any) -> dict[str, Any]:
    return {"kind": "run", "start": "s", "method": method, "lr": lr, "half": half, "seed": 0, **more}


def rows() -> list[dict[str, Any]]:
    """The start knows a quarter, AdamW half, one method the same half but for one question, one of them all but one."""
    start = {"generality": [1, 0, 0, 0] * 10, "text": [1.0] * 40, "context, first": [0.5] * 40}
    groups = dict.fromkeys(start, GROUPS)
    half = [1, 0] * 20
    nearly, most = [*half[:-2], 0, 0], [1] * 39 + [0]
    known = {"kind": "exam", "inputs": {}, "items": []}
    found = [known, run("start", 0.0, "A", measures=start, groups=groups, weights={"text": [2] * 40}, layers=LAYERS)]
    for method, lr, values, nll in (("adamw", 6e-4, half, 4.0), ("lora", 1e-3, nearly, 4.0), ("mlp", 1e-3, most, 2.0)):
        measures = {"generality": values, "text": [nll] * 40, "context, first": [0.25] * 40}
        layers = {"dependency": {"0": 0.5, "2": 0.80}}
        found.append(run(method, lr, "A", measures=measures, layers=layers))
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return path


def test_figures_are_those_of_the_answers(file: Path) -> None:
    board = report.Board(MeasureRecords.read([file]))
    found = {report.label(key): taken.value for key, taken in board.taken["generality"].items()}
    assert found == {"start": 0.25, "adamw 0.0006": 0.5, "lora 0.001": 19 / 40, "mlp 0.001": 39 / 40}
    text = {report.label(key): taken.value for key, taken in board.taken["text"].items()}
    assert text["start"] == pytest.approx(np.exp(0.5))  # one nat on two tokens
    assert text["adamw 0.0006"] == pytest.approx(np.exp(2))


def test_the_best_is_bold_and_what_noise_explains_is_told_from_what_it_does_not(file: Path) -> None:
    board = report.Board(MeasureRecords.read([file]))
    adamw, lora, mlp = board.methods
    assert board.best("generality") == mlp
    assert board.within_noise("generality", lora, adamw)
    assert not board.within_noise("generality", lora, mlp)
    lines = {line[1]: line[2:] for line in report.table(board).rows}
    assert lines["generality"] == ["0.25", "0.50", "0.47", "**0.97**"]
    assert lines["text ↓"] == ["1.6", "7.4", "7.4", "**2.7**"]
    assert lines["context, first"] == ["0.50", "0.25", "0.25", "0.25"]  # no side is better
    ((one, better, worse), (other, more, less)) = report.against(board).rows
    assert (one, better, worse) == ("lora 0.001", "nothing", "nothing")
    assert (other, more, less) == ("mlp 0.001", "generality +0.47, text -4.7", "nothing")


def test_resampling_draws_whole_groups_and_the_same_ones_for_all() -> None:
    values, groups = [1.0, 1.0, 0.0, 0.0], ["a", "a", "b", "b"]
    drawn = report.resampled(values, groups, [1] * 4, perplexity=False)
    assert set(drawn) == {0.0, 0.5, 1.0}
    assert np.mean(drawn == 0.5) == pytest.approx(0.5, abs=0.05)
    other = report.resampled([0.0, 0.0, 1.0, 1.0], groups, [1] * 4, perplexity=False)
    np.testing.assert_allclose(drawn + other, 1.0)


def test_the_report_writes_a_table_and_a_picture(file: Path, tmp_path: Path) -> None:
    report.main([str(file), "--out", str(tmp_path / "page")])
    assert "| KnowEdit | generality | 0.25 |" in (tmp_path / "page" / "measures.md").read_text()
    assert (tmp_path / "page" / "measures.png").stat().st_size > 10_000


def test_methods_that_lack_a_half_are_left_out_and_named(tmp_path: Path) -> None:
    half_b = [row | {"half": "B"} for row in rows()[1:4]]  # without the last method
    records = MeasureRecords()
    for row in [*rows(), *half_b]:
        records.add(row)
    board = report.Board(records)
    assert [key[0] for key in board.methods] == ["adamw", "lora"]
    assert "Without mlp, which lack one of them" in report.table(board).note
    assert [key[0] for key in report.Board(records, ["A"]).methods] == ["adamw", "lora", "mlp"]


def test_runs_without_a_start_or_without_a_method_are_refused() -> None:
    records = MeasureRecords()
    for row in [rows()[0], rows()[2]]:
        records.add(row)
    with pytest.raises(InputError, match="the start was not measured on A"):
        report.Board(records)
    only_start = MeasureRecords()
    for row in rows()[:2]:
        only_start.add(row)
    with pytest.raises(InputError, match="no method has been run on A yet"):
        report.Board(only_start)
