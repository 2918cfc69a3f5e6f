"""Several runs in one table and one picture, and runs that cannot be compared."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from localopt.errors import InputError
from localopt.pretraining.compare import comparable, comparison_picture, comparison_table
from localopt.pretraining.history import History
from tests.pretraining.test_results import bound, entry, history


def written(folder: Path, run: History) -> Path:
    for scores in [*run.scores, *([] if run.budget is None else run.budget["path"])]:
        for score in scores["sets"].values():
            score.setdefault("tokens", 100)
    run.save(folder / "history.json")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    plain = history(entry(0, 4.0, 2.0), entry(1, 3.5, 2.25), entry(2, 3.25, 2.5))
    return [written(tmp_path / "plain", plain), written(tmp_path / "bound", bound(0.25))]


def test_the_table_has_a_row_a_run_with_what_it_learned_and_forgot(runs: list[Path]) -> None:
    console = Console(width=200, record=True)
    console.print(comparison_table(comparable(runs)))
    lines = [line for line in console.export_text().splitlines() if line[0] == "│"]
    assert [[cell.strip() for cell in line.strip("│").split("│")] for line in lines] == [
        [str(runs[0]), "online", "0.0001", "75%", "2", "-0.750", "+0.500", ""],
        [str(runs[1]), "online", "0.0001", "75%", "1", "-0.125", "+0.062", "25%"],
    ]


def test_the_picture_is_written(runs: list[Path], tmp_path: Path) -> None:
    comparison_picture(comparable(runs), tmp_path / "picture.png")
    assert matplotlib.image.imread(tmp_path / "picture.png").std() > 0


def test_every_epoch_has_its_number_in_the_picture_and_one_that_was_not_finite_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = history(entry(0, 4.0, 2.0), entry(1, 3.5, 2.25), entry(2, 3.25, 2.5))
    broken = history(entry(0, 4.0, 2.0), entry(1, 3.9, 2.05), entry(2, None, 2.5), entry(3, 3.1, 2.75))
    compared = comparable([written(tmp_path / "whole", whole), written(tmp_path / "broken", broken)])
    assert [run.epochs for run in compared] == [(1, 2), (1, 3)]
    drawn: list[Figure] = []
    monkeypatch.setattr("localopt.pretraining.compare.save_figure", lambda figure, path: drawn.append(figure))
    comparison_picture(compared, tmp_path / "picture.png")
    texts = drawn[0].axes[0].texts
    numbers = sorted((text.get_text(), *map(float, text.xy)) for text in texts if text.get_text().isdigit())
    assert [number[0] for number in numbers] == ["1", "1", "2", "3"]
    for (_, *drawn_at), point in zip(numbers, [(0.05, 0.1), (0.25, 0.5), (0.5, 0.75), (0.75, 0.9)], strict=True):
        assert drawn_at == pytest.approx(point)


def test_another_set_can_be_the_one_that_was_learned(runs: list[Path]) -> None:
    assert [run.learned for run in comparable(runs, "news")] == ["news", "news"]
    with pytest.raises(InputError, match="--set facts: not scored by every run; all scored news"):
        comparable(runs, "facts")


def test_runs_of_other_models_or_on_other_files_are_refused(runs: list[Path], tmp_path: Path) -> None:
    other = written(tmp_path / "other", history(entry(0, 4.0, 2.1), entry(1, 3.5, 2.25)))
    with pytest.raises(InputError, match=r"other: its reference had a loss of 2\.1 over 100 tokens before training"):
        comparable([*runs, other])


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([entry(0, 4.0, 2.0)], "has no scores of after an epoch: finish the run first"),
        ([{"epoch": e, "step": e, "sets": {"news": {"nll": 1.0}}} for e in (0, 1)], "scored no reference"),
        ([entry(0, 4.0, 2.0), entry(1, None, 2.0)], "diverged, its losses are not finite"),
    ],
)
def test_runs_without_an_answer_are_refused(scores: list[dict[str, object]], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        comparable([written(tmp_path / "run", history(*scores))])


def test_a_folder_that_is_no_run_and_a_run_named_twice_are_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not the history of a run"):
        comparable([*runs, tmp_path])
    with pytest.raises(InputError, match="named twice"):
        comparable([runs[0], runs[0]])
