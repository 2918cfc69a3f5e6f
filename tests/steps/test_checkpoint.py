"""A localized run can be stopped anywhere: saved, copied, killed and resumed, by torch's own means of doing so."""

from __future__ import annotations

import copy
import io
import os
import pickle
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import AdamW

from localopt import LocalizedOptimizer
from localopt.policies import Cyclic, RandomLayers
from tests.laws import assert_same_bits
from tests.runs import (
    INNER,
    LAYERS,
    POLICIES,
    STATEFUL,
    assert_same,
    assert_same_run,
    each_inner,
    each_policy,
    new_run,
    train,
)

# -- killed and resumed -----------------------------------------------------------------------------------------------

KILLED_AFTER, STEPS = 5, 11
CASES = [(inner, policy) for inner in INNER for policy in POLICIES]


def run_and_be_killed(folder: str) -> None:
    for case in CASES:
        model, optimizer = new_run(*case)
        train(model, optimizer, 0, KILLED_AFTER)
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, f"{folder}/{case}.pt")
    os.kill(os.getpid(), signal.SIGKILL)


def resume_and_finish(folder: str) -> None:
    for case in CASES:
        model, optimizer = new_run(*case, seed=1)
        saved = torch.load(f"{folder}/{case}.pt", weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        train(model, optimizer, KILLED_AFTER, STEPS)
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, f"{folder}/{case}.pt")


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every case was saved after it had been killed once."""
    folder = tmp_path_factory.mktemp("resumed")
    for function, status in ((run_and_be_killed, -signal.SIGKILL), (resume_and_finish, 0)):
        program = f"from tests.steps.test_checkpoint import {function.__name__} as run; run({str(folder)!r})"
        environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        root = Path(__file__).parents[2]
        assert subprocess.run([sys.executable, "-c", program], cwd=root, env=environment).returncode == status
    return folder


@each_inner
@each_policy
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    inner: str, policy: str, resumed: Path
) -> None:
    model, optimizer = new_run(inner, policy)
    train(model, optimizer, 0, STEPS)
    saved = torch.load(resumed / f"{(inner, policy)}.pt", weights_only=True)
    expected = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    assert_same(saved, expected)


# -- copied -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["pickle", "deepcopy", "torch.save"])
@each_policy
def test_a_copy_of_model_and_optimizer_goes_on_like_the_original(how: str, policy: str) -> None:
    run = new_run(policy=policy)
    torch.optim.lr_scheduler.StepLR(run[1], 1)  # which patches the step of the original
    run[1].register_step_pre_hook(lambda *_: None)  # which no optimizer takes along
    train(*run, 0, 3)
    if how == "pickle":
        twin = pickle.loads(pickle.dumps(run))
    elif how == "deepcopy":
        twin = copy.deepcopy(run)
    else:
        buffer = io.BytesIO()
        torch.save(run, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    assert_same_run(twin, run)
    before = copy.deepcopy(run[0])
    train(*twin, 3, 6)
    assert_same_bits(run[0], before, "the copy's steps changed the original")
    train(*run, 3, 6)
    assert_same_run(twin, run)


# -- the policy's state -----------------------------------------------------------------------------------------------


@each_policy
def test_a_policys_state_stands_in_the_first_group_from_the_start_and_is_plain(policy: str) -> None:
    model, optimizer = new_run(policy=policy)
    at_first = "localopt" in optimizer.param_groups[0]
    train(model, optimizer, 0, 2)
    saved = optimizer.state_dict()["param_groups"][0]
    assert at_first == ("localopt" in saved) == (policy in STATEFUL)
    if policy in STATEFUL:
        assert saved["localopt"]["layers"] == list(LAYERS)
        live = optimizer.policy.state_dict()
        assert saved["localopt"]["state"] == {key: tensor.tolist() for key, tensor in live.items()}


@each_policy
def test_what_stands_in_the_first_group_at_first_is_what_a_save_would_say(policy: str) -> None:
    _, optimizer = new_run(policy=policy)
    at_first = copy.deepcopy(optimizer.param_groups[0].get("localopt"))
    assert optimizer.state_dict()["param_groups"][0].get("localopt") == at_first


@each_policy
def test_a_bare_optimizer_loads_the_state_of_a_localized_one(policy: str) -> None:
    model, optimizer = new_run(policy=policy)
    train(model, optimizer, 0, 3)
    bare = AdamW(model.parameters(), lr=0.05, foreach=True)
    bare.load_state_dict(optimizer.state_dict())
    assert_same(bare.state_dict()["state"], optimizer.state_dict()["state"])
    train(model, bare, 3, 4)


@each_policy
def test_a_localized_optimizer_loads_the_state_of_a_bare_one(policy: str) -> None:
    model, optimizer = new_run(policy=policy)
    bare = AdamW(model.parameters(), lr=0.05, foreach=True)
    train(model, bare, 0, 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.load_state_dict(bare.state_dict())
    assert ["starts anew" in str(warning.message) for warning in caught] == [True] * (policy in STATEFUL)
    assert all(warning.filename == __file__ for warning in caught)
    assert_same(optimizer.state_dict()["state"], bare.state_dict()["state"])
    train(model, optimizer, 3, 5)


def test_state_that_the_policy_has_no_use_for_is_dropped_with_a_warning() -> None:
    _, saved = new_run(policy="Smoothed")
    _, optimizer = new_run(policy="AboveMean")
    with pytest.warns(UserWarning, match="Smoothed.*has no use"):
        optimizer.load_state_dict(saved.state_dict())
    assert "localopt" not in optimizer.param_groups[0]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda model, inner: LocalizedOptimizer(inner, model, POLICIES["Every"]()), "holds the state of Every"),
        (lambda model, inner: LocalizedOptimizer(inner, model, POLICIES["Smoothed"](), layers="parameter"), "layers"),
        (lambda model, inner: LocalizedOptimizer(AdamW(model[0].parameters()), model, POLICIES["Smoothed"]()), "layer"),
    ],
    ids=["policy", "layers", "parameters"],
)
def test_a_checkpoint_of_something_else_is_refused_and_changes_nothing(other: Any, message: str) -> None:
    model, optimizer = new_run(policy="Smoothed")
    stranger = other(model, AdamW(model.parameters(), lr=0.5))
    train(model, stranger, 0, 2)
    train(model, optimizer, 0, 3)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(stranger.state_dict())
    assert_same(copy.deepcopy(optimizer.state_dict()), before)


def test_loading_leaves_the_callers_state_dict_as_it_was() -> None:
    model, optimizer = new_run()
    train(model, optimizer, 0, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    kept = copy.deepcopy(saved)
    new_run()[1].load_state_dict(saved)
    assert_same(saved, kept)


def test_a_policy_that_keeps_the_same_kind_of_numbers_is_refused_all_the_same() -> None:
    model, _ = new_run()
    cyclic = LocalizedOptimizer(AdamW(model.parameters()), model, Cyclic(every=1))
    random = LocalizedOptimizer(AdamW(model.parameters()), model, RandomLayers(1, every=1))
    assert cyclic.state_dict()["param_groups"][0]["localopt"]["state"].keys() == random.policy.state_dict().keys()
    with pytest.raises(ValueError, match=r"state of Cyclic, the optimizer was given RandomLayers"):
        random.load_state_dict(cyclic.state_dict())


def test_an_optimizer_that_was_loaded_before_it_was_wrapped_keeps_its_policys_state() -> None:
    model, optimizer = new_run(policy="Smoothed")
    train(model, optimizer, 0, 3)
    inner = AdamW(model.parameters(), lr=0.05, foreach=True)
    inner.load_state_dict(optimizer.state_dict())
    wrapped = LocalizedOptimizer(inner, model, POLICIES["Smoothed"]())
    assert_same(wrapped.policy.state_dict(), optimizer.policy.state_dict())
