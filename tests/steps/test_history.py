"""The history of a run: what the reports said, every so many steps, in bounded memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD

from localopt import Fixed, LocalizedOptimizer
from localopt.steps.history import History
from tests.runs import backward, two_layers


def test_a_row_is_what_the_report_of_its_step_said() -> None:
    model = two_layers()
    optimizer = LocalizedOptimizer(SGD(model.parameters(), lr=0.1), model)
    history = optimizer.history(every=2)
    reports = []
    for step in range(5):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()
        reports.append(optimizer.report())
    assert history.steps == [1, 3, 5]
    for row, step in enumerate(history.steps):
        assert tuple(history.norms[row].tolist()) == reports[step - 1].norms
        assert tuple(history.scales[row].tolist()) == reports[step - 1].scales
    assert history.names == ("0", "2")


def test_a_policy_that_takes_no_norms_has_scales_alone() -> None:
    model = two_layers()
    optimizer = LocalizedOptimizer(SGD(model.parameters(), lr=0.1), model, Fixed({"0": 0.0, "2": 0.5}))
    history = optimizer.history()
    backward(model)
    optimizer.step()
    assert history.norms.isnan().all()
    assert history.scales.tolist() == [[0.0, 0.5]]


def test_a_long_run_keeps_at_most_so_many_rows_evenly_spread() -> None:
    history = History(every=3, names=("a",), most=8)
    for step in range(1, 1001):
        history.add(torch.tensor([float(step)]), torch.ones(1))
    assert len(history.steps) <= 8
    gaps = {b - a for a, b in zip(history.steps, history.steps[1:], strict=False)}
    assert gaps == {history.every}
    assert history.steps[0] == 1
    assert history.steps[-1] > 1000 - history.every
    assert history.norms[:, 0].tolist() == [float(step) for step in history.steps]


def test_layers_added_later_are_unknown_before() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1))
    optimizer = LocalizedOptimizer(SGD([*model[0].parameters(), *model[2].parameters()], lr=0.1), model)
    history = optimizer.history()
    for step in range(2):
        backward(model, step)
        optimizer.step()
        if step == 0:
            optimizer.add_param_group({"params": list(model[1].parameters())})
    assert history.names == ("0", "1", "2")
    assert history.norms.isnan().tolist() == [[False, True, False], [False, False, False]]


def test_a_history_that_was_saved_goes_on_as_if_it_had_not_been() -> None:
    whole, first, second = (History(every=2, names=("a", "b"), most=6) for _ in range(3))

    def note(history: History, steps: range) -> None:
        for step in steps:
            history.add(None if step % 3 == 0 else torch.tensor([float(step), 1.0]), torch.tensor([1.0, float(step)]))

    note(whole, range(1, 41))
    note(first, range(1, 24))
    second.resume(first.saved())
    note(second, range(24, 41))
    assert (second.every, second.steps) == (whole.every, whole.steps)
    torch.testing.assert_close(second.norms, whole.norms, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(second.scales, whole.scales)
    with pytest.raises(ValueError, match="saved of 2 layers, and there are 1 now"):
        History(1, ("a",)).resume(first.saved())


def test_an_interval_that_is_none_is_refused() -> None:
    model = two_layers()
    with pytest.raises(ValueError, match="every must be at least 1 step"):
        LocalizedOptimizer(SGD(model.parameters(), lr=0.1), model).history(every=0)
