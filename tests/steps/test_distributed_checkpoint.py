"""torch.distributed.checkpoint saves and resumes a localized run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)

from tests.laws import assert_same_bits
from tests.runs import POLICIES, assert_same, assert_same_run, each_inner, each_policy, new_run, train

FLAT = StateDictOptions(flatten_optimizer_state_dict=True)
each_form = pytest.mark.parametrize("options", [None, FLAT], ids=["nested", "flat"])
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@each_form
@each_inner
@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy not in ("Fixed", "HighestSNR")])
def test_a_distributed_checkpoint_resumes_bit_for_bit(inner: str, policy: str, options: Any, tmp_path: Path) -> None:
    run = new_run(inner, policy)
    train(run[0], run[1].inner, 0, 1)  # every layer was trained once, so has state
    train(*run, 1, 12)
    run[1].zero_grad()
    model_state, optimizer_state = get_state_dict(*run, options=options)
    dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=tmp_path, no_dist=True)

    resumed = new_run(inner, policy, seed=1)
    model_state, optimizer_state = get_state_dict(*resumed, options=options)
    state = {"model": model_state, "optimizer": optimizer_state}
    dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
    set_state_dict(*resumed, model_state_dict=state["model"], optim_state_dict=state["optimizer"], options=options)
    assert_same_run(resumed, run)
    train(*run, 12, 16)
    train(*resumed, 12, 16)
    assert_same_run(resumed, run)


def test_a_layer_never_trained_has_no_state_to_load_and_the_others_load_without_it(tmp_path: Path) -> None:
    run = new_run(policy="AboveMean")
    train(*run, 0, 3)
    assert run[0][0].weight not in run[1].state
    dcp.save({"optimizer": get_optimizer_state_dict(*run)}, checkpoint_id=tmp_path, no_dist=True)
    resumed = new_run(policy="AboveMean")
    state = {"optimizer": get_optimizer_state_dict(*resumed)}
    with pytest.raises(CheckpointException, match=r"Missing key.*0\.weight"):
        dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
    dcp.load(state, checkpoint_id=tmp_path, no_dist=True, planner=DefaultLoadPlanner(allow_partial_load=True))
    set_optimizer_state_dict(*resumed, state["optimizer"])
    saved = run[1].state_dict()["state"]
    assert_same({key: resumed[1].state_dict()["state"][key] for key in saved}, saved)


@pytest.mark.parametrize("policy", ["Fixed", "HighestSNR"])
def test_layers_without_state_load_from_a_distributed_checkpoint_when_not_strict(policy: str, tmp_path: Path) -> None:
    run = new_run(policy=policy)
    train(*run, 0, 3)
    dcp.save({"optimizer": get_optimizer_state_dict(*run)}, checkpoint_id=tmp_path, no_dist=True)
    resumed = new_run(policy=policy, seed=0)
    resumed[0].load_state_dict(run[0].state_dict())
    state = {"optimizer": get_optimizer_state_dict(*resumed)}
    dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
    set_optimizer_state_dict(*resumed, state["optimizer"], options=StateDictOptions(strict=False))
    assert_same_run(resumed, run)


@each_inner
@each_policy
def test_what_a_distributed_checkpoint_does_to_make_state_changes_nothing(inner: str, policy: str) -> None:
    model, optimizer = new_run(inner, policy)
    before, remembered = copy.deepcopy(model), copy.deepcopy(optimizer.param_groups[0].get("localopt"))
    get_optimizer_state_dict(model, optimizer)  # steps with zero gradients at lr 0
    get_model_state_dict(model)
    assert_same_bits(model, before, "after the step that makes state")
    assert optimizer.state_dict()["param_groups"][0].get("localopt") == remembered
    assert optimizer.param_groups[0]["lr"] == 0.05
    assert optimizer.report().skipped_steps == 0
    # The first real step is the first step of the policy.
    fresh = new_run(inner, policy)
    train(model, optimizer, 0, 1)
    train(*fresh, 0, 1)
    assert optimizer.report() == fresh[1].report()


@each_policy
def test_saving_an_optimizer_without_state_again_and_again_advances_no_policy(policy: str) -> None:
    saved_often, never_saved = new_run("SGD", policy), new_run("SGD", policy)
    for step in range(6):
        train(*saved_often, step, step + 1)
        train(*never_saved, step, step + 1)
        saved_often[1].zero_grad()
        get_optimizer_state_dict(*saved_often)
    assert_same_run(saved_often, never_saved)
