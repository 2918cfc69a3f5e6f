"""Something is wrong on one process of several: none goes on with it, and all of them say what it is."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tests.distributed.launch import succeed

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def seen() -> dict[str, list[Any]]:
    """By case, what each of two processes saw."""
    result: dict[str, list[Any]] = json.loads(succeed("tests.distributed.disagreeing", 2, timeout=200).splitlines()[-1])
    return result


def test_a_nan_on_another_process_is_skipped_by_all_where_norms_are_broadcast(seen: dict[str, list[Any]]) -> None:
    first, second = seen["broadcast_nan"]
    assert first == second
    assert first["skipped"] == 1
    assert all(math.isfinite(weight) for weight in first["weights"])


def test_an_error_that_cannot_be_pickled_is_told_by_type_and_text(seen: dict[str, list[Any]]) -> None:
    other, where_raised = seen["unpicklable_error"]
    assert where_raised == "Unpicklable: what really happened"
    assert other == "RuntimeError: process 1 raised Unpicklable: what really happened"


def test_other_numbers_of_examples_are_an_error_on_all(seen: dict[str, list[Any]]) -> None:
    first, second = seen["different_counts"]
    assert first == second
    assert "same number of examples of the probe (process 0: 4; process 1: 6)" in first


def test_other_layers_are_an_error_on_all(seen: dict[str, list[Any]]) -> None:
    first, second = seen["different_layers"]
    assert first == second
    assert first.startswith("ValueError: the processes do not have the same layers (process 0: [")
