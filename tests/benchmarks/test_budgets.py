"""What a budget of forgetting buys, beside AdamW at the rate that is best for it."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.lifelong.report.budgets import DataSet, Wanted, against, main, table
from benchmarks.lifelong.report.records import Records
from localopt.errors import InputError
from tests.benchmarks.test_lifelong_statistics import records

SELECTIVE = Wanted("selective", 1e-4)
BLOCK = Wanted("selective-block", 1e-4)


def with_other(uptake: float) -> Records:
    """AdamW whose uptake is 1 and whose text rises by .25, at 1e-4, and another that takes in more for it."""
    found = records(uptake=1.0)
    for run in records(uptake=uptake).runs:
        found.runs.append({**run, "method": "selective"})
    return found


def saved(found: Records, file: Path) -> Path:
    assert found.exam is not None
    items = [{**item, "tokens": [1, 1, 1][: 2 + item["old"]]} for item in found.exam["items"]]
    rows = [{"kind": "exam", **found.exam, "items": items}, {"kind": "start", **found.starts["s"]}]
    rows += [{"kind": "run", **run} for run in found.runs]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def test_a_budget_buys_what_the_path_has_taken_in_where_the_text_has_risen_by_it() -> None:
    found = DataSet(with_other(2.0), draws=50)
    made = table(found, [SELECTIVE], budgets=(0.05, 0.1))
    assert made.rows[0][3:] == ["0.20 nats (0.0001)", "0.40 nats (0.0001)"]  # .05 and .1 of the rise of .25
    assert [cell.split()[0] for cell in made.rows[1][3:]] == ["2.00", "2.00"]


def test_a_budget_that_no_training_uses_up_is_marked_as_a_lower_bound() -> None:
    made = table(DataSet(with_other(2.0), draws=50), [SELECTIVE], budgets=(0.2, 0.4))
    assert [cell.startswith(">= ") for cell in made.rows[1][3:]] == [False, True]


def test_adamw_stands_beside_at_the_rate_that_is_best_for_each_budget() -> None:
    found = with_other(2.0)
    for run in records(uptake=1.6).runs:
        run = copy.deepcopy(run)
        for share, point in run["points"].items():  # its text rises fast at first, and hardly more afterwards
            point["text"] = [3.0 + n + 0.3 * min(1.0, 4 * float(share)) for n in range(6)]
        found.runs.append({**run, "lr": 2e-4})
    means, draws, rates = DataSet(found, draws=20).adamw([("A", 0), ("B", 0)], np.array([0.05, 0.31]))
    assert rates == [1e-4, 2e-4]
    np.testing.assert_allclose(means, [0.2, 1.6])
    assert draws.shape == (20, 2)


def test_a_name_with_a_star_is_the_mean_of_what_matches() -> None:
    found = with_other(2.0)
    for run in records(uptake=4.0).runs:
        found.runs.append({**run, "method": "selective-block"})
    made = table(DataSet(found, draws=20), [Wanted("selective*", 1e-4)], budgets=(0.1,))
    assert made.rows[1][3].startswith("3.00")


def test_without_adamw_on_the_same_halves_and_seeds_there_is_nothing_to_compare_with() -> None:
    found = with_other(2.0)
    found.runs = [run for run in found.runs if run["method"] != "adamw" or run["half"] == "A"]
    with pytest.raises(InputError, match="B, seed 0: run it on all"):
        table(DataSet(found, draws=5), [SELECTIVE])


def test_the_command_writes_a_table_and_a_picture_of_each_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = saved(with_other(2.0), tmp_path / "runs.jsonl")
    sets, methods = [f"One={file}", f"Two={file}"], ["--methods", "selective@1e-4=what wins"]
    main([*sets, *methods, "--out", str(tmp_path / "page"), "--draws", "20"])
    page = (tmp_path / "page" / "budgets.md").read_text()
    for part in ("**One**", "**Two**", "| what wins |", "2.00 (2.00 to 2.00)"):
        assert part in page
    assert page in capsys.readouterr().out
    assert (tmp_path / "page" / "budgets.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["One", "--methods", "selective@1"], "not NAME=FILE"),
        (["One=FILE", "--methods", "selective"], "not NAME@RATE"),
        (["One=FILE", "--methods", "nothing@1"], "no such method"),
        (["One=FILE", "--methods", "selective@1"], "no run of selective at 1 "),
    ],
)
def test_what_is_not_understood_is_said(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = with_other(2.0)
    file = saved(found, tmp_path / "runs.jsonl")
    given = [text.replace("FILE", str(file)) for text in arguments]
    with pytest.raises(SystemExit, match="2"):
        main([*given, "--out", str(tmp_path / "page"), "--draws", "5"])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "page").exists()


def test_a_method_is_divided_by_another_where_both_were_run(tmp_path: Path) -> None:
    found = with_other(3.0)
    for run in records(uptake=2.0).runs:
        if run["half"] == "A":
            found.runs.append({**run, "method": "selective-block"})
    made = against(DataSet(found, draws=20), [SELECTIVE, BLOCK], BLOCK, budgets=(0.1,))
    assert [row[2] for row in made.rows] == ["A0"]  # and the other is not beside itself
    assert made.rows[0][3].startswith("1.50 ")
    file = saved(found, tmp_path / "runs.jsonl")
    out = ["--against", "selective-block@1e-4=blocks", "--draws", "20", "--out", str(tmp_path / "out")]
    main([f"Facts={file}", "--methods", "selective@1e-4", *out])
    assert "**Facts, relative to: blocks**" in (tmp_path / "out" / "budgets.md").read_text()
