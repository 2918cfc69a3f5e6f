"""What torch asks of its own optimizers, asked of a localized one: over its optimizer database, and its schedulers."""

from __future__ import annotations

import copy
import gc
import inspect
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer, lr_scheduler, swa_utils
from torch.optim.swa_utils import SWALR

from localopt import AboveMean, LocalizedOptimizer, Smoothed
from tests.laws import INFOS, Layered, assert_same_bits, give_gradients

each_optimizer = pytest.mark.parametrize("name", INFOS)


def localized(name: str, model: Layered, *, named: bool = False, groups: bool = False) -> LocalizedOptimizer:
    parameters: Any = list(model.named_parameters() if named else model.parameters())
    half = len(parameters) // 2
    given = [{"params": parameters[:half]}, {"params": parameters[half:], "lr": 0.003}] if groups else parameters
    return LocalizedOptimizer(INFOS[name].optim_cls(given, lr=0.01), model, Smoothed(AboveMean(), 0.5), layers="block")


def layered(name: str, seed: int = 0) -> Layered:
    torch.manual_seed(seed)
    return Layered(torch.float32, matrices_only=name == "Muon")


def steps(start: int, stop: int, *runs: tuple[nn.Module, Optimizer]) -> None:
    """Step every run with the same gradients."""
    for step in range(start, stop):
        torch.manual_seed(step)
        give_gradients(*(model for model, _ in runs))
        for _, optimizer in runs:
            optimizer.step()


@pytest.mark.parametrize(("saved_named", "loaded_named"), [(True, True), (True, False), (False, True)])
@each_optimizer
def test_a_state_dict_loads_whether_or_not_parameters_have_names(
    name: str, saved_named: bool, loaded_named: bool
) -> None:
    model = layered(name)
    optimizer = localized(name, model, named=saved_named)
    steps(0, 2, (model, optimizer))
    twin = copy.deepcopy(model)
    resumed = localized(name, twin, named=loaded_named)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(2, 4, (model, optimizer), (twin, resumed))
    assert_same_bits(twin, model, name)


@each_optimizer
def test_groups_keep_their_own_options_and_follow_what_is_set_in_them(name: str) -> None:
    model = layered(name)
    optimizer = localized(name, model, groups=True)
    assert [float(group["lr"]) for group in optimizer.param_groups] == [0.01, 0.003]
    optimizer.param_groups[1]["lr"] = 0.0
    second = [parameter.detach().clone() for parameter in optimizer.param_groups[1]["params"]]
    steps(0, 2, (model, optimizer))
    if name not in ("Rprop", "Adafactor", "ASGD"):  # whose first step sizes are not the rate times something
        assert all(map(torch.equal, optimizer.param_groups[1]["params"], second))


@each_optimizer
def test_a_pickled_optimizer_goes_on_with_its_pickled_model(name: str) -> None:
    model = layered(name)
    optimizer = localized(name, model)
    steps(0, 2, (model, optimizer))
    twin, copied = pickle.loads(pickle.dumps((model, optimizer)))
    steps(2, 4, (model, optimizer), (twin, copied))
    assert_same_bits(twin, model, name)


@each_optimizer
def test_a_closure_is_called_once_and_its_loss_returned(name: str) -> None:
    model, calls = layered(name), []
    optimizer = localized(name, model)

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss: Tensor = torch.stack([parameter.square().sum() for parameter in model.parameters()]).sum()
        loss.backward()
        return loss

    loss: Any = optimizer.step(closure)  # type: ignore[call-overload]
    assert calls == [True]
    assert float(loss) > 0


SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, gamma=0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5], gamma=0.5),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, total_iters=4),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, total_iters=5),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=9),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.01, 2, cycle_momentum=False),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.01, total_steps=12),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda _: 0.9),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 3), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, 3), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=1, cooldown=1),
    "SWALR": lambda o: SWALR(o, swa_lr=0.001, anneal_epochs=6),
}


def scheduled(make: Callable[[Optimizer], Any]) -> tuple[Layered, LocalizedOptimizer, Any]:
    model = layered("AdamW")
    optimizer = localized("AdamW", model)
    return model, optimizer, make(optimizer)


def schedule(scheduler: Any, step: int) -> None:
    """Step it; a plateau sees a loss that falls once and then no more."""
    plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
    scheduler.step(max(0.5, 1.0 - 0.5 * step)) if plateau else scheduler.step()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_resumed_midway_goes_on_as_it_would_have(name: str) -> None:
    model, optimizer, scheduler = scheduled(SCHEDULERS[name])
    for step in range(4):
        steps(step, step + 1, (model, optimizer))
        schedule(scheduler, step)
    rates = {optimizer.param_groups[0]["lr"]}
    twin, resumed, again = scheduled(SCHEDULERS[name])
    buffer = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), scheduler.state_dict()], buffer)
    buffer.seek(0)
    for part, state in zip((twin, resumed, again), torch.load(buffer, weights_only=False), strict=True):
        part.load_state_dict(state)
    for step in range(4, 8):
        steps(step, step + 1, (model, optimizer), (twin, resumed))
        schedule(scheduler, step)
        schedule(again, step)
        assert resumed.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
        rates.add(optimizer.param_groups[0]["lr"])
    assert_same_bits(twin, model, name)
    if name != "ConstantLR":  # which has done all it does by then
        assert len(rates) > 1, "a rate that stays as it is shows nothing"


def test_every_scheduler_of_torch_is_tried() -> None:
    classes = [
        value for module in (lr_scheduler, swa_utils) for value in vars(module).values() if inspect.isclass(value)
    ]
    known = {kind.__name__ for kind in classes if issubclass(kind, lr_scheduler.LRScheduler)}
    assert known - {"LRScheduler", "_LRScheduler"} == set(SCHEDULERS)


def test_two_optimizers_on_one_model_each_train_their_own() -> None:
    model = layered("AdamW")
    first = LocalizedOptimizer(AdamW(model.layer(0) + model.layer(1), lr=0.01), model, layers="block")
    second = LocalizedOptimizer(SGD(model.layer(2) + model.layer(3), lr=0.01), model, layers="block")
    steps(0, 3, (model, first))
    second.step()
    assert set(first.report().names) | set(second.report().names) == {"0", "1", "2", "3"}
    assert not set(first.state) & set(second.state)


@pytest.mark.slow
def test_two_thousand_steps_keep_no_more_objects_than_twenty() -> None:
    model = layered("AdamW")
    optimizer = LocalizedOptimizer(
        AdamW(model.parameters()), model, max_grad_norm=1.0, layers="block", anchor_decay=1.0
    )
    optimizer.history(every=1).most = 16
    steps(0, 20, (model, optimizer))
    gc.collect()
    before, held = len(gc.get_objects()), tensor_bytes()
    steps(20, 2000, (model, optimizer))
    gc.collect()
    assert len(gc.get_objects()) - before < 100
    assert tensor_bytes() - held < 4096


def tensor_bytes() -> int:
    """What all tensors that Python knows of hold, each storage once."""
    storages = {s.data_ptr(): s.nbytes() for s in (o.untyped_storage() for o in gc.get_objects() if type(o) in TENSORS)}
    return sum(storages.values())


TENSORS = (Tensor, nn.Parameter)
