"""The benchmark of a step takes a user's own shapes, optimizer and policy, and says what is missing for the rest."""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import AdamW
from transformers import LlamaConfig
from typer.testing import CliRunner

from benchmarks.speed import step
from benchmarks.speed.workloads import of_model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    ).save_pretrained(tmp_path / "mine")
    return tmp_path / "mine"


def run(*arguments: object) -> Any:
    return CliRunner().invoke(step.app, list(map(str, arguments)))


@pytest.mark.parametrize("of", ["", "config.json"])
def test_own_shapes_optimizer_and_policy_are_timed(of: str, shapes: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.json"
    chosen = ["--optimizer", "SGD(momentum=0.9)", "--policy", "TopK(0.25)"]
    done = run("--model", shapes / of, *chosen, "--rounds", 2, "--device", "cpu", "--json", file)
    assert done.exit_code == 0, done.output
    [found] = json.loads(file.read_text())["own"].values()
    assert found["parameters"] == sum(
        p.numel() for p in of_model(str(shapes), torch.float32, "cpu").parameters.values()
    )
    assert 0 < found["share updated"] < 1
    assert {name: len(one["seconds"]) for name, one in found["timings"].items()} == {
        "bare": 2,
        "localized": 2,
        "clip + bare": 2,
        "localized + clip": 2,
    }
    assert found["ratios"]["bare"] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "missing/model"], "missing/model: neither one of 135M"),
        (["--optimizer", "Adamm"], "torch.optim has no such name"),
        (["--policy", "TopJ"], "localopt.policies has no such name"),
        (["--policy", "TopK(2.5)"], "k as a share of the layers must be in (0, 1], not 2.5"),
        (["--policy", "TopK(exit())"], 'a name, or a call of numbers such as "TopK(0.25)"'),
    ],
)
def test_what_is_not_known_is_named(arguments: list[str], said: str) -> None:
    model = [] if "--model" in arguments else ["--model", "smoke"]
    done = run(*model, *arguments, "--device", "cpu", "--rounds", 1)
    assert done.exit_code == 2
    assert said in " ".join(re.sub(r"[│╭╰─╮╯]", " ", done.output).split())


def test_a_peer_that_is_missing_names_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "badam", None)
    workload = of_model("smoke", torch.float32, "cpu")
    others = step._others(workload, AdamW(workload.parameters.items(), fused=True), 1)
    assert others["badam"] == {"error": "not installed, the extra bench brings it: pip install '.[bench]'"}
    assert others["masked by hand"]["ratio"]


def test_the_benchmarks_of_speed_call_the_same_things_by_the_same_flags() -> None:
    wanted = {"--json": {"step", "train", "trace", "hooks"}, "--smoke": {"step", "train", "trace", "hooks", "launches"}}
    wanted |= {"--model": {"step", "train", "launches", "trace"}, "--rounds": {"trace"}}
    for flag, modules in wanted.items():
        for module in modules:
            source = (ROOT / "benchmarks" / "speed" / f"{module}.py").read_text(encoding="utf-8")
            strings = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
            assert flag in strings, f"{module} has no {flag}"
