"""Rules of other methods, and paths by layer: on tiny models whose answer is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from benchmarks.lifelong.methods.interpolation import by_depth, by_gain_damage
from benchmarks.lifelong.methods.methods import METHODS, layer_names, make_optimizer, partition_of
from benchmarks.lifelong.methods.norms import Norms
from benchmarks.lifelong.methods.peers import best_conditioned, least_missed, momentum_filtered
from benchmarks.lifelong.methods.rules import Case
from benchmarks.lifelong.start import place
from benchmarks.lifelong.watch import Watch
from localopt.layers import partition
from localopt.pretraining.probes import Example
from tests.tiny_lm import tiny_model, tiny_tokenizer

TEXTS: list[Example] = [{"input_ids": ids, "labels": ids.clone()} for ids in torch.arange(40).view(4, 10) + 5]


class Invented(Norms):
    """Norms of sets that need no files."""

    def examples(self, name: str) -> list[Example]:
        return TEXTS[:2] if name == "A" else TEXTS[2:]


@pytest.fixture
def model() -> LlamaForCausalLM:
    return tiny_model(tiny_tokenizer())


@pytest.fixture
def case(model: LlamaForCausalLM, tmp_path: Path) -> Case:
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    norms = Invented(tmp_path / "n.json", tmp_path, model, tiny_tokenizer(), 10, lambda: place(model, start))
    return Case(layer_names(model), "A", 0, norms)


def weights(model: LlamaForCausalLM) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_kappatune_trains_the_matrices_with_the_lowest_condition_number(
    model: LlamaForCausalLM, tmp_path: Path
) -> None:
    name = "model.layers.1.self_attn.q_proj.weight"
    q = dict(model.named_parameters())[name]
    with torch.no_grad():
        q.copy_(torch.eye(32) * 0.3)  # condition number 1
    norms = Invented(tmp_path / "n.json", tmp_path, model, tiny_tokenizer(), 10, lambda: None)
    plan = best_conditioned(1 / 14)(Case(layer_names(model), "A", 0, norms))  # one of the 14 matrices of the blocks
    assert isinstance(plan, dict)
    assert [layer for layer, scale in plan.items() if scale] == [partition([name], "matrix")[name]]
    before = weights(model)
    optimizer = make_optimizer(model, 1e-2, plan)
    model(**{key: value[None] for key, value in TEXTS[0].items()}).loss.backward()
    optimizer.step()
    assert [n for n, p in model.named_parameters() if not torch.equal(p, before[n])] == [name]


def test_adept_trains_the_block_that_is_missed_least_its_matrices_by_what_text_needs(
    model: LlamaForCausalLM, case: Case, tmp_path: Path
) -> None:
    useless = model.model.layers[1]
    with torch.no_grad():
        useless.self_attn.o_proj.weight.zero_()
        useless.mlp.down_proj.weight.mul_(1e-3)
    norms = Invented(tmp_path / "m.json", tmp_path, model, tiny_tokenizer(), 10, lambda: None)
    found = Case(case.layers, "A", 0, norms)
    missed = norms.missed("text")
    assert abs(missed[1]) < abs(missed[0]) / 10
    plan = least_missed(1, "text")(found)
    assert isinstance(plan, dict)
    trained = {layer: scale for layer, scale in plan.items() if scale}
    assert trained
    assert all(".layers.1." in layer for layer in trained)
    importance = {layer: value for layer, value in norms.importance("text").items() if ".layers.1." in layer}
    assert min(importance, key=lambda layer: importance[layer]) == max(trained, key=lambda layer: trained[layer])
    assert max(trained.values()) == 2
    assert plan[max(importance, key=lambda layer: importance[layer])] == 0


def test_what_a_matrix_is_trained_at_is_told_as_its_sublayers_mean(model: LlamaForCausalLM) -> None:
    names = [name for name, _ in model.named_parameters()]
    plan = dict.fromkeys(partition(names, "matrix").values(), 0.0)
    plan[partition(names, "matrix")["model.layers.0.mlp.up_proj.weight"]] = 1.0
    assert partition_of(plan, names) == "matrix"
    watch = Watch(model, make_optimizer(model, 1e-2, plan), plan)
    assert {layer for layer, scale in watch.scales.items() if scale} == {"model.layers.0.mlp"}
    assert watch.scales["model.layers.0.mlp"] == pytest.approx(1 / 3, abs=0.02)  # the norm's weights belong to it too


def test_mofo_moves_the_entries_with_the_largest_momentum_and_keeps_all_moments() -> None:
    p = torch.nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.AdamW([p], lr=0.1, weight_decay=0.0)
    momentum_filtered(0.5)(None, None, optimizer)  # type: ignore[arg-type]
    p.grad = torch.tensor([1.0, -3.0, 0.5, 2.0])
    optimizer.step()
    assert [bool(moved) for moved in p != 0] == [False, True, False, True]
    assert (optimizer.state[p]["exp_avg"] != 0).all()
    p.grad = torch.tensor([50.0, 0.0, 0.5, 0.0])
    before = p.detach().clone()
    optimizer.step()
    assert [bool(moved) for moved in p != before] == [True, True, False, False]  # .9 * .3 is more than .9 * .2


@pytest.mark.parametrize("path", [by_depth, by_gain_damage("text")])
def test_shares_by_layer_are_whole_at_the_end_and_as_asked_on_average(
    path: object, model: LlamaForCausalLM, case: Case
) -> None:
    start = weights(model)
    generator = torch.Generator().manual_seed(0)
    end = {name: w + 1e-3 * torch.randn(w.shape, generator=generator) for name, w in start.items()}
    shares = path(case, start, end)  # type: ignore[operator]
    assert set(shares(1.0).values()) == {1.0}
    for a in (0.25, 0.5, 0.75):
        found = shares(a)
        assert list(found) == list(case.layers)
        assert all(0 <= share <= 1 for share in found.values())
        assert sum(found.values()) / len(found) == pytest.approx(a, abs=0.01 if path is not by_depth else 0.13)
        assert len(set(found.values())) > 1


def test_lines_keeps_more_of_the_deep_layers(model: LlamaForCausalLM, case: Case) -> None:
    shares = by_depth(case, {}, {})
    assert shares(0.5)["model.layers.0.mlp"] == 0
    assert shares(0.5)["model.layers.1.mlp"] == shares(0.5)["model.norm"] == 1
    assert shares(0.25)["model.layers.1.mlp"] == 0.5
    assert shares(0.75)["model.embed_tokens"] == 0.5


def test_a_change_that_wins_and_costs_nothing_is_kept_before_one_that_costs(
    model: LlamaForCausalLM, case: Case
) -> None:
    start = weights(model)
    gains = case.norms.mean_gradient("A")
    names = {p: name for name, p in model.named_parameters()}
    # Every layer goes down the news' gradient, as far as wins alike; the layer that text minds most keeps least.
    change = {names[p]: -gradient / gradient.norm().clamp(min=1e-12) * 1e-2 for p, gradient in gains.items()}
    shares = by_gain_damage("text")(case, start, {name: start[name] + change[name] for name in start})(0.5)
    moves, cost = case.norms.moves("A", change), case.norms.moves("text", change)
    ratio = dict(zip(case.layers, (-moves.mean(0) / cost.square().mean(0)).tolist(), strict=True))
    assert sorted(shares, key=lambda layer: shares[layer])[0] == min(ratio, key=lambda layer: ratio[layer])
    torch.testing.assert_close(dict(model.named_parameters())["model.norm.weight"].detach(), start["model.norm.weight"])


def test_moves_are_the_change_of_the_loss_to_first_order(model: LlamaForCausalLM, case: Case) -> None:
    start = weights(model)
    change = {name: 1e-4 * torch.ones_like(w) for name, w in start.items()}
    expected = case.norms.moves("A", change).sum(1)

    def losses() -> Tensor:
        model.eval()
        with torch.no_grad():
            return torch.stack([model(**{k: v[None] for k, v in text.items()}).loss for text in TEXTS[:2]])

    before = losses()
    place(model, start, {name: start[name] + change[name] for name in start}, 1.0)
    torch.testing.assert_close((losses() - before).double(), expected, rtol=0.05, atol=1e-4)


def test_methods_with_a_path_or_matrices_of_their_own_are_in_the_list() -> None:
    assert {name for name in METHODS if METHODS[name].path} == {
        *("adamw-lines", "adamw-path", "selective-lines", "selective-path")
    }
