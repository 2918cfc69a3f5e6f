"""The table and the picture of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from rich.console import Console

from localopt.pretraining.history import History
from localopt.pretraining.results import budget_table, history_table, save_picture


def entry(epoch: int, news: float | None, reference: float, **more: Any) -> dict[str, Any]:
    sets = {"news": {"nll": news, "ranked_first": 0.25}, "reference": {"nll": reference, "ranked_first": None}}
    return {"epoch": epoch, "step": 10 * epoch, "sets": sets, **more}


def history(*scores: dict[str, Any]) -> History:
    return History({"method": "online", "lr": 1e-4}, {}, list(scores), trained_parameters=30, all_parameters=40)


def rows(run: History) -> list[list[str]]:
    console = Console(width=80, record=True)
    console.print(history_table(run))
    lines = console.export_text().splitlines()
    return [
        [cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")] for line in lines if line[0] in "│┃"
    ]


def test_the_table_has_a_row_an_epoch() -> None:
    assert rows(history(entry(0, 4.0, 2.0), entry(1, 3.5, 2.25))) == [
        ["", "news", "reference"],
        ["before", "4.000 (25%)", "2.000"],
        ["epoch 1", "3.500 (25%)", "2.250"],
        ["change", "-0.500", "+0.250"],
    ]


def test_the_table_says_how_much_a_step_changed_where_not_all() -> None:
    some = history(entry(0, 4.0, 2.0), entry(1, 3.5, 2.25, share_updated=0.4, updated_layers=["lm_head"]))
    assert [row[-1] for row in rows(some)] == ["last step changed", "", "40%", ""]
    everything = history(entry(0, 4.0, 2.0), entry(1, 3.5, 2.25, share_updated=1.0, updated_layers=["lm_head"]))
    assert [row[-1] for row in rows(everything)] == ["reference", "2.000", "2.250", "+0.250"]


def test_the_table_says_where_a_run_diverged() -> None:
    diverged = rows(history(entry(0, 4.0, 2.0), entry(1, None, 2.25)))
    assert diverged[-2:] == [["epoch 1", "not finite (25%)", "2.250"], ["change", "not finite", "+0.250"]]


def bound(share: float) -> History:
    """A run with a budget of .1 that ended at a share of its way."""
    run = history(entry(0, 4.0, 2.0), entry(1, 3.5, 2.25))
    run.budget = {
        "rise": 0.1,
        "share": share,
        "path": [{"share": at, "sets": entry(0, 4 - at / 2, 2 + at / 4)["sets"]} for at in (0.0, 0.25, 0.5, 1.0)],
    }
    return run


def test_with_a_budget_the_change_is_that_of_the_model_that_was_kept() -> None:
    assert rows(bound(0.25))[-1] == ["change, 25.0% of the way", "-0.125", "+0.062"]


def test_the_way_back_is_a_table_with_every_share_that_was_tried() -> None:
    console = Console(width=100, record=True)
    console.print(budget_table(bound(0.25)))
    printed = console.export_text()
    found = [[cell.strip() for cell in line.strip("│").split("│")] for line in printed.splitlines() if line[0] == "│"]
    assert found == [
        ["0.0%", "4.000 (25%)", "2.000", "+0.000"],
        ["25.0%", "3.875 (25%)", "2.062", "+0.062"],
        ["50.0%", "3.750 (25%)", "2.125", "+0.125"],
        ["100.0%", "3.500 (25%)", "2.250", "+0.250"],
    ]
    assert "OUT/model-end is the end of training" in " ".join(printed.split())


def test_the_table_says_what_became_of_the_budget() -> None:
    for share, said in ((0.0, "not even 25.0%: OUT/model is the start, unchanged"), (1.0, "keeps to the budget")):
        console = Console(width=200, record=True)
        console.print(budget_table(bound(share)))
        assert said in " ".join(console.export_text().split())


def test_the_way_back_is_in_the_picture(tmp_path: Path) -> None:
    assert bound(0.25).way_back("reference") == {"news": [(0.25, 0.5), (0.125, 0.25), (0.0625, 0.125)]}
    assert save_picture(bound(0.25), tmp_path / "budget.png") is not None
    save_picture(history(entry(0, 4.0, 2.0), entry(1, 3.5, 2.25)), tmp_path / "plain.png")
    assert (tmp_path / "budget.png").read_bytes() != (tmp_path / "plain.png").read_bytes()


def test_the_title_says_what_could_change(capsys: pytest.CaptureFixture[str]) -> None:
    Console(width=200).print(history_table(history(entry(0, 4.0, 2.0))))
    assert "75% of" in " ".join(capsys.readouterr().out.split())


def test_the_picture_is_written(tmp_path: Path) -> None:
    path = save_picture(history(entry(0, 4.0, 2.0), entry(1, 3.5, 2.25)), tmp_path / "picture.png")
    assert path is not None
    assert matplotlib.image.imread(path).std() > 0
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]


def test_there_is_no_picture_without_an_epoch_to_show(tmp_path: Path) -> None:
    assert save_picture(history(entry(0, 4.0, 2.0)), tmp_path / "picture.png") is None
    assert save_picture(history(entry(0, 4.0, 2.0), entry(1, None, 2.0)), tmp_path / "picture.png") is None
    assert not list(tmp_path.iterdir())
