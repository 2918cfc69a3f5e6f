"""The file that says what a run was asked and how it did."""

from __future__ import annotations

import os
import signal
import time
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


def test_it_is_on_the_disk_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a power cut may find: a name is only ever given to a file that was seen onto the disk, then itself is."""
    steps: list[tuple[str, str]] = []
    replace, fsync = os.replace, os.fsync

    def seen_to_disk(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        steps.append(("fsync", path.name if path.is_dir() else path.read_text()))
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        steps.append(("rename", source.read_text()))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", seen_to_disk)
    monkeypatch.setattr(os, "replace", renamed)
    HISTORY.save(tmp_path / "run" / "history.json")
    written = (tmp_path / "run" / "history.json").read_text()
    assert steps == [("fsync", written), ("rename", written), ("fsync", "run")]


def test_whenever_its_writer_is_killed_the_old_or_the_new_one_is_there(tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    short, long = History(HISTORY.settings), History(HISTORY.settings, scores=HISTORY.scores * 20)
    for kill in range(20):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            while True:
                long.save(path)
                os.write(writer, b".")
                short.save(path)
        os.read(reader, 1)  # it is at work
        time.sleep(0.001 * kill)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)
        os.close(writer)
        assert History.load(path) in (short, long)


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
