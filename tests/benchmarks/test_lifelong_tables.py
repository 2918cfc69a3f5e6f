"""Which runs stand for a method, and which of them are compared."""

from __future__ import annotations

import pytest

from benchmarks.lifelong.report.contrasts import RANDOM, Best
from benchmarks.lifelong.report.findings import Findings
from benchmarks.lifelong.report.records import Records
from benchmarks.lifelong.report.tables import contrasts
from tests.benchmarks.test_lifelong_statistics import records


def swept(*runs: tuple[str, float, int, float]) -> Records:
    """A sweep of runs (method, rate, seed, uptake at the end), all on both halves, that forget alike."""
    found = records()
    found.runs = [
        {**row, "method": method, "lr": lr, "seed": seed}
        for method, lr, seed, uptake in runs
        for row in records(uptake=uptake).runs
    ]
    return found


def row(found: Records, about: str) -> dict[str, str]:
    table = contrasts(Findings(found))
    return dict(zip(table.header, next(row for row in table.rows if row[0] == about), strict=True))


def test_a_method_stands_at_the_rate_that_took_in_most() -> None:
    found = Findings(swept(("adamw", 1e-4, 0, 1.0), ("deep", 1e-4, 0, 1.0), ("deep", 2e-4, 0, 3.0)))
    assert found.rates == {"adamw": 1e-4, "deep": 2e-4}


def test_random_draws_share_the_rate_at_which_most_of_them_ran() -> None:
    draws = [("random0", 1e-4, 0, 3.0), ("random0", 2e-4, 0, 1.0), ("random1", 2e-4, 0, 1.0)]
    found = Findings(swept(("adamw", 1e-4, 0, 1.0), *draws))
    assert found.rates == {"adamw": 1e-4, "random0": 2e-4, "random1": 2e-4}


def test_other_seeds_are_compared_alone_too() -> None:
    adamw = [("adamw", 1e-4, seed, 1.0) for seed in (0, 1)]
    found = row(swept(*adamw, ("deep", 1e-4, 0, 1.0), ("deep", 1e-4, 1, 3.0)), "the deep half, or AdamW")
    assert found["runs a side"] == "A, A1, B, B1"
    assert found["ratio at equal WikiText"].startswith("2.00")
    assert found["other seeds"].startswith("3.00")


def test_a_draw_with_a_second_seed_does_not_push_the_others_out() -> None:
    adamw = [("adamw", 1e-4, seed, 1.0) for seed in (0, 1)]
    draws = [(name, 1e-4, 0, float(uptake)) for uptake, name in enumerate(RANDOM, 1)]
    found = row(swept(*adamw, *draws, ("random0", 1e-4, 1, 5.0)), "random layers, or AdamW")
    assert found["runs a side"] == "A, B"
    assert found["ratio at equal WikiText"].startswith("3.00")  # the mean of 1 to 5
    assert found["other seeds"].startswith("5.00")


def test_the_best_draw_is_the_one_that_takes_in_most() -> None:
    draws = [(name, 1e-4, 0, uptake / 2) for uptake, name in enumerate(RANDOM, 1)]
    found = swept(("adamw", 1e-4, 0, 1.0), ("fp-text", 1e-4, 0, 5.0), *draws)
    assert row(found, "tracing against text, or the best of those draws")["ratio at equal WikiText"].startswith("2.00")
    assert Best(RANDOM) == RANDOM


def test_a_seed_that_was_run_on_one_half_alone_does_not_count_yet() -> None:
    found = swept(("adamw", 1e-4, 0, 1.0), ("deep", 1e-4, 0, 1.0), ("deep", 1e-4, 1, 3.0))
    found.runs.pop()
    assert {run["seed"] for run in Findings(found).runs["deep"]} == {0}
    found.runs = [run for run in found.runs if run["half"] == "A" or run["method"] == "adamw"]
    assert {run["seed"] for run in Findings(found).runs["deep"]} == {0, 1}


@pytest.mark.parametrize("missing", ["adamw", "deep"])
def test_comparisons_without_runs_are_left_out(missing: str) -> None:
    runs = [run for run in [("adamw", 1e-4, 0, 1.0), ("deep", 1e-4, 0, 1.0)] if run[0] != missing]
    table = contrasts(Findings(swept(("adamw", 2e-4, 0, 1.0), *runs)))
    assert ("the deep half, or AdamW" in [row[0] for row in table.rows]) is (missing != "deep")
