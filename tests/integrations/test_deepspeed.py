"""DeepSpeed itself, two processes over gloo: stage 0 trains, ZeRO is refused, and both remedies work under every stage.

Runs where DeepSpeed is installed (on a CPU: ``DS_BUILD_OPS=0 pip install deepspeed``, and a C++ compiler).
"""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from tests.distributed.launch import succeed
from tests.runs import assert_same

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed"),
]
each_stage = pytest.mark.parametrize("stage", [1, 2, 3])


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("deepspeed")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("DS_ACCELERATOR", "cpu")
        succeed("tests.integrations.deepspeed_worker", 2, out, timeout=500)
    loaded: dict[str, Any] = torch.load(out / "found.pt", weights_only=False)
    return loaded


def test_stage_0_trains_as_one_process_without_it(found: dict[str, Any]) -> None:
    run = found["stage 0"]
    assert "error" not in run, run
    assert 0 < run["share"] < 1
    assert run["updated"][0] == run["updated"][1]
    torch.testing.assert_close(run["weights"], run["alone"], rtol=1e-5, atol=1e-6)


def test_stage_0_resumes_bit_for_bit(found: dict[str, Any]) -> None:
    assert_same(found["stage 0"]["resumed"], found["stage 0"]["weights"])


@each_stage
def test_a_localized_optimizer_under_zero_is_refused_with_what_works(stage: int, found: dict[str, Any]) -> None:
    for when, kind in (("before", "RuntimeError"), ("after", "ValueError")):
        said = found[f"stage {stage}, {when}"]
        assert said.startswith(f"{kind}: "), said
        assert "flattened by DeepSpeed" in said
        assert "LayerTrace.freeze(model) before deepspeed.initialize" in said
        assert "trace.param_groups(model, lr, weight_decay)" in said


@each_stage
@pytest.mark.parametrize("how", ["freeze", "groups"])
def test_both_remedies_train_the_chosen_layers_alone(stage: int, how: str, found: dict[str, Any]) -> None:
    run = found[f"stage {stage}, {how}"]
    assert "error" not in run, run
    assert run["moved"] == run["chosen"]


@pytest.mark.parametrize("how", ["localize", "factory"])
def test_a_trainer_at_stage_0_trains_localized_and_resumes_bit_for_bit(how: str, found: dict[str, Any]) -> None:
    run = found[f"trainer, {how}"]
    assert "error" not in run, run
    assert len(run["updated"]) == 2
    assert run["logged"] == ([2] * 4 if how == "localize" else [])
    assert_same(run["resumed"], run["whole"])


def test_a_callback_alone_comes_too_late_and_says_what_to_call(found: dict[str, Any]) -> None:
    said = found["trainer, callback"]["error"]
    assert "DeepSpeed's engine holds the Trainer's optimizer" in said
    assert "localize(trainer)" in said
