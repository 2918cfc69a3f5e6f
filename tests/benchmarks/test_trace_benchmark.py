"""The tracing benchmark runs at its smallest size, and says what it was measured on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, MixtralConfig, PretrainedConfig, T5Config

from benchmarks.speed import trace
from benchmarks.speed.trace import WAYS
from benchmarks.stamp import stamp, summary

ROOT = Path(__file__).parents[2]


def test_the_smallest_size_writes_a_stamped_file(tmp_path: Path) -> None:
    file = tmp_path / "new" / "trace.json"
    command = [sys.executable, "-m", "benchmarks.speed.trace", "--smoke", "--threads", "1", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert all(way in done.stdout for way in WAYS)
    result = json.loads(file.read_text())
    assert result["stamp"]["versions"]["torch"] == torch.__version__
    assert result["stamp"]["threads"] == 1
    assert {way: len(seconds) for way, seconds in result["seconds"].items()} == dict.fromkeys(WAYS, 2)
    assert result["largest_relative_difference"] < 1e-3
    assert result["one_by_one"] == {}
    if sys.platform == "linux":
        assert all(peak > 0 for peak in result["peak_bytes"].values())


def traced(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """Run it in this process, without the fresh ones that peaks of memory are measured in."""
    monkeypatch.setattr(sys, "argv", ["trace", "--threads", "1", *map(str, arguments)])
    monkeypatch.setattr(trace, "in_fresh_process", lambda way, work: None)
    trace.main()


def folder_of(config: PretrainedConfig, folder: Path) -> Path:
    config.save_pretrained(folder)
    return folder


def test_a_model_of_ones_own_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = folder_of(GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=32), tmp_path / "mine")
    size = ["--examples", 3, "--tokens", 8, "--rounds", 2, "--json", tmp_path / "trace.json"]
    traced(monkeypatch, "--model", mine, *size)
    result = json.loads((tmp_path / "trace.json").read_text())
    assert result["workload"] == {"model": str(mine), "examples": 3, "tokens": 8, "threads": 1, "device": "cpu"}
    assert {way: len(seconds) for way, seconds in result["seconds"].items()} == dict.fromkeys(WAYS, 2)
    assert result["largest_relative_difference"] < 1e-3


def test_a_model_that_cannot_be_batched_is_measured_one_by_one_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16}
    mixture = MixtralConfig(**tiny, num_attention_heads=2, num_key_value_heads=2, num_local_experts=2)
    mixture.output_router_logits = True  # a loss of the whole batch, which no single example has
    mine = folder_of(mixture, tmp_path / "mixture")
    traced(monkeypatch, "--model", mine, "--examples", 3, "--tokens", 8, "--rounds", 1)
    assert "batched: measured one by one: " in capsys.readouterr().out


def test_what_is_no_causal_model_and_texts_it_cannot_read_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = folder_of(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=32), tmp_path / "mine")
    t5 = folder_of(T5Config(vocab_size=64, d_model=16, num_layers=1, num_heads=2), tmp_path / "t5")
    for arguments, said in (
        (["--model", tmp_path / "none"], "neither one of 135M"),
        (["--model", t5], "T5Config"),
        (["--model", mine, "--tokens", 33], "--tokens 33: "),
    ):
        with pytest.raises(SystemExit):
            traced(monkeypatch, *arguments)
        assert said in capsys.readouterr().err


def test_a_stamp_names_hardware_threads_versions_and_commit() -> None:
    stamped = stamp("rich", "no-such-distribution")
    assert stamped["threads"] == torch.get_num_threads()
    assert stamped["versions"]["no-such-distribution"] is None
    line = summary(stamped)
    assert f"torch {torch.__version__}" in line
    assert "no-such-distribution" not in line
    assert stamped["cpu"] in line
    json.dumps(stamped)
