"""Uptake at equal forgetting, its intervals, and which facts are drawn together."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.lifelong.report.records import Records
from benchmarks.lifelong.report.statistics import (
    MEASURES,
    Curve,
    Measure,
    Path,
    Scores,
    compare,
    crossing,
    holm,
    interval,
    lost_at_levels,
    uptake_at_levels,
)

SHARES = ("0.25", "0.5", "0.75", "1.0")


def straight(uptake: float, lost: float, draws: int = 4) -> Path:
    """A method that learns and forgets in proportion to the way it went."""
    way = np.linspace(0, 1, 5)
    curves = (Curve(x * way, np.tile(x * way, (draws, 1))) for x in (uptake, uptake, 0.0, lost, lost))
    return Path(*curves)


def answers(score: float, item: dict[str, Any]) -> list[float]:
    """Losses that make this score; an old answer's takes no part in it."""
    return [0.0, -math.log(math.expm1(-score)), *([-9.0] if item["old"] else [])]


def records(uptake: float = 1.0, lost: float = 2.0, held: float = 0.0, spread: float = 0.0) -> Records:
    """Runs on both halves whose scores change alike for every fact, give or take `spread`."""
    items: list[dict[str, Any]] = [
        {"part": half, "split": half, "fact": f"{half}{n}", "group": f"{half}{n // 2}", "phrasing": phrasing}
        | {"old": True}
        for half in "AB"
        for n in range(8)
        for phrasing in (0, 1)
    ]
    items += [
        {"part": "near", "split": split, "fact": f"{split}{n}", "group": f"{split}{n}", "phrasing": phrasing}
        | {"old": False}
        for split in ("dev", "test")
        for n in range(6)
        for phrasing in (0, 1)
    ]
    change = {"taught": uptake + held, "held": held, "near": -lost}
    sizes = {"taught": 16, "held": 8, "near": 24}
    tilt = {name: np.linspace(-spread, spread, size) for name, size in sizes.items()}
    texts = ["dev"] * 2 + ["test"] * 4
    start = {"id": "s", "nll": [answers(-6.0, item) for item in items], "text": [3.0 + n for n in range(6)]}
    found = Records({"inputs": {}, "items": items, "texts": texts}, {"s": start})
    for half in "AB":
        points = {
            share: {
                name: [
                    answers(-6.0 + float(share) * more, items[-1 if name == "near" else 0])
                    for more in change[name] + tilt[name]
                ]
                for name in sizes
            }
            | {"text": [3.0 + n + float(share) * rise for n, rise in enumerate([9.0, 9.0, 0.1, 0.2, 0.3, 0.4])]}
            for share in SHARES
        }
        found.runs.append({"method": "adamw", "lr": 1e-4, "half": half, "seed": 0, "start": "s", "points": points})
        found.runs[-1]["end"] = {"exact": 0.0, "f1": 0.5}
    return found


def test_uptake_is_what_the_taught_facts_gain_beyond_the_held_out_ones() -> None:
    found = records(uptake=1.0, lost=2.0, held=0.5)
    path = Scores(found, draws=50).path(found.runs)
    np.testing.assert_allclose(path.uptake.mean, [0, 0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(path.near.mean, [0, 0.5, 1.0, 1.5, 2.0])
    np.testing.assert_allclose(path.uptake.draws, np.tile(path.uptake.mean, (50, 1)), atol=1e-12)


def test_what_held_out_facts_lose_is_not_taken_for_uptake() -> None:
    found = records(uptake=1.5, held=-0.5)  # the taught facts gain 1.0
    path = Scores(found, draws=50).path(found.runs)
    assert path.uptake.mean[-1] == pytest.approx(1.0)
    assert path.gain.mean[-1] == pytest.approx(1.0)
    assert path.control.mean[-1] == pytest.approx(-0.5)
    np.testing.assert_allclose(path.uptake.draws[:, -1], 1.0)


def test_text_is_forgotten_as_its_loss_rises_on_the_pieces_of_one_split() -> None:
    found = records()
    path = Scores(found, draws=500).path(found.runs)
    np.testing.assert_allclose(path.text.mean, np.linspace(0, 0.25, 5))
    low, high = interval(path.text.end[1])
    assert 0.1 < low < 0.25 < high < 0.4
    assert Scores(found, draws=2).path(found.runs, "dev").text.end[0] == pytest.approx(9.0)


def test_the_interval_covers_the_mean_and_grows_with_the_spread_of_facts() -> None:
    widths = []
    for spread in (0.1, 1.0):
        found = records(spread=spread, held=-2.0)
        path = Scores(found, draws=500).path(found.runs)
        low, high = interval(path.uptake.draws[:, -1])
        assert low < path.uptake.mean[-1] < high
        widths.append(high - low)
    assert widths[1] == pytest.approx(10 * widths[0])


def test_facts_of_one_group_are_drawn_together_and_every_half_keeps_its_size() -> None:
    scores = Scores(records(), draws=30)
    weights = scores._weights
    for group in {item["group"] for item in scores.items}:
        columns = [i for i, item in enumerate(scores.items) if item["group"] == group]
        assert (weights[:, columns] == weights[:, columns[:1]]).all()
    for part in ("A", "B"):
        assert (weights[:, scores.places(part)].sum(1) == 16).all()
    assert weights.std() > 0


@given(st.floats(0.1, 5), st.floats(0.1, 5), st.floats(0.01, 1))
def test_on_a_straight_path_uptake_is_in_proportion_to_forgetting(uptake: float, lost: float, part: float) -> None:
    path = straight(uptake, lost)
    assert crossing(path.uptake.mean[None], path.near.mean[None], np.array([part * lost]))[0] == pytest.approx(
        part * uptake
    )


def test_a_method_that_never_forgets_so_much_counts_with_its_end_and_says_so() -> None:
    adamw, careful = straight(1.0, 4.0), straight(0.8, -1.0)
    uptakes, _, there = uptake_at_levels(careful, adamw, "near")
    assert uptakes == pytest.approx([0.8, 0.8, 0.8])
    assert there == [False] * 3
    found = compare([careful], [adamw], adamw, "near")
    assert found.ratio == pytest.approx(1.6)
    assert found.capped


def test_what_is_lost_of_near_facts_is_told_for_the_points_that_are_compared() -> None:
    # Text rises with near facts here, twice as far as AdamW's: a quarter of AdamW's way is an eighth of this one.
    assert lost_at_levels(straight(1.0, 4.0), straight(1.0, 2.0)) == pytest.approx([0.5, 1.0, 1.5])


@pytest.mark.parametrize("measure", MEASURES)
def test_what_is_compared_is_uptake_at_equal_forgetting_not_at_the_end(measure: Measure) -> None:
    adamw, half = straight(1.0, 4.0), straight(0.9, 8.0)
    assert compare([half], [adamw], adamw, measure).ratio == pytest.approx(0.45)


def test_random_draws_count_by_their_mean() -> None:
    adamw = straight(1.0, 4.0)
    found = compare([adamw], [straight(0.5, 4.0), straight(1.5, 4.0)], adamw, "text")
    assert found.ratio == pytest.approx(1.0)
    assert found.p == 1.0


def test_holm_multiplies_the_smallest_most_and_never_falls_below_a_smaller_one() -> None:
    assert holm([0.02, 0.01, 0.9]) == [0.04, 0.03, 0.9]
    assert holm([0.04, 0.03]) == [0.06, 0.06]
    assert holm([]) == []
