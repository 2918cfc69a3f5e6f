"""Adapters form layers with the block they sit in, so localization works on them as on whole models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import AdamW

from localopt import AboveMean, LayerTrace, LocalizedOptimizer, partition, trace_layers
from tests.tiny_models import VOCABULARY, examples, llama

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")

SUBLAYERS = tuple(f"model.layers.{i}.{part}" for i in range(2) for part in ("attention", "mlp"))
BOTH = {"target_modules": ["q_proj", "down_proj"]}
ADAPTERS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "LoRA": (peft.LoraConfig(r=2, **BOTH), SUBLAYERS),
    "LoRA and the head": (
        peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]),
        (*SUBLAYERS[::2], "lm_head"),
    ),
    "LoRA on the embedding": (
        peft.LoraConfig(r=2, target_modules=["embed_tokens", "down_proj"]),
        ("model.embed_tokens", *SUBLAYERS[1::2]),
    ),
    "DoRA": (peft.LoraConfig(r=2, use_dora=True, **BOTH), SUBLAYERS),
    "AdaLoRA": (peft.AdaLoraConfig(init_r=2, target_r=1, tinit=0, tfinal=1, total_step=9, **BOTH), SUBLAYERS),
    "IA3": (peft.IA3Config(feedforward_modules=["down_proj"], **BOTH), SUBLAYERS),
    "prompt tuning": (
        peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
        ("prompt_encoder.default.embedding",),
    ),
}


def loss(model: Any) -> torch.Tensor:
    tokens = torch.randint(VOCABULARY, (2, 8), generator=torch.Generator().manual_seed(0))
    result: torch.Tensor = model(input_ids=tokens, labels=tokens).loss
    return result


def adapted(config: Any) -> Any:
    torch.manual_seed(0)
    return peft.get_peft_model(llama(), config)


def adamw(model: torch.nn.Module) -> AdamW:
    return AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.01)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters_are_trained_in_the_layers_they_sit_in_and_the_base_stays_as_it_is(kind: str) -> None:
    config, layers = ADAPTERS[kind]
    model = adapted(config)
    base = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = LocalizedOptimizer(adamw(model), model, AboveMean())
    for _ in range(2):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
    report = optimizer.report()
    assert report.names == layers
    assert 0 < len(report.updated) < len(layers) or len(layers) == 1
    assert all(torch.equal(p, base[name]) for name, p in model.named_parameters() if name in base)


def traced(model: Any) -> LayerTrace:
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at first, which leaves the A matrices without a gradient
            torch.nn.init.normal_(parameter, std=0.1)
    return trace_layers(model, examples(4, span=2), examples(4))


def test_traced_adapters_are_frozen_trained_and_saved(tmp_path: Path) -> None:
    model = adapted(ADAPTERS["LoRA"][0])
    trace = traced(model)
    kept = trace.freeze(model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = LocalizedOptimizer(adamw(model), model, torch.ones_like)
    loss(model).backward()
    optimizer.step()
    changed = [name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])]
    assert trace.layers == SUBLAYERS
    assert changed == kept
    assert 0 < len(kept) < sum("lora" in name for name in before)

    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    loaded = peft.PeftModel.from_pretrained(llama(), tmp_path)
    torch.testing.assert_close(loss(loaded), loss(model), rtol=0, atol=0)


def test_adapters_train_at_the_rates_a_trace_gives_their_layers() -> None:
    model = adapted(ADAPTERS["LoRA"][0])
    rates = traced(model).adaptive_learning_rates()
    optimizer = LocalizedOptimizer(torch.optim.SGD(adamw(model).param_groups[0]["params"], lr=0.1), model, rates)
    loss(model).backward()
    layer_of = partition(name for name, _ in model.named_parameters())
    expected = {
        name: p.detach() - 0.1 * rates.scales[layer_of[name]] * p.grad
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    optimizer.step()
    assert len(set(rates.scales.values())) == len(SUBLAYERS)
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.detach(), expected[name])
