"""From a model's start to its end: marks on the way, and methods compared where they have forgotten alike."""

from __future__ import annotations

import pytest
import torch

from localopt.demo.exam import Marks
from localopt.demo.path import WAY, Path, compare, walk
from tests.tiny_lm import tiny_model, tiny_tokenizer


def path(*points: tuple[float, tuple[float, ...]]) -> Path:
    """(loss of the page, score of each question) at each stop."""
    return Path(tuple(Marks(0.0, scores, 0.0, page) for page, scores in points))


BASE = path((3.0, (-2.0, -1.0)), (3.2, (-1.0, 0.0)), (3.4, (0.0, 1.0)))


def test_points_are_what_was_lost_and_won_since_the_start() -> None:
    assert BASE.points == [(0.0, 0.0), (pytest.approx(0.2), 1.0), (pytest.approx(0.4), 2.0)]
    assert (BASE.forgetting, BASE.uptake) == (pytest.approx(0.4), 2.0)


def test_gains_at_a_level_lie_between_the_stops_around_it() -> None:
    gains, there = BASE.gains(0.3)
    assert there
    torch.testing.assert_close(gains, torch.tensor([1.5, 1.5], dtype=torch.float64))


def test_a_level_counts_where_it_is_reached_first_even_if_the_page_recovers() -> None:
    back = path((3.0, (0.0,)), (3.2, (1.0,)), (3.0, (5.0,)), (3.2, (9.0,)))
    assert back.gains(0.1)[0].item() == pytest.approx(0.5)


def test_a_path_that_never_forgets_so_much_counts_with_its_end_as_a_lower_bound() -> None:
    gentle = path((3.0, (-2.0, -1.0)), (3.01, (0.0, 1.0)), (3.02, (2.0, 3.0)))
    ratio = compare(gentle, BASE)
    assert ratio is not None
    assert ratio.bound
    assert ratio.value == pytest.approx(4.0 / 1.0)


def test_a_path_is_once_itself_whatever_facts_are_drawn() -> None:
    ratio = compare(BASE, BASE)
    assert ratio is not None
    assert (ratio.value, ratio.low, ratio.high, ratio.bound) == (1.0, 1.0, 1.0, False)


def test_the_interval_covers_facts_that_gained_unlike() -> None:
    uneven = path((3.0, (0.0, 0.0, 0.0)), (3.4, (0.0, 2.0, 4.0)))
    even = path((3.0, (0.0, 0.0, 0.0)), (3.4, (1.0, 1.0, 1.0)))
    ratio = compare(uneven, even)
    assert ratio is not None
    assert ratio.value == pytest.approx(2.0)
    assert ratio.low == pytest.approx(0.0)
    assert ratio.high == pytest.approx(4.0)


@pytest.mark.parametrize(
    "baseline",
    [path((3.0, (0.0,)), (2.9, (1.0,))), path((3.0, (0.0,)), (3.5, (-1.0,)))],
    ids=["forgot nothing", "learned nothing"],
)
def test_nothing_is_compared_with_a_baseline_that_forgot_or_learned_nothing(baseline: Path) -> None:
    assert compare(path((3.0, (0.0,)), (3.5, (1.0,))), baseline) is None


def test_walking_marks_the_models_in_between_and_gives_the_start_back_bit_for_bit() -> None:
    model = tiny_model(tiny_tokenizer())
    start = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1.0)
    name, first = next(iter(start.items()))

    def moved(one: torch.nn.Module) -> Marks:
        return Marks(0.0, (0.0,), 0.0, (one.get_parameter(name) - first).mean().item())

    found = walk(model, start, Marks(0.0, (0.0,), 0.0, 0.0), moved)
    assert [marks.page for marks in found.marks] == pytest.approx([0.0, *WAY, 1.0], abs=1e-5)
    assert all(torch.equal(weight, start[name]) for name, weight in model.named_parameters())
