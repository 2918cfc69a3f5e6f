"""A sharded run is resumed bit for bit by loaders that insist on a state for every parameter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.distributed.launch import succeed
from tests.distributed.resume_worker import CASES
from tests.runs import assert_same

pytestmark = pytest.mark.timeout(600)
each_case = pytest.mark.parametrize("case", CASES)
Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    out = tmp_path_factory.mktemp("resume")
    for what, processes in (
        ("save", 2),
        ("resume", 2),
        ("resume", 4),
    ):  # four, as a batch has four rows: shares of one size
        succeed("tests.distributed.resume_worker", processes, what, out, timeout=280)
    names = ("save-2", "resume-2", "resume-4")
    return {name: torch.load(out / f"{name}.pt", weights_only=False) for name in names}


@each_case
def test_layers_that_were_never_chosen_are_saved_as_such(case: str, runs: dict[str, Found]) -> None:
    saved = runs["save-2"][case]
    assert "error" not in saved, saved
    assert 0 < len(saved["saved"]["state"]) < len(saved["saved"]["weights"])


@each_case
@pytest.mark.parametrize("processes", [2, 4])
def test_what_is_loaded_is_what_was_saved(case: str, processes: int, runs: dict[str, Found]) -> None:
    resumed = runs[f"resume-{processes}"][case]
    assert "error" not in resumed, resumed
    assert_same(resumed["loaded"], runs["save-2"][case]["saved"])


@each_case
def test_the_resumed_run_goes_on_bit_for_bit(case: str, runs: dict[str, Found]) -> None:
    saved, resumed = runs["save-2"][case], runs["resume-2"][case]
    assert_same(resumed["end"], saved["end"])
    assert resumed["scales"] == saved["scales"][3:]


@each_case
def test_on_another_number_of_processes_it_goes_on_up_to_rounding(case: str, runs: dict[str, Found]) -> None:
    saved, resumed = runs["save-2"][case], runs["resume-4"][case]
    torch.testing.assert_close(resumed["end"]["weights"], saved["end"]["weights"], rtol=1e-5, atol=1e-6)


def test_a_layer_first_chosen_after_the_resume_takes_a_first_step(runs: dict[str, Found]) -> None:
    saved, resumed = runs["save-2"]["nested"], runs["resume-2"]["nested"]
    later = resumed["end"]["state"].keys() - saved["saved"]["state"].keys()
    assert later, "no layer was chosen for the first time after the resume: choose other data"
    assert {resumed["end"]["state"][name]["step"].item() for name in later} <= {1.0, 2.0}
