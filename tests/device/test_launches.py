"""The number of kernel calls of a step is known, and the committed table says it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.speed import launches

PAGE = Path(launches.__file__).parent.parent / "results" / "launches.md"


def test_the_committed_table_tells_what_a_step_calls_today(monkeypatch: pytest.MonkeyPatch) -> None:
    page = PAGE.read_text(encoding="utf-8")
    if f"with torch {torch.__version__.split('+')[0]}:" not in page:
        pytest.skip("the table was made with another torch, whose optimizers may call other kernels")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    committed = {row[0].removeprefix("| "): row[1] for row in rows}
    watched = ("fused AdamW alone", "online, clipping, plain decay", "online, clipping, selective decay", "all signals")
    monkeypatch.setattr(launches, "CASES", {name: launches.CASES[name] for name in watched})
    head, _, *lines = launches.table(["smoke"]).splitlines()
    assert head == f"| step | {committed['step']} |"
    remedy = "if that is meant: python -m benchmarks.speed.launches --out benchmarks/results/launches.md"
    assert {line.split(" | ")[0][2:]: line.split(" | ")[1].removesuffix(" |") for line in lines} == {
        name: committed[name] for name in watched
    }, remedy
