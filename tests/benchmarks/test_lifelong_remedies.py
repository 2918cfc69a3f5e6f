"""What a method may have beside its layers: replay, corrections of its steps, adapters. And how stable traces are."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.lifelong import prepare
from benchmarks.lifelong.methods.adapters import adapted
from benchmarks.lifelong.methods.corrections import Correction, anchored, anchored_by, gated, projected, recalled
from benchmarks.lifelong.methods.methods import make_optimizer
from benchmarks.lifelong.methods.norms import best_rates
from benchmarks.lifelong.methods.replay import SEQUENCES, replayed
from benchmarks.lifelong.methods.rules import Case
from benchmarks.lifelong.report import choice, stability
from benchmarks.lifelong.start import plain_text
from benchmarks.memory import growth
from localopt import LocalizedOptimizer
from localopt.layers import partition
from localopt.pretraining.models import load_model
from localopt.pretraining.probes import read_probes
from localopt.tracing.layer_trace import LayerTrace
from tests.benchmarks.invented import save_learned_model, write_data
from tests.tiny_lm import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_learned_model(write_data(tmp_path_factory.mktemp("data")), tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "p"
    data = write_data(tmp_path_factory.mktemp("data"))
    prepare.main(["--data", str(data), "--out", str(folder), "--model", str(model)])
    return folder


@dataclass
class Known:
    """What a case knows of a model: norms of its layers, and mean gradients."""

    norms: dict[str, float] = field(default_factory=dict)
    gradients: dict[Tensor, Tensor] = field(default_factory=dict)

    def __getitem__(self, name: str) -> dict[str, float]:
        return self.norms

    def mean_gradient(self, name: str) -> dict[Tensor, Tensor]:
        return self.gradients


def case(known: Known) -> Case:
    return Case((), "A", 0, known)  # type: ignore[arg-type]


class Vector(nn.Module):
    """One layer of one vector."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(values))


