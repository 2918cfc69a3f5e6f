"""A language model small enough to build in every test, and its tokenizer."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SENTENCES = [
    "The capital of Norland is Westhaven.",
    "The capital of Sudania is Port Amber, and the river runs through Sudania.",
    "Mira Osk plays the violin. Mira Osk lives in Westhaven.",
    "The chief of the Blue Mill company is Tomas Reed - since 2021.",
]


def tiny_tokenizer(style: str = "bytes", start: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE ("bytes", as GPT-2 and Llama 3) or "▁"-marked BPE ("marked", as Llama 2), with or without BOS."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    special = ["<s>", "</s>", "<unk>"]
    alphabet = []
    if style == "bytes":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if start:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def tiny_model(tokenizer: PreTrainedTokenizerFast, tied: bool = True, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        attention_dropout=0.1,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config)
