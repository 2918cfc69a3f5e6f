"""Processes that share weights compare their optimizers once, and none goes on where they differ."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from localopt.steps.description import difference
from tests.distributed.launch import succeed, torchrun

pytestmark = pytest.mark.timeout(300)

DIFFER = {
    "policy": "the policy is TopK(k=1) on process 0 and AboveMean() on process 1",
    "seed": "seed=3), beta=0.5) on process 0 and Smoothed(policy=RandomLayers(k=1, every=2, seed=4), beta=0.5) on proc",
    "trace": "the policy is RelativeTo(trace=",
    "layers": "the layers: process 0 has 3, with body.0, body.2, head; process 1 has 6, with body.0.weight, ",
    "options": "max_grad_norm is None on process 0 and 1.0 on process 1; frozen_state is 'hold' on process 0 and "
    "'track' on process 1; nonfinite is 'skip' on process 0 and 'raise' on process 1; anchor_decay is AnchorDecay(",
    "names": "the parameters: process 0 has 6, with head.bias, head.weight; process 1 has 4. ",
    "starts": "the start of the anchor decay is ",
    "wrapped_before_ddp": "the policy is TopK(k=1) on process 0 and TopK(k=2) on process 1",
    "broadcast_norms": "the policy is TopK(k=1) on process 0 and TopK(k=2) on process 1",
    "broadcast_norms_on_one": "broadcast_norms is True on process 0 and False on process 1",
    "sharded": "the policy is TopK(k=1) on process 0 and TopK(k=2) on process 1",
    "sharded_by_other_layers": "the layers: process 0 has 3, with body.0, body.2, head; process 1 has 6, with ",
    "parameters_added": "the parameters: process 0 has 6, with head.bias; process 1 has 5. ",
}
ON_PURPOSE = (
    *("alike", "alike_and_sharded", "runs_of_their_own", "stages_of_a_pipeline", "replicas_in_groups_of_one"),
    *("updates_shared_out", "experts_beside_shards", "a_look_by_one_process"),
)


@pytest.fixture(scope="module")
def seen() -> dict[str, list[Any]]:
    """By case, what each of two processes saw."""
    result: dict[str, list[Any]] = json.loads(succeed("tests.distributed.agreeing", 2, timeout=280).splitlines()[-1])
    return result


@pytest.mark.parametrize("case", DIFFER)
def test_a_difference_is_an_error_on_every_process_that_says_who_differs_in_what(
    case: str, seen: dict[str, list[Any]]
) -> None:
    first, second = seen[case]
    assert first == second
    assert first.startswith("ValueError: the processes' optimizers differ")
    assert DIFFER[case] in first
    assert "Nothing was updated" in first


@pytest.mark.parametrize("case", ON_PURPOSE)
def test_what_is_alike_or_different_on_purpose_trains(case: str, seen: dict[str, list[Any]]) -> None:
    for of_one in seen[case]:
        assert of_one in ("", [""] * len(of_one))


def test_another_checkpoint_is_seen_at_the_next_step_and_the_same_one_is_not(seen: dict[str, list[Any]]) -> None:
    first, second = seen["checkpoint"]
    assert first == second
    assert first[:2] == ["", ""]
    assert re.search(r"what the policy remembers is \{.*\} on process 0 and \{.*\} on process 1\. Nothing", first[2])


def test_the_first_step_exchanges_one_digest_and_others_nothing(seen: dict[str, list[Any]]) -> None:
    assert seen["once"] == [[1, 1, 2, 2]] * 2


def test_where_one_process_does_not_wrap_its_optimizer_the_others_say_what_to_look_at() -> None:
    done = torchrun("tests.distributed.unwrapped", 2, timeout=100)
    assert done.returncode != 0
    assert re.search(
        r"could not compare their optimizers .*: does every one of them wrap its optimizer, load .* call step\(\)\?",
        done.stderr,
    )


def test_long_values_are_cut_to_where_they_differ_and_many_processes_to_the_first() -> None:
    scales = {f"layer.{i}": 1.0 for i in range(200)}
    said = difference("the policy", {rank: repr(scales | {"layer.150": rank // 99}) for rank in range(100)})
    assert "'layer.150': 0, 'layer.151'" in said
    assert "'layer.150': 1, 'layer.151'" in said
    assert "on processes 0, 1, 2, 3, 4, 5, 6, 7, ... and" in said
    assert said.endswith("on process 99")
    assert len(said) < 500
