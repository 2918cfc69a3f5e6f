"""Optimizers that step somewhere else than through their parameter groups are recognised, or caught in the act."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from localopt import Fixed, LayerTrace, LocalizedOptimizer
from localopt.steps import stillness
from tests.runs import backward, two_layers


def first_only(norms: Tensor) -> Tensor:
    return (torch.arange(len(norms)) == 0).float()


first_only.binary = True  # type: ignore[attr-defined]


class Lookahead(Optimizer):
    """The usual shape of one: no constructor of the base class, groups and state borrowed."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.param_groups, self.state = optimizer.param_groups, optimizer.state
        self.defaults: dict[str, Any] = {}

    def step(self, closure: Any = None) -> None:
        self.optimizer.step()


class Flat(SGD):
    """Keeps the parameters it was made with in a list, and steps those."""

    def __init__(self, parameters: Any, lr: float) -> None:
        self.mine = list(parameters)
        super().__init__(self.mine, lr=lr)

    def step(self, closure: Any = None) -> None:
        with torch.no_grad():
            for parameter in self.mine:
                if parameter.grad is not None:
                    parameter -= self.defaults["lr"] * parameter.grad


class Hidden(SGD):
    """Keeps them where nobody finds them."""

    def __init__(self, parameters: Any, lr: float) -> None:
        mine = list(parameters)
        self.recall = lambda: mine
        super().__init__(mine, lr=lr)

    def step(self, closure: Any = None) -> None:
        with torch.no_grad():
            for parameter in self.recall():
                if parameter.grad is not None:
                    parameter.data.sub_(self.defaults["lr"] * parameter.grad)


def test_an_optimizer_around_another_is_refused_and_the_inner_one_named() -> None:
    model = two_layers()
    with pytest.raises(ValueError, match=r"Lookahead steps through another optimizer \(SGD\)"):
        LocalizedOptimizer(Lookahead(SGD(model.parameters(), lr=0.1)), model)


def test_lookahead_around_a_localized_optimizer_trains_the_chosen_layers() -> None:
    model = two_layers()
    localized = LocalizedOptimizer(SGD(model.parameters(), lr=0.1), model, first_only)
    before = model[2].weight.detach().clone()
    backward(model)
    Lookahead(localized).step()
    assert localized.report().updated == ("0",)
    assert torch.equal(model[2].weight, before)


@pytest.mark.parametrize("held", ["a list", "a dictionary"])
def test_optimizers_held_in_a_collection_are_found(held: str) -> None:
    model = two_layers()
    optimizer = SGD(model.parameters(), lr=0.1)
    parts = [SGD(model[0].parameters(), lr=0.1), SGD(model[2].parameters(), lr=0.1)]
    optimizer.parts = parts if held == "a list" else dict(enumerate(parts))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="steps through another optimizer"):
        LocalizedOptimizer(optimizer, model)


def test_an_optimizer_with_a_parameter_list_of_its_own_is_refused() -> None:
    model = two_layers()
    with pytest.raises(ValueError, match=r'Flat keeps a list of the parameters of its own \("mine"\)'):
        LocalizedOptimizer(Flat(model.parameters(), 0.1), model)


def test_what_was_not_recognised_is_caught_at_the_first_step_that_freezes_something() -> None:
    model = two_layers()
    scales = [[1.0, 1.0], [1.0, 0.0]]
    optimizer = LocalizedOptimizer(Hidden(model.parameters(), 0.1), model, lambda norms: torch.tensor(scales.pop(0)))
    backward(model)
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"Hidden moved 2 of 2 frozen parameters \(the first: 2\.weight\)"):
        optimizer.step()


def test_a_constant_policy_that_takes_no_norms_is_checked_too() -> None:
    model = two_layers()
    optimizer = LocalizedOptimizer(Hidden(model.parameters(), 0.1), model, Fixed({"0": 1.0, "2": 0.0}))
    backward(model)
    with pytest.raises(RuntimeError, match="Hidden moved"):
        optimizer.step()


def test_an_honest_optimizer_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    original = stillness.Stillness.refuse_moved
    monkeypatch.setattr(
        stillness.Stillness, "refuse_moved", lambda self, optimizer: (looks.append(1), original(self, optimizer))
    )
    model = two_layers()
    optimizer = LocalizedOptimizer(SGD(model.parameters(), lr=0.1), model, first_only)
    for step in range(3):
        backward(model, step)
        optimizer.step()
    assert looks == [1]


