"""The table and the picture of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from rich.console import Console

from localopt.pretraining.history import History
from localopt.pretraining.results import history_table, save_picture


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
    ]


def test_the_table_says_how_much_a_step_changed_where_not_all() -> None:
    some = history(entry(0, 4.0, 2.0), entry(1, 3.5, 2.25, share_updated=0.4, updated_layers=["lm_head"]))
    assert [row[-1] for row in rows(some)] == ["last step changed", "", "40%"]
    everything = history(entry(0, 4.0, 2.0), entry(1, 3.5, 2.25, share_updated=1.0, updated_layers=["lm_head"]))
    assert [row[-1] for row in rows(everything)] == ["reference", "2.000", "2.250"]


def test_the_table_says_where_a_run_diverged() -> None:
    assert rows(history(entry(0, 4.0, 2.0), entry(1, None, 2.25)))[-1] == ["epoch 1", "not finite (25%)", "2.250"]


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
