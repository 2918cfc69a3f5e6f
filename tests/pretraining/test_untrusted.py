"""Nothing that comes with a model runs: no code, no pickle, whatever stands on standard input."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from localopt.errors import InputError
from localopt.pretraining.models import load_model
from tests import planted
from tests.planted import change, write_model
from tests.tiny_files import write_inputs


@pytest.fixture(autouse=True)
def says_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks on standard input is answered "y"."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))


@pytest.mark.parametrize("plant", planted.CODE)
def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path, plant: str) -> None:
    mark = tmp_path / "ran"
    model = planted.CODE[plant](tmp_path / "model", mark)
    with pytest.raises(InputError, match=r"needs code of its own .* localopt does not run code"):
        load_model(str(model))
    assert not mark.exists()


@pytest.mark.parametrize("plant", planted.PICKLES)
def test_a_pickle_is_not_opened_whatever_file_names_it(tmp_path: Path, plant: str) -> None:
    mark = tmp_path / "ran"
    model = planted.PICKLES[plant](tmp_path / "model", mark)
    with pytest.raises(InputError, match=r"not a \.safetensors file"):
        load_model(str(model))
    assert not mark.exists()


def test_a_function_that_comes_with_a_model_is_ignored_where_it_is_not_needed(tmp_path: Path) -> None:
    model, _ = load_model(str(planted.in_generate(tmp_path / "model", tmp_path / "ran")))
    model.generate(torch.tensor([[5]]), max_new_tokens=1, do_sample=False)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "because"),
    [
        ("../other.safetensors", "lies outside its folder"),
        ("/etc/other.safetensors", "lies outside its folder"),
        ("c:\\other.safetensors", "lies outside its folder"),
        (7, "not a .safetensors file"),
    ],
)
def test_an_index_names_safetensors_files_in_its_folder_and_nothing_else(
    tmp_path: Path, name: object, because: str
) -> None:
    write_model(tmp_path / "model")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model.safetensors", "lm_head.weight": name}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError) as caught:
        load_model(str(tmp_path / "model"))
    assert because in str(caught.value)


def test_attention_is_not_fetched_as_code(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    change(tmp_path / "model" / "config.json", attn_implementation="someone/kernel")
    with pytest.raises(InputError, match="code from elsewhere; localopt does not run it"):
        load_model(str(tmp_path / "model"))


def test_the_command_line_runs_no_code_when_yes_is_typed_before_it_asks(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path)
    model = planted.in_the_tokenizer(tmp_path / "planted", tmp_path / "ran")
    command = [sys.executable, "-m", "localopt", "eval", str(model), "--probe", str(inputs / "facts.jsonl")]
    result = subprocess.run(command, input="y\n" * 20, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert "localopt does not run code that comes with a model" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "ran").exists()
