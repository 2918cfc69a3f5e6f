"""Gains and damages: how losses move along a first step of Adam."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from localopt import AboveMean, LayerTrace, LocalizedOptimizer, RelativeTo, trace_layers
from localopt.errors import InputError
from tests.tiny_lm import tiny_model, tiny_tokenizer

Example = tuple[Tensor, Tensor]
STEP = 1e-6


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1)).double()


def examples(count: int) -> list[Example]:
    return [(torch.randn(1, 3).double(), torch.randn(1, 1).double()) for _ in range(count)]


def squared_error(model: nn.Module, batch: Example) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def square_root(model: nn.Module, batch: Example) -> Tensor:
    """Has no slope where the target is 0."""
    return (model(batch[0]) * batch[1]).abs().sqrt().sum()


def losses(model: nn.Module, some: list[Example]) -> Tensor:
    return torch.stack([squared_error(model, example) for example in some])


def test_gain_and_damage_are_how_losses_move_along_the_step() -> None:
    model, news, kept = network(), examples(2), examples(3)
    trace = trace_layers(model, news, kept, loss=squared_error, score="gains")
    losses(model, news).mean().backward()
    for layer, gain, damage in zip(trace.layers, trace.probe_norms, trace.reference_norms, strict=True):
        parameters = list(model[int(layer)].parameters())
        with torch.no_grad():
            before = losses(model, news).mean(), losses(model, kept)
            for parameter in parameters:
                parameter -= STEP * parameter.grad.sign()
            fall = (before[0] - losses(model, news).mean()) / STEP
            along = (losses(model, kept) - before[1]) / STEP
            for parameter in parameters:
                parameter += STEP * parameter.grad.sign()
        assert gain.item() == pytest.approx(fall.item(), rel=1e-4)
        assert damage.item() == pytest.approx(along.square().mean().item(), rel=1e-3)


def test_the_step_is_that_of_adam() -> None:
    model, news = network(), examples(2)
    start = losses(model, news).mean().item()
    gain = trace_layers(model, news, news, loss=squared_error, score="gains").probe_norms.sum().item()
    optimizer = torch.optim.Adam(model.parameters(), lr=STEP, eps=1e-30)
    losses(model, news).mean().backward()
    optimizer.step()
    assert (start - losses(model, news).mean().item()) / STEP == pytest.approx(gain, rel=1e-4)


def test_a_layer_that_the_reference_pulls_elsewhere_without_a_common_direction_costs_nothing() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    news = [(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2))]
    kept = [(torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2))]  # moves the weights of the other input only
    trace = trace_layers(model, news, kept, loss=squared_error, score="gains")
    assert trace.probe_norms.item() > 0
    assert trace.reference_norms.item() == 0
    with pytest.raises(InputError, match="no gradient"):
        trace.frozen_parameters()


def test_a_trace_of_gains_chooses_freezes_saves_and_shows_itself(tmp_path: Path) -> None:
    model = tiny_model(tiny_tokenizer())
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    news, kept = ([{"input_ids": torch.randint(0, 40, (1, 8))} for _ in range(3)] for _ in range(2))
    for example in [*news, *kept]:
        example["labels"] = example["input_ids"]
    trace = trace_layers(model, news, kept, score="gains")
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert trace.metadata["probe_examples"] == 3
    assert [column.header for column in trace.table().columns][1:4] == ["gain", "damage", "ratio"]
    trace.save(tmp_path / "gains.safetensors")
    loaded = LayerTrace.load(tmp_path / "gains.safetensors")
    assert loaded.holds_gains
    torch.testing.assert_close(loaded.relative_norms, trace.relative_norms)
    loaded.plot(tmp_path / "gains.png")
    trained = loaded.freeze(model)
    chosen = {layer for layer, scale in loaded.frozen_parameters().scales.items() if scale}
    assert 0 < len(chosen) < len(loaded.layers)
    assert all(any(name.startswith(layer.rsplit(".", 1)[0]) for layer in chosen) for name in trained)


def test_norms_are_not_taken_relative_to_damages() -> None:
    model = network()
    trace = trace_layers(model, examples(2), examples(2), loss=squared_error, score="gains")
    with pytest.raises(ValueError, match="holds gains and damages"):
        LocalizedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, RelativeTo(trace, AboveMean()))


def test_bad_examples_are_named_and_nothing_is_changed() -> None:
    model = network()
    bad = [*examples(1), (torch.full((1, 3), math.nan).double(), torch.zeros(1, 1).double())]
    with pytest.raises(InputError, match=r"example 1 \(from 0\) of the probe: the loss is nan"):
        trace_layers(model, bad, examples(1), loss=squared_error, score="gains")
    kinked = [(torch.full((1, 3), 0.5).double(), torch.zeros(1, 1).double())]
    for probe, reference, of in ((kinked, examples(1), "probe"), (examples(1), kinked, "reference")):
        with pytest.raises(InputError, match=rf"example 0 \(from 0\) of the {of}: the gradient of 0, 2 is not finite"):
            trace_layers(model, probe, reference, loss=square_root, score="gains")
    with pytest.raises(InputError, match="the reference is empty"):
        trace_layers(model, examples(1), [], loss=squared_error, score="gains")
    assert all(parameter.grad is None for parameter in model.parameters())
