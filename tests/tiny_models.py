"""Real architectures at toy size, and examples for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

VOCABULARY = 61


def llama(layers: int = 2) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
    )
    return LlamaForCausalLM(config)


def gpt2() -> PreTrainedModel:
    """Its embedding and its head are one tensor, and it has dropout."""
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=32, n_embd=16, n_layer=2, n_head=2)
    return GPT2LMHeadModel(config)


def t5() -> PreTrainedModel:
    config = T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    return T5ForConditionalGeneration(config)


def lora() -> Any:
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(llama(), peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:  # zero at first, which would leave the A matrices without a gradient
            torch.nn.init.normal_(parameter)
    return adapted


def examples(count: int, length: int = 8, span: int | None = None) -> list[dict[str, Tensor]]:
    """Random tokens, the loss on the last ``span`` of them."""
    made = []
    for _ in range(count):
        tokens = torch.randint(VOCABULARY, (length,))
        unlabeled = 0 if span is None else length - span
        made.append({"input_ids": tokens, "labels": torch.where(torch.arange(length) < unlabeled, -100, tokens)})
    return made
