"""Optimizers from elsewhere, localized: Muon beside AdamW, and states of eight bits and fewer."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from transformers import LlamaConfig, LlamaForCausalLM

from localopt import AboveMean, LocalizedOptimizer, Proportional, Smoothed, partition
from tests.laws import assert_same_bits
from tests.tiny_models import VOCABULARY, llama

TOKENS = torch.randint(VOCABULARY, (4, 12), generator=torch.Generator().manual_seed(0))


def learn(model: Any, *optimizers: Optimizer) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad()
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    for optimizer in optimizers:
        optimizer.step()


def changed_layers(model: nn.Module, before: nn.Module) -> set[str]:
    layer_of = partition(name for name, _ in model.named_parameters())
    pairs = zip(model.named_parameters(), before.parameters(), strict=True)
    return {layer_of[name] for (name, now), then in pairs if not torch.equal(now, then)}


# -- Muon -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_and_adamw_each_choose_among_the_layers_they_train() -> None:
    model = llama()
    hidden = {name: p for name, p in model.named_parameters() if p.dim() == 2 and ".layers." in name}
    rest = [p for name, p in model.named_parameters() if name not in hidden]
    muon = LocalizedOptimizer(torch.optim.Muon(hidden.items(), lr=0.02), model, AboveMean())
    adamw = LocalizedOptimizer(AdamW(rest, lr=0.01), model, AboveMean())
    before = copy.deepcopy(model)
    learn(model, muon, adamw)
    matrices, others = muon.report(), adamw.report()
    assert set(matrices.names) == {name for name in others.names if ".layers." in name}
    assert 0 < matrices.share_updated < 1
    assert 0 < others.share_updated < 1
    layer_of = partition(name for name, _ in model.named_parameters())
    for (name, now), then in zip(model.named_parameters(), before.parameters(), strict=True):
        report = matrices if name in hidden else others
        assert torch.equal(now, then) == (layer_of[name] not in report.updated), name


# -- low-bit states ---------------------------------------------------------------------------------------------------


def torchao(name: str) -> Callable[[Any], Optimizer]:
    module = pytest.importorskip("torchao.optim")
    return lambda parameters: getattr(module, name)(parameters, lr=1e-3)


def bitsandbytes(name: str) -> Callable[[Any], Optimizer]:
    module = pytest.importorskip("bitsandbytes.optim")
    return lambda parameters: getattr(module, name)(parameters, lr=1e-3, min_8bit_size=0)


LOW_BIT = [(torchao, "AdamW8bit"), (torchao, "AdamW4bit"), (bitsandbytes, "AdamW8bit"), (bitsandbytes, "Lion8bit")]
each_low_bit = pytest.mark.parametrize(("library", "name"), LOW_BIT)


def wide_llama() -> LlamaForCausalLM:
    """Matrices large enough for their state to be quantized: smaller ones keep it in float32."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=128,
            intermediate_size=128,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=32,
        )
    )


@each_low_bit
def test_frozen_layers_keep_weights_and_quantized_state(library: Any, name: str) -> None:
    model, make = wide_llama(), library(name)
    optimizer = LocalizedOptimizer(make(model.parameters()), model)
    learn(model, optimizer)
    before = copy.deepcopy(model)
    with_state = {parameter for parameter in optimizer.state if optimizer.state[parameter]}
    learn(model, optimizer)
    report = optimizer.report()
    assert changed_layers(model, before) == set(report.updated)
    assert 0 < report.share_updated < 1
    layer_of = partition(key for key, _ in model.named_parameters())
    updated = {p for key, p in model.named_parameters() if layer_of[key] in report.updated}
    assert {parameter for parameter in optimizer.state if optimizer.state[parameter]} == with_state | updated
    assert "torch.uint8" in {str(x.dtype) for x in tensors(optimizer)} | {str(x.dtype) for x in codes(optimizer)}


def tensors(optimizer: Optimizer) -> list[Any]:
    return [x for state in optimizer.state.values() for x in state.values() if isinstance(x, torch.Tensor)]


def codes(optimizer: Optimizer) -> list[Any]:
    """What torchao's quantized states are made of."""
    return [x.codes for x in tensors(optimizer) if hasattr(x, "codes")]


@each_low_bit
def test_scale_one_half_is_half_the_learning_rate(library: Any, name: str) -> None:
    model, twin, make = wide_llama(), wide_llama(), library(name)
    optimizer = LocalizedOptimizer(make(model.parameters()), model, lambda norms: torch.full_like(norms, 0.5))
    bare = make(twin.parameters())
    for group in bare.param_groups:
        group["lr"] = group["lr"] * 0.5
    for _ in range(2):
        learn(model, optimizer)
        learn(twin, bare)
    assert_same_bits(model, twin, name)


@each_low_bit
@pytest.mark.parametrize("policy", [Proportional(), Smoothed(AboveMean(), 0.9)], ids=["Proportional", "Smoothed"])
def test_a_saved_run_goes_on_bit_for_bit(library: Any, name: str, policy: Any) -> None:
    make = library(name)

    def new() -> tuple[Any, LocalizedOptimizer]:
        model = wide_llama()
        return model, LocalizedOptimizer(make(model.parameters()), model, copy.deepcopy(policy))

    model, optimizer = new()
    for _ in range(2):
        learn(model, optimizer)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    twin, resumed = new()
    saved = torch.load(file, weights_only=True)
    twin.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    learn(model, optimizer)
    learn(twin, resumed)
    assert_same_bits(twin, model, name)