def test_a_look_copies_little_of_a_large_parameter_and_still_sees_it_move() -> None:
    weight = nn.Parameter(torch.randn(1000, 1000))
    weight.data[3] = float("nan")
    look = stillness.Stillness([("w", weight)])
    assert look.before[0][2].numel() < 2 * stillness._SAMPLES
    look.refuse_moved(SGD([weight], lr=0.1))  # NaN stays NaN
    weight.data -= 1e-3
    with pytest.raises(RuntimeError, match="moved 1 of 1"):
        look.refuse_moved(SGD([weight], lr=0.1))


def test_zero_redundancy_is_refused(tmp_path: Any) -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        model = two_layers()
        zero = ZeroRedundancyOptimizer(model.parameters(), AdamW, lr=0.1)
        with pytest.raises(ValueError, match=r"ZeroRedundancyOptimizer steps through another optimizer \(AdamW\)"):
            LocalizedOptimizer(zero, model)
    finally:
        torch.distributed.destroy_process_group()


def test_what_accelerate_prepared_is_refused_with_the_order_that_works() -> None:
    model = two_layers()
    model, prepared = Accelerator(cpu=True).prepare(model, AdamW(model.parameters()))
    with pytest.raises(ValueError, match="wrap first, then prepare"):
        LocalizedOptimizer(prepared, model)


def test_a_model_in_place_of_the_optimizer_says_what_to_pass() -> None:
    with pytest.raises(TypeError, match=r"called with a Sequential.*localized_optimizer\(args\)"):
        LocalizedOptimizer(two_layers())  # type: ignore[arg-type]


# -- DeepSpeed, by what it does to an optimizer (deepspeed/runtime/zero/stage_1_and_2.py) ------------------------------


class DeepSpeedZeroOptimizer:
    """Flattens every group of the optimizer it is given into one slice, and steps one group at a time."""

    def __init__(self, init_optimizer: Optimizer) -> None:
        self.optimizer = init_optimizer
        self.single_partition_of_fp32_groups = []
        for group in init_optimizer.param_groups:
            flat = torch.cat([parameter.detach().flatten() for parameter in group["params"]]).requires_grad_()
            self.single_partition_of_fp32_groups.append(flat)
            group["params"] = [flat]

    def step(self) -> None:
        groups = self.optimizer.param_groups
        for i, group in enumerate(groups):
            self.single_partition_of_fp32_groups[i].grad = torch.ones_like(self.single_partition_of_fp32_groups[i])
            self.optimizer.param_groups = [group]
            self.optimizer.step()
            self.optimizer.param_groups = groups


DeepSpeedZeroOptimizer.__module__ = "deepspeed.runtime.zero.stage_1_and_2"


def test_an_optimizer_that_deepspeed_flattened_is_refused_with_what_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", ModuleType("deepspeed"))
    model = two_layers()
    groups = [{"params": list(layer.parameters())} for layer in (model[0], model[2])]
    zero = DeepSpeedZeroOptimizer(LocalizedOptimizer(SGD(groups, lr=0.1), model))
    before = [slice_.detach().clone() for slice_ in zero.single_partition_of_fp32_groups]
    with pytest.raises(RuntimeError, match=r"flattened by DeepSpeed.*LayerTrace\.freeze.*trace\.param_groups"):
        zero.step()
    assert all(map(torch.equal, zero.single_partition_of_fp32_groups, before))


def test_what_deepspeed_made_of_an_optimizer_cannot_be_wrapped() -> None:
    model = two_layers()
    zero: Any = DeepSpeedZeroOptimizer(SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="DeepSpeedZeroOptimizer are flattened by DeepSpeed"):
        LocalizedOptimizer(zero, model)


def test_one_group_a_layer_trains_what_the_trace_chooses_one_group_at_a_time() -> None:
    model = two_layers()
    trace = LayerTrace(("0", "2"), torch.tensor([1.0, 9.0]), torch.ones(2), {"partition": "sublayer"})
    groups = trace.param_groups(model, lr=0.1, weight_decay=0.01)
    assert [(group["name"], group["lr"], group["weight_decay"]) for group in groups] == [("2", 0.1, 0.01)]
    rates = trace.param_groups(model, lr=0.1, scales=trace.adaptive_learning_rates().scales)
    assert [(group["name"], round(group["lr"], 6)) for group in rates] == [("0", round(0.1 / 9, 6)), ("2", 0.1)]
    DeepSpeedZeroOptimizer(SGD(groups, lr=0.1)).step()
