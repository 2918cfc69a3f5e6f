"""Two runs never share a folder, and a run that died does not keep it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from localopt.errors import InputError
from localopt.pretraining.history import refuse_taken
from localopt.pretraining.lock import LOCK, alone_in_its_folder, held, refuse_held
from tests.tiny_files import contents

HOLDER = """
import sys, time
from pathlib import Path
from localopt.pretraining.lock import held
with held(Path(sys.argv[1])):
    (Path(sys.argv[1]) / "work").touch()
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path / "out"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_folder_in_which_another_process_works_is_refused_and_the_process_named(
    other: subprocess.Popen[str], tmp_path: Path
) -> None:
    before = contents(tmp_path)
    expected = rf"out: another run is at work in it \(process {other.pid} on {socket.gethostname()}, since \d"
    with pytest.raises(InputError, match=expected):
        refuse_held(tmp_path / "out")
    with pytest.raises(InputError, match=expected), held(tmp_path / "out"):
        pass
    assert contents(tmp_path) == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_died_keeps_no_lock(other: subprocess.Popen[str], tmp_path: Path, number: int) -> None:
    other.send_signal(number)
    other.wait()
    assert (tmp_path / "out" / LOCK).exists()
    refuse_held(tmp_path / "out")
    with held(tmp_path / "out"):
        assert json.loads((tmp_path / "out" / LOCK).read_text())["process"] == os.getpid()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["work"]


@pytest.mark.parametrize(("age", "alive"), [(0, True), (3600, False)])
def test_a_lock_of_another_machine_counts_while_it_is_touched(tmp_path: Path, age: float, alive: bool) -> None:
    (tmp_path / LOCK).write_text(json.dumps({"process": 7, "machine": "elsewhere", "since": "noon"}))
    os.utime(tmp_path / LOCK, (time.time() - age,) * 2)
    if alive:
        with pytest.raises(InputError, match=r"process 7 on elsewhere, since noon"):
            refuse_held(tmp_path)
    else:
        with held(tmp_path):
            pass
        assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00", '{"machine": 7}'])
def test_a_lock_file_that_says_nothing_is_no_obstacle(tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK).write_text(text)
    with held(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()
    assert not (tmp_path / LOCK).exists()


def test_a_folder_made_for_the_lock_goes_with_it_and_another_stays(tmp_path: Path) -> None:
    with held(tmp_path / "new"):
        assert (tmp_path / "new" / LOCK).exists()
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with held(tmp_path / "old"):
        pass
    assert (tmp_path / "old").is_dir()


def test_a_function_holds_the_folder_it_writes_to(tmp_path: Path) -> None:
    @alone_in_its_folder
    def work(out: Path, fails: bool) -> int:
        with pytest.raises(InputError, match="another run is at work"), held(out):
            pass
        if fails:
            raise RuntimeError("on the way")
        return 3

    assert work(tmp_path / "out", fails=False) == 3
    with pytest.raises(RuntimeError, match="on the way"):
        work(fails=True, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_whose_run_died_before_it_had_begun_is_taken_and_held(tmp_path: Path) -> None:
    @alone_in_its_folder
    def work(out: Path) -> None:
        refuse_taken(out, resume=True)
        refuse_taken(out, resume=False)
        with pytest.raises(InputError, match="another run is at work"), held(out):
            pass
        (out / "history.partial").replace(out / "history.json")

    (tmp_path / LOCK).write_text('{"proc')
    (tmp_path / "history.partial").write_text('{"sett')
    work(tmp_path)
    assert sorted(contents(tmp_path)) == ["history.json"]


def test_a_folder_that_holds_something_of_the_users_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    (tmp_path / "notes").touch()
    with pytest.raises(InputError, match="exists and is not empty"):
        refuse_taken(tmp_path, resume=True)
