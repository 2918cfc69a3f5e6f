"""The file that says what a run was asked and how it did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from localopt.errors import InputError
from localopt.pretraining.history import History, fingerprint
from tests.tiny_files import contents, full_disk


def entry(step: int, **nll: float | None) -> dict[str, Any]:
    sets = {name: {"nll": value, "ranked_first": None} for name, value in nll.items()}
    return {"epoch": step // 10, "step": step, "sets": sets}


HISTORY = History(
    {"method": "online", "lr": 1e-4},
    {"corpus": "0" * 16},
    [entry(0, news=4.0, reference=2.0), entry(10, news=3.0, reference=2.25), entry(20, news=2.5, reference=2.5)],
    trained_parameters=10,
    all_parameters=40,
)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    HISTORY.save(tmp_path / "new" / "history.json")
    assert History.load(tmp_path / "new" / "history.json") == HISTORY


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"unknown": 1}', "null"])
def test_a_file_that_is_no_history_is_refused_by_name(text: str, tmp_path: Path) -> None:
    (tmp_path / "history.json").write_text(text)
    with pytest.raises(InputError, match=r"history\.json: is not the history of a run"):
        History.load(tmp_path / "history.json")


def test_a_full_disk_leaves_the_older_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    History({}).save(path)
    before = contents(tmp_path)
    with full_disk(200), pytest.raises(InputError, match=r"history\.json: cannot be written: File too large"):
        HISTORY.save(path)
    assert contents(tmp_path) == before


def test_a_run_asked_the_same_may_go_on() -> None:
    assert HISTORY.refuse_other(HISTORY.settings, HISTORY.inputs, Path("out")) is None


def test_what_differs_from_the_first_start_is_named() -> None:
    with pytest.raises(InputError) as error:
        HISTORY.refuse_other({"method": "full", "lr": 1e-4}, {"corpus": "1" * 16, "trace": "2" * 16}, Path("out"))
    assert str(error.value) == (
        "out: this run was started with method online, not full; another corpus; trace on one side only: "
        "resume it as it was started."
    )


def test_uptake_is_the_fall_of_a_sets_loss_and_forgetting_the_rise_of_the_references() -> None:
    assert HISTORY.uptake_and_forgetting("reference") == {"news": [(0.25, 1.0), (0.5, 1.5)]}


def test_without_the_reference_there_is_nothing_to_compare() -> None:
    assert HISTORY.uptake_and_forgetting("other") == {}


def test_an_epoch_whose_loss_is_not_finite_is_left_out() -> None:
    history = History({}, scores=[*HISTORY.scores, entry(30, news=None, reference=2.5)])
    assert history.uptake_and_forgetting("reference") == HISTORY.uptake_and_forgetting("reference")


def test_fingerprints_differ_where_the_parts_do() -> None:
    kinds = [["a", "b"], ["b", "a"], ["ab"], ["a"], [("a", "b")], []]
    assert len({fingerprint(parts) for parts in kinds}) == len(kinds)
