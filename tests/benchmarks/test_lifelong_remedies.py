"""What a method may have beside its layers: replay, a pull to the start, adapters. And how stable traces are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.lifelong import prepare, stability
from benchmarks.lifelong.adapters import adapted
from benchmarks.lifelong.methods import make_optimizer
from benchmarks.lifelong.pull import Pull
from benchmarks.lifelong.replay import SEQUENCES, replayed
from benchmarks.lifelong.start import plain_text
from benchmarks.memory import growth
from localopt import LocalizedOptimizer
from localopt.layers import partition
from localopt.models import load_model
from localopt.probes import read_probes
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


def test_a_pull_moves_weights_towards_the_start_in_proportion_to_the_rate() -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    optimizer.register_step_post_hook(Pull(optimizer, 2.0))
    weight.grad = torch.tensor([10.0, 0.0])
    optimizer.step()  # to 0, then a fifth of the way back to 1
    torch.testing.assert_close(weight.detach(), torch.tensor([0.2, -2.0]))


def test_a_pull_works_through_the_wrapper_too() -> None:
    network = nn.Linear(2, 1, bias=False)
    start = network.weight.detach().clone()
    optimizer = LocalizedOptimizer(torch.optim.SGD(network.parameters(), lr=1.0), network)
    optimizer.register_step_post_hook(Pull(optimizer, 1.0))
    network(torch.ones(2)).backward()
    optimizer.step()
    torch.testing.assert_close(network.weight.detach(), start)


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
    from safetensors.torch import save_file

    save_file({name: parameter.detach() for name, parameter in network.named_parameters()}, tmp_path / "start")
    monkeypatch.setattr(stability, "DRAWS", 5)
    given = ["--data", str(prepared), "--model", str(model), "--start", str(tmp_path / "start")]
    stability.main([*given, "--out", str(tmp_path / "out")])
    text = (tmp_path / "out" / "stability.md").read_text()
    assert "| A | ordinary text | 4 |" in text
    assert (tmp_path / "out" / "stability.json").is_file()


def test_memory_growth_sees_what_a_run_holds() -> None:
    grown = growth(lambda: torch.ones(50_000_000))
    # Not to the byte: the process may have had some free pages, and the allocator takes some more.
    assert grown is None or 180e6 < grown < 260e6
