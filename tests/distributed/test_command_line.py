"""The command line and the examples under torchrun: what one process does, done by several."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from localopt.pretraining.probes import encode_text, read_corpus
from localopt.tracing.layer_trace import LayerTrace
from tests.distributed.launch import ROOT, succeed, torchrun
from tests.tiny_files import contents, write_inputs
from tests.tiny_lm import tiny_tokenizer

LENGTH = 32
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without dropout, and a corpus of as many sequences as fill whole steps: what one process computes too."""
    folder = write_inputs(tmp_path_factory.mktemp("inputs"))
    config = folder / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"attention_dropout": 0.0}))
    text = (folder / "corpus.txt").read_text()
    documents = text.split("\n\n")
    while len(encode_text(documents, tiny_tokenizer(), LENGTH)) % 8:
        documents.pop()
    (folder / "corpus.txt").write_text("\n\n".join(documents))
    assert len(read_corpus(folder / "corpus.txt")) > 8
    return folder


def alone(*arguments: object) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "localopt", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def tracing(inputs: Path, out: Path) -> list[object]:
    probe = ["--probe", inputs / "facts.jsonl", "--reference", inputs / "corpus.txt"]
    return ["trace", inputs / "model", *probe, "--seq-len", LENGTH, "--out", out]


def training(inputs: Path, out: Path) -> list[object]:
    sets = ["--probe", f"news={inputs / 'facts.jsonl'}", "--reference", inputs / "corpus.txt"]
    size = ["--seq-len", LENGTH, "--epochs", 2, "--lr", 1e-3, "--batch-size", 8]
    kept = ["--out", out, "--keep-checkpoints"]
    return ["train", inputs / "model", "--corpus", inputs / "corpus.txt", *sets, *size, *kept]


def test_a_trace_by_two_processes_is_that_of_one_and_written_once(inputs: Path, tmp_path: Path) -> None:
    printed = succeed("localopt", 2, *tracing(inputs, tmp_path / "two.safetensors"), timeout=200)
    alone(*tracing(inputs, tmp_path / "one.safetensors"))
    two, one = (LayerTrace.load(tmp_path / f"{name}.safetensors") for name in ("two", "one"))
    torch.testing.assert_close(two.relative_norms, one.relative_norms, rtol=1e-5, atol=0)
    assert two.metadata["reference_examples"] == one.metadata["reference_examples"]
    assert printed.count("to train: ") == 1


@pytest.fixture(scope="module")
def trained(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    printed = succeed("localopt", 2, *training(inputs, out / "two"), timeout=280)
    (out / "printed").write_text(printed)
    alone(*training(inputs, out / "one"))
    return out


def test_two_processes_train_the_model_that_one_trains(trained: Path) -> None:
    one, two = (load_file(trained / name / "model" / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, rtol=1e-3, atol=1e-4)


def test_two_processes_score_as_one_does_and_say_it_once(trained: Path) -> None:
    one, two = (json.loads((trained / name / "history.json").read_text()) for name in ("one", "two"))
    assert [entry["step"] for entry in two["scores"]] == [entry["step"] for entry in one["scores"]]
    for mine, theirs in zip(two["scores"], one["scores"], strict=True):
        for name, score in theirs["sets"].items():
            assert mine["sets"][name]["nll"] == pytest.approx(score["nll"], abs=1e-3)
    assert (trained / "printed").read_text().count("epoch 1") == 1


def test_two_processes_leave_the_files_that_one_leaves(trained: Path) -> None:
    def files(name: str) -> set[str]:
        return {path for path in contents(trained / name) if "rng_state" not in path}  # one a process

    assert files("two") == files("one")


def test_a_run_of_two_processes_that_was_cut_off_goes_on_with_resume(
    inputs: Path, trained: Path, tmp_path: Path
) -> None:
    """As a kill while the last checkpoint was written leaves it."""
    out = tmp_path / "two"
    shutil.copytree(trained / "two", out)
    shutil.rmtree(out / "model")
    newest = max((out / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    (newest / "manifest.json").unlink()  # which is written last
    succeed("localopt", 2, *training(inputs, out), "--resume", timeout=280)
    whole, resumed = (load_file(folder / "model" / "model.safetensors") for folder in (trained / "two", out))
    for name, expected in whole.items():
        torch.testing.assert_close(resumed[name], expected, rtol=0, atol=0)


def test_steps_that_cannot_be_shared_evenly_are_refused(inputs: Path, tmp_path: Path) -> None:
    done = torchrun("localopt", 2, *training(inputs, tmp_path / "out"), "--batch-size", 7, timeout=200)
    assert done.returncode != 0
    assert "7 sequences a step cannot be shared evenly by 2 processes: set --batch-size to a multiple" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the threads of a process")
def test_no_thread_of_a_connection_is_left_when_python_shuts_down() -> None:
    """One that still takes the GIL then would abort the process, after all it was to do."""
    assert json.loads(succeed("tests.distributed.disconnecting", 2)) == {"connected": True, "left": []}


@pytest.mark.parametrize("example", ["ddp", "fsdp2"])
def test_the_example_runs(example: str) -> None:
    printed = succeed("tests.distributed.ending", 2, f"examples/{example}.py", timeout=200)
    assert printed.count("step 9") == 1
