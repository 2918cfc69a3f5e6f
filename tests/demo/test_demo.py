"""`localopt demo` with a tiny model in place of the real one: the same way from the command to the verdict."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console

from localopt.cli import main
from localopt.demo import run as demo
from localopt.demo.exam import Marks
from localopt.demo.experiment import Outcome, Result, experiment
from localopt.demo.folder import filled
from localopt.demo.lessons import read_lessons
from localopt.demo.methods import METHODS
from localopt.demo.path import Path as MarkedPath
from localopt.demo.progress import Progress
from localopt.demo.run import run_demo
from localopt.demo.tiny import Size
from localopt.demo.tiny import run_demo as run_tiny
from localopt.demo.training import Effort
from localopt.demo.verdict import verdict
from localopt.errors import InputError
from localopt.pretraining.models import load_model
from tests.tiny_lm import tiny_model, tiny_tokenizer

EFFORT = Effort(epochs=1)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def quick(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Outcome]:
    """One run: its folder, what it printed, what it returned."""
    out = tmp_path_factory.mktemp("demo") / "out"
    printed = io.StringIO()
    outcome = run_demo(out, str(model), console=Console(file=printed, width=80), effort=EFFORT)
    assert outcome is not None
    return out, printed.getvalue(), outcome


def test_it_ends_with_every_method_the_answers_written_and_a_verdict_in_80_columns(
    quick: tuple[Path, str, Outcome],
) -> None:
    _, printed, outcome = quick
    assert [result.method for result in outcome.results] == [method.name for method in METHODS]
    for place in outcome.lessons.shown:
        asked = outcome.lessons.taught[place]
        assert f"{asked.prompt} … {asked.answers[0]}" in printed
    assert "Verdict." in printed
    assert "…" not in printed.replace(" … ", ""), "nothing is cut off"
    assert max(map(len, printed.splitlines()[:-1])) <= 80


def test_the_folder_holds_the_picture_and_the_numbers_that_were_printed(quick: tuple[Path, str, Outcome]) -> None:
    out, printed, outcome = quick
    assert (out / "learning-forgetting.png").read_bytes().startswith(b"\x89PNG")
    numbers = json.loads((out / "results.json").read_text())
    assert [row["method"] for row in numbers["results"]] == [method.name for method in METHODS]
    for row, result in zip(numbers["results"], outcome.results, strict=True):
        assert row["path"]["marks"][-1]["page"] == result.path.marks[-1].page
    assert numbers["verdict"] in " ".join(printed.split())
    assert [path.name for path in out.parent.iterdir()] == ["out"], "no partial folder is left behind"


def test_every_method_starts_from_the_same_weights_and_leaves_them_as_they_were(model: Path, tmp_path: Path) -> None:
    network, tokenizer = load_model(str(model))
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    with Progress() as progress:
        outcome = experiment(network, tokenizer, read_lessons(), EFFORT, tmp_path, progress)
    assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())
    assert all(weight.requires_grad for weight in network.parameters())
    assert len({result.path.marks[0] for result in outcome.results}) == 1
    ends = [result.path.marks[-1] for result in outcome.results]
    assert len(set(ends)) == len(METHODS), "each of them trained, and differently"


@pytest.mark.parametrize("made", ["a file", "a folder with a file", "a folder in a folder that is not there"])
def test_an_unusable_folder_is_refused_before_any_work(tmp_path: Path, made: str) -> None:
    out = tmp_path / "out"
    if made == "a file":
        out.write_text("mine")
    elif made == "a folder with a file":
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    else:
        out = tmp_path / "no" / "out"
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="out"):
        run_demo(out, str(tmp_path / "a model that would be refused next"))
    assert sorted(tmp_path.rglob("*")) == before


def test_without_the_model_and_without_a_network_the_miniature_runs_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(
        demo,
        "run_tiny",
        partial(run_tiny, size=Size(world=0.1, hidden=16, blocks=1, epochs=1, news_epochs=1, traced=4)),
    )
    printed = io.StringIO()
    assert run_demo(tmp_path / "out", console=Console(file=printed)) is None
    said = capsys.readouterr().err
    assert "cannot be fetched" in said
    assert "miniature" in said
    assert "SmolLM2" not in printed.getvalue(), "nothing is claimed that was not run"
    assert (tmp_path / "out" / "results.json").is_file()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a POSIX timer")
def test_an_interrupted_demo_leaves_nothing_behind(model: Path, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 1)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_demo(tmp_path / "out", str(model), console=Console(file=io.StringIO()), effort=Effort(epochs=1000))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_filled_whole_is_not_there(tmp_path: Path) -> None:
    def half() -> None:
        with filled(tmp_path / "out") as folder:
            (folder / "half").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert not list(tmp_path.iterdir())


def test_a_miniature_with_a_model_of_ones_own_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--tiny", "--model", "some"])
    assert stop.value.code == 2
    assert "--tiny" in capsys.readouterr().err


def test_a_log_gets_a_line_a_stage_and_a_terminal_a_bar() -> None:
    log, screen = io.StringIO(), io.StringIO()
    for console in (Console(file=log), Console(file=screen, force_terminal=True, width=80)):
        with Progress(console) as progress:
            progress.expect(2)
            progress.stage("first")
            progress.advance()
            progress.stage("second")
    lines = log.getvalue().splitlines()
    assert [line.split()[2] for line in lines] == ["first", "second"]
    assert "left" in lines[1]
    assert "left" not in lines[0], "nothing was done yet that could tell"
    assert "50%" in screen.getvalue()


# -- the verdict -----------------------------------------------------------------------------------------------------


def result(name: str, *points: tuple[float, float]) -> Result:
    """A method with (rise of the page, mean score) at each stop."""
    marks = tuple(Marks(0.0, (score, score), 0.0, 3.0 + rise) for rise, score in points)
    return Result(name, 1e-3, 1.0, 1.0, MarkedPath(marks), ())


BASE = result("AdamW", (0.0, -2.0), (0.2, -1.0), (0.4, 0.0))


@pytest.mark.parametrize(("end", "times"), [(2.0, "2.00"), (-1.0, "0.50"), (0.0, "1.00")])
def test_the_verdict_says_what_the_numbers_say(end: float, times: str) -> None:
    other = result("other", (0.0, -2.0), (0.4, end))
    assert f"by other {times} times ({times} to {times}) as much was taken in as by AdamW" in verdict([BASE, other])


def test_the_verdict_calls_a_lower_bound_one() -> None:
    assert "by other at least 2.00 times" in verdict([BASE, result("other", (0.0, -2.0), (0.01, 0.0))])


def test_the_verdict_compares_nothing_where_nothing_was_forgotten() -> None:
    unharmed = result("AdamW", (0.0, -2.0), (-0.1, -1.5))
    said = verdict([unharmed, result("other", (0.0, -2.0), (0.4, 0.0))])
    assert "AdamW took in 0.50 nats for a rise of -0.10 and other took in 2.00 nats for a rise of +0.40" in said
    assert "times" not in said


# -- the real thing --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_real_model_learns_invented_facts(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "localopt", "demo", "--out", str(tmp_path / "out")]
    subprocess.run(command, check=True)
    numbers = json.loads((tmp_path / "out" / "results.json").read_text())
    for row in numbers["results"]:
        start, *_, end = row["path"]["marks"]
        assert end["answered"] > start["answered"] + 0.2
