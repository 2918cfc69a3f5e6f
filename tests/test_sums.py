"""Sums over tensors: the calls made on a device give what the CPU's own way gives, whatever the pieces."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from localopt import sums as module
from localopt.sums import READS, sums

NAMES = tuple(READS)
CPU = torch.device("cpu")


def sources(dtype: torch.dtype) -> dict[str, list[Tensor | None]]:
    shapes = [(700, 300), (3,), (0, 7), (50_001,), ()]

    def tensors() -> list[Tensor | None]:
        return [torch.randn(shape).to(dtype) for shape in shapes]

    found = {role: tensors() for role in ("gradient", "weight", "start", "momentum")}
    found["gradient"][1] = found["momentum"][4] = found["start"][4] = None
    found["gradient"][0] = torch.randn(300, 700).t().to(dtype)  # not contiguous
    return found


@pytest.mark.parametrize("piece", [1 << 24, 50_000, 999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_calls_made_on_a_device_give_what_the_cpu_gives(
    dtype: torch.dtype, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = sources(dtype)
    expected = sums(NAMES, of, CPU)
    monkeypatch.setattr(module, "PIECE", piece)
    columns = [{role: tensors[i] for role, tensors in of.items()} for i in range(5)]
    found = module._sums_on_device(NAMES, columns, CPU)
    by_name = dict(zip(NAMES, expected, strict=True))
    scales = dict(by_name)  # sums of both signs cancel, so they are held to the product of the lengths
    scales["pullback"] = (by_name["norm"] * by_name["drift"]).sqrt()
    scales["agreement"] = (by_name["norm"] * by_name["momentum"]).sqrt()
    for name, row in zip(NAMES, found, strict=True):
        assert ((row - by_name[name]).abs() <= 3e-5 * scales[name]).all(), name


def test_differences_are_never_held_for_more_than_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 1000)
    of = sources(torch.float32)
    columns = [{role: tensors[i] for role, tensors in of.items()} for i in range(5)]
    for positions, lists in module._pieces(columns):
        if "weight" in lists and "start" in lists:
            assert sum(weight.numel() for weight in lists["weight"]) <= 1000
        assert len(positions) == len(lists["weight"])