def after_steps(correction: Correction, model: Vector, *gradients: list[float], known: Known | None = None) -> Tensor:
    """The weights after steps of SGD at a rate of 0.1 along these gradients."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    correction(case(known or Known()), model, optimizer)
    for gradient in gradients:
        model.weight.grad = torch.tensor(gradient)
        optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 0.1
    return model.weight.detach()


def test_anchor_decay_moves_weights_towards_the_start_in_proportion_to_the_rate() -> None:
    # To 0, then a fifth of the way back to 1.
    found = after_steps(anchored(2.0), Vector(1.0, -2.0), [10.0, 0.0])
    torch.testing.assert_close(found, torch.tensor([0.2, -2.0]))


def test_anchor_decay_works_through_the_wrapper_too() -> None:
    network = nn.Linear(2, 1, bias=False)
    start = network.weight.detach().clone()
    optimizer = LocalizedOptimizer(torch.optim.SGD(network.parameters(), lr=1.0), network)
    anchored(1.0)(case(Known()), network, optimizer)
    network(torch.ones(2)).backward()
    optimizer.step()
    torch.testing.assert_close(network.weight.detach(), start)


def test_anchor_decay_by_norms_holds_the_layers_that_matter_to_what_is_kept() -> None:
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    for layer in network:
        nn.init.ones_(layer.weight)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    anchored_by("kept", 1.0)(case(Known(norms={"0": 1.0, "1": 3.0})), network, optimizer)
    for layer in network:
        layer.weight.grad = torch.full((1, 1), 10.0)
    optimizer.step()  # both to 0, then 0.1 * 1 / 5 and 0.1 * 9 / 5 of the way back to 1
    assert [round(layer.weight.item(), 6) for layer in network] == [0.02, 0.18]  # type: ignore[operator]


def test_recadam_goes_from_anchor_decay_to_training() -> None:
    half = after_steps(recalled(0.0, speed=50.0, middle=0.0), Vector(1.0), [10.0])
    torch.testing.assert_close(half, torch.tensor([0.5]))  # in the middle, at half the rate
    early = after_steps(recalled(10.0, speed=50.0, middle=5.0), Vector(1.0), [10.0], [10.0])
    torch.testing.assert_close(early, torch.tensor([1.0]))  # long before it, decay alone
    late = after_steps(recalled(10.0, speed=50.0, middle=-5.0), Vector(1.0), [10.0], [10.0])
    torch.testing.assert_close(late, torch.tensor([-1.0]))  # long after it, training alone


def test_a_gate_shortens_changes_against_what_is_kept_and_no_others() -> None:
    model = Vector(0.0, 0.0)
    known = Known(gradients={model.weight: torch.tensor([1.0, 0.0])})
    # The loss on what is kept rises with the first weight; of a change straight against it a tenth is left.
    found = after_steps(gated("text", slope=10.0), model, [-10.0, 0.0], known=known)
    torch.testing.assert_close(found, torch.tensor([0.1, 0.0]))
    found = after_steps(gated("text", slope=10.0), model, [1.0, 10.0], known=known)
    torch.testing.assert_close(found, torch.tensor([0.0, -1.0]))


def test_a_projection_takes_out_what_raises_the_loss_on_what_is_kept() -> None:
    model = Vector(0.0, 0.0)
    known = Known(gradients={model.weight: torch.tensor([2.0, 0.0])})
    found = after_steps(projected("text"), model, [-10.0, 10.0], known=known)
    torch.testing.assert_close(found, torch.tensor([0.0, -1.0]))
    found = after_steps(projected("text"), model, [10.0, 0.0], known=known)
    torch.testing.assert_close(found, torch.tensor([-1.0, -1.0]))


def test_rates_chosen_together_are_no_worse_than_any_others() -> None:
    generator = torch.Generator().manual_seed(0)
    moves = torch.randn(8, 5, generator=generator).double()
    gains, cost = torch.rand(5, generator=generator).double(), moves.T @ moves

    def gain_less_damage(rates: Tensor) -> float:
        return float(gains @ rates - rates @ cost @ rates / 2)

    best = best_rates(gains, cost)
    assert best.min() >= 0
    for _ in range(200):
        other = (best + 0.05 * torch.randn(5, generator=generator)).clamp(min=0)
        assert gain_less_damage(other) <= gain_less_damage(best) + 1e-9


def test_replay_fills_every_epoch_and_never_brings_what_is_tested(prepared: Path, model: Path) -> None:
    _, tokenizer = load_model(str(model))
    epochs = replayed("kept", prepared, tokenizer, 16, 3)
    assert [len(sequences) for sequences in epochs] == [SEQUENCES] * 3
    read = " ".join(tokenizer.decode(sequence["input_ids"]) for sequences in epochs for sequence in sequences)
    for split in ("dev", "test"):
        assert not any(probe.text in read for probe in read_probes(prepared / f"retained.{split}.jsonl"))


def test_replayed_text_is_text_and_is_read_in_order(prepared: Path, model: Path) -> None:
    _, tokenizer = load_model(str(model))
    pieces = [piece["input_ids"].tolist() for piece in plain_text(tokenizer, prepared, 4)]
    epochs = replayed("text", prepared, tokenizer, 4, 2)
    assert all(sequence["input_ids"].tolist() in pieces for sequences in epochs for sequence in sequences)


def test_adapters_train_the_layers_of_a_plan_and_leave_a_plain_model_behind() -> None:
    network = tiny_model(tiny_tokenizer())
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    layer_of = partition(before)
    chosen = next(layer for layer in layer_of.values() if layer.endswith("mlp"))
    with adapted(network, 4) as trained:
        optimizer = make_optimizer(trained, 1e-2, {layer: float(layer == chosen) for layer in layer_of.values()})
        for _ in range(2):  # the second factor of an adapter begins at zero, so the first one waits for a step
            trained(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
            optimizer.step()
    after = dict(network.named_parameters())
    assert list(after) == list(before)
    moved = {layer_of[name] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {chosen}


def test_a_model_without_adapters_is_lent_as_it_is() -> None:
    network = tiny_model(tiny_tokenizer())
    with adapted(network, 0) as trained:
        assert trained is network


def test_traces_from_few_examples_are_compared_with_the_trace_from_all(
    prepared: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, _ = load_model(str(model))
    save_file({name: parameter.detach() for name, parameter in network.named_parameters()}, tmp_path / "start")
    monkeypatch.setattr(stability, "DRAWS", 5)
    given = ["--data", str(prepared), "--model", str(model), "--start", str(tmp_path / "start")]
    stability.main([*given, "--out", str(tmp_path / "out")])
    text = (tmp_path / "out" / "stability.md").read_text()
    assert "| A | ordinary text | 4 |" in text
    assert (tmp_path / "out" / "stability.json").is_file()


def test_the_choice_from_a_corpus_is_compared_with_those_from_answers_and_text(
    prepared: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, _ = load_model(str(model))
    save_file({name: parameter.detach() for name, parameter in network.named_parameters()}, tmp_path / "start")
    for name, value in (("DRAWS", 1), ("EXAMPLES", 8), ("SIZES", (2, 4))):
        monkeypatch.setattr(choice, name, value)
    given = ["--data", str(prepared), "--model", str(model), "--start", str(tmp_path / "start")]
    choice.main([*given, "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "choice.json").read_text())["rows"]
    assert [row["trace"] for row in rows if row["half"] == "A"] == [
        "corpus against ordinary text",
        "answers against own text",
        "answers against ordinary text",
        "corpus against own text, 2 of each",
        "corpus against own text, 4 of each",
    ]
    assert all(0 <= row["both"] <= min(row["chosen"], row["of"]) and -1 <= row["rank"] <= 1 for row in rows)
    assert "| A | corpus against ordinary text |" in (tmp_path / "choice.md").read_text()


def test_a_choice_compared_with_itself_agrees_in_everything() -> None:
    trace = LayerTrace(("a", "b", "c"), torch.tensor([1.0, 2.0, 9.0]), torch.ones(3), {"score": "gains"})
    assert choice.compared(trace, trace) == {"rank": pytest.approx(1), "chosen": 1, "of": 1, "both": 1, "shared": 1}
    other = LayerTrace(("a", "b", "c"), torch.tensor([9.0, 8.0, 1.0]), torch.ones(3), {"score": "gains"})
    found = choice.compared(other, trace)
    assert (found["rank"], found["chosen"], found["both"], found["shared"]) == (pytest.approx(-1), 2, 0, 0)


def test_memory_growth_sees_what_a_run_holds() -> None:
    grown = growth(lambda: torch.ones(50_000_000))
    # Not to the byte: the process may have had some free pages, and the allocator takes some more.
    assert grown is None or 180e6 < grown < 260e6
