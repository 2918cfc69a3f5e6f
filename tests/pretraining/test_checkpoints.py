"""A run goes on from a checkpoint that is whole, and says what it passed over; whatever befell the files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from localopt.errors import InputError
from localopt.pretraining import trainer
from localopt.pretraining.checkpoints import MANIFEST, Found, announce_processes, damage, last_whole, prune, seal
from localopt.pretraining.history import History
from localopt.pretraining.probes import read_corpus
from localopt.pretraining.settings import Settings
from localopt.pretraining.train import train
from tests.laws import assert_same_bits
from tests.tiny_files import contents, write_inputs
from tests.tiny_lm import tiny_tokenizer

SETTINGS = Settings("online", lr=3e-3, epochs=2, batch_size=8, seq_len=16)


def run(inputs: Path, out: Path, settings: Settings = SETTINGS, **more: Any) -> tuple[LlamaForCausalLM, History]:
    model = AutoModelForCausalLM.from_pretrained(inputs / "model")
    corpus = read_corpus(inputs / "corpus.txt")
    return model, train(model, tiny_tokenizer(), corpus, out, settings, **more)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def whole(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[LlamaForCausalLM, History, Path]:
    """A finished run with both of its checkpoints."""
    out = tmp_path_factory.mktemp("whole") / "out"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    done = *run(inputs, out, keep_checkpoints=True), out
    torch.set_num_threads(threads)
    return done


FILES = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", MANIFEST]


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [Path.unlink, empty, truncate, flip], ids=["missing", "empty", "cut", "one bit"])
@pytest.mark.parametrize("file", FILES)
def test_a_checkpoint_with_any_file_harmed_is_not_whole(
    file: str, harm: Any, whole: tuple[LlamaForCausalLM, History, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(whole[2] / "checkpoints", folder)
    assert damage(folder / "checkpoint-10") is None
    harm(folder / "checkpoint-10" / file)
    found = last_whole(folder)
    assert found.path == folder / "checkpoint-5"
    assert f"{folder / 'checkpoint-10'}: not used" in found.said[0]
    assert found.said[1] == f"going on from {folder / 'checkpoint-5'}"
    assert not (folder / "checkpoint-10").exists()


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_run_with_a_harmed_checkpoint_ends_bit_for_bit_as_it_would_have(
    file: str,
    whole: tuple[LlamaForCausalLM, History, Path],
    inputs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole[2], out)
    shutil.rmtree(out / "model")
    (out / "checkpoints" / "checkpoint-10" / file).unlink()
    torch.set_num_threads(1)
    resumed, history = run(inputs, out, resume=True)
    assert f"checkpoint-10: not used, {file} is missing\n" in capsys.readouterr().err
    assert history == whole[1]
    assert_same_bits(resumed, whole[0], "weights")


def test_a_run_without_a_whole_checkpoint_begins_anew_and_says_so(
    whole: tuple[LlamaForCausalLM, History, Path], inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole[2], out)
    shutil.rmtree(out / "model")
    for step in (5, 10):
        empty(out / "checkpoints" / f"checkpoint-{step}" / "optimizer.pt")
    torch.set_num_threads(1)
    again, _ = run(inputs, out, resume=True)
    assert "there is no whole checkpoint: training begins anew" in capsys.readouterr().err
    assert_same_bits(again, whole[0], "weights")


@pytest.mark.parametrize(
    "text", ["[]", "7", "{", '{"format": 1}', '{"format": 1, "processes": 1, "files": 3}', "[" * 99999]
)
def test_a_manifest_that_is_none_makes_no_checkpoint_whole(text: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(text)
    assert damage(tmp_path) is not None


def test_the_number_of_processes_is_written_down_and_a_change_is_said(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "model").write_bytes(b"weights")
    seal(tmp_path / "checkpoint-3", processes=4)
    found = last_whole(tmp_path)
    assert found == Found(tmp_path / "checkpoint-3", 4)
    assert announce_processes(found, 4) == []
    (said,) = announce_processes(found, 2)
    assert said.startswith("going on with 2 processes a run of 4")
    assert "not bit for bit" in said


def test_a_finished_run_removes_its_checkpoints_unless_asked_to_keep_them(
    whole: tuple[LlamaForCausalLM, History, Path], inputs: Path, tmp_path: Path
) -> None:
    assert (whole[2] / "checkpoints").is_dir()
    run(inputs, tmp_path / "out", replace(SETTINGS, epochs=1))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["history.json", "model"]


def test_what_else_lies_among_checkpoints_stays(tmp_path: Path) -> None:
    for name in ("checkpoint-5", "checkpoint-best", "notes"):
        (tmp_path / name).mkdir()
    prune(tmp_path)
    assert sorted(contents_of(tmp_path)) == ["checkpoint-best", "notes"]


def contents_of(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


# -- a run that diverged -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["full", "online"])
def test_a_run_that_diverges_is_an_error_that_names_the_step_and_saves_no_model(
    method: str, inputs: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"step 5: the run has diverged: .* No model is saved; there is no checkpoint"):
        run(inputs, tmp_path / "out", replace(SETTINGS, method=method, lr=1e38))
    assert not (tmp_path / "out" / "model").exists()


def test_the_last_good_checkpoint_of_a_run_that_diverges_is_kept(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step == 7:
            with torch.no_grad():
                self.model.lm_head.weight[0, 0] = torch.nan
        loss: torch.Tensor = step(self, *args, **kwargs)
        return loss

    step = trainer._Trainer.training_step
    monkeypatch.setattr(trainer._Trainer, "training_step", spoil)
    with pytest.raises(InputError, match=r"step 10: .* has values that are not finite") as caught:
        run(inputs, tmp_path / "out")
    assert f"the last good checkpoint is {tmp_path}/out/checkpoints/checkpoint-5. Begin anew" in str(caught.value)
    assert damage(tmp_path / "out" / "checkpoints" / "checkpoint-5") is None
    assert not (tmp_path / "out" / "checkpoints" / "checkpoint-10").exists()
    history = json.loads((tmp_path / "out" / "history.json").read_text())
    assert [entry["step"] for entry in history["scores"]] == [0, 5]


def test_one_loss_that_is_not_finite_is_no_divergence() -> None:
    from localopt.pretraining.divergence import Watch

    watch, model = Watch(), torch.nn.Linear(1, 1)
    for loss in (torch.inf, 1.0):
        watch.see(torch.tensor(loss))
    watch.refuse_diverged(model, 2, Path("none"))
    watch.see(torch.tensor(torch.nan))
    with pytest.raises(InputError, match=r"step 3: .* the loss has not been a finite number for 1 steps"):
        watch.refuse_diverged(model, 3, Path("none"))


# -- nothing is written where the settings cannot work -----------------------------------------------------------------


@pytest.mark.parametrize(
    "change", [{"seed": 2**32}, {"batch_size": 10**30}, {"epochs": 10**30}, {"seq_len": 10**30}, {"lr": float("nan")}]
)
def test_numbers_that_are_too_large_are_refused_before_anything_is_written(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(change)) if "lr" not in change else "learning rate"):
        replace(SETTINGS, **change)


def test_a_history_that_is_none_is_named(tmp_path: Path) -> None:
    good = {"settings": {"method": "full", "lr": 1.0}, "scores": [{"epoch": 0, "step": 0, "sets": {"a": {"nll": 1.0}}}]}
    path = tmp_path / "history.json"
    path.write_text(json.dumps(good))
    assert History.load(path).scores == good["scores"]
    for bad in (
        {}, [], 7, {**good, "settings": 7}, {**good, "settings": {}}, {**good, "scores": [7]}, {**good, "inputs": []},
        {**good, "scores": [{}]}, {**good, "scores": [{"epoch": 0, "step": "x", "sets": {}}]}, {**good, "more": 1},
        {**good, "scores": [{"epoch": 0, "step": 0, "sets": {"a": 1}}]},
    ):  # fmt: skip
        path.write_text(json.dumps(bad))
        with pytest.raises(InputError, match=r"history\.json: is not the history of a run"):
            History.load(path)
    for text in ("", "[" * 99_999, "\x00"):
        path.write_text(text)
        with pytest.raises(InputError, match=r"history\.json: is not the history of a run"):
            History.load(path)


def test_files_of_a_run_have_the_mode_of_any_new_file(
    whole: tuple[LlamaForCausalLM, History, Path], tmp_path: Path
) -> None:
    (tmp_path / "new").touch()
    (tmp_path / "folder").mkdir()
    for path in whole[2].rglob("*"):
        usual = tmp_path / ("folder" if path.is_dir() else "new")
        assert path.stat().st_mode == usual.stat().st_mode, path
    assert "lock" not in contents(whole[2])
