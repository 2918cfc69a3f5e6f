"""Examples and batches of any form come out one row at a time."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from localopt.errors import InputError
from localopt.tracing.examples import moved, one_by_one


def rows(item: Any) -> list[Any]:
    return list(one_by_one([item]))


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("kind", [list, torch.tensor, np.array])
def test_an_example_becomes_a_batch_of_one(kind: Any) -> None:
    (row,) = rows({"input_ids": kind([1, 2, 3]), "labels": kind([1, 2, -100])})
    assert same(row, {"input_ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([[1, 2, -100]])})


def test_a_class_label_of_an_example_gets_a_batch_dimension_too() -> None:
    (row,) = rows({"input_ids": [1, 2], "labels": 1})
    assert same(row["labels"], torch.tensor([1]))


def test_a_batch_is_cut_into_rows_and_what_is_no_row_is_passed_on() -> None:
    batch = UserDict(
        input_ids=torch.tensor([[1, 2], [3, 4]]), labels=[[1, 2], [3, 4]], positions=torch.arange(3), use_cache=False
    )
    first, second = rows(batch)
    assert same(first["input_ids"], torch.tensor([[1, 2]]))
    assert same(second["labels"], torch.tensor([[3, 4]]))
    assert same(second["positions"], torch.arange(3))
    assert not second["use_cache"]


def test_tuples_tensors_and_nested_batches_are_cut_alike() -> None:
    inputs, targets = torch.randn(2, 3), torch.tensor([5, 6])
    assert same(tuple(rows((inputs, targets))), ((inputs[:1], targets[:1]), (inputs[1:], targets[1:])))
    assert same(tuple(rows([inputs, targets])), ((inputs[:1], targets[:1]), (inputs[1:], targets[1:])))
    assert same(tuple(rows(inputs)), (inputs[:1], inputs[1:]))
    nested = {"pixels": inputs, "more": (targets, "name")}
    assert same(rows(nested)[1], {"pixels": inputs[1:], "more": (targets[1:], "name")})


def test_rows_come_one_at_a_time() -> None:
    seen = []

    def items() -> Any:
        for number in range(3):
            seen.append(number)
            yield {"input_ids": [number]}

    stream = one_by_one(items())
    next(stream)
    assert seen == [0]


@pytest.mark.parametrize("item", ["text", 3, None, {"text": "no tensor"}, torch.tensor(1.0), ()])
def test_what_has_no_rows_is_refused(item: Any) -> None:
    with pytest.raises(InputError, match=r"item 1 \(from 0\) of the probe is a"):
        list(one_by_one([{"input_ids": [1]}, item], "probe"))


def test_every_tensor_of_a_batch_is_moved() -> None:
    batch = {"input_ids": torch.ones(1), "more": [torch.ones(1), "name"]}
    there = moved(batch, torch.device("meta"))
    assert there["input_ids"].device.type == there["more"][0].device.type == "meta"
    assert there["more"][1] == "name"
    assert moved((torch.ones(1),), torch.device("meta"))[0].device.type == "meta"
