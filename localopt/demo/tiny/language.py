"""The world's sentences -> a tokenizer, a tiny Llama, and tensors to train and probe it with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from localopt.demo.tiny.world import Fact
from localopt.pretraining.probes import IGNORED, Probe, completion

PAD, START = "[PAD]", "[START]"


def word_tokenizer(sentences: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each word of ``sentences``, in order, and a start token in front of every text."""
    words = dict.fromkeys(word for sentence in sentences for word in sentence.split())
    vocabulary = {word: number for number, word in enumerate((PAD, START, *words))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=PAD))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single=f"{START} $A", special_tokens=[(START, vocabulary[START])])
    tokens = {"pad_token": PAD, "bos_token": START}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens)  # type: ignore[no-untyped-call]


def tiny_llama(tokenizer: PreTrainedTokenizerFast, hidden: int, blocks: int) -> LlamaForCausalLM:
    """A Llama with random weights (of torch's global generator) and tied embeddings, as small models have."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=round(8 / 3 * hidden / 8) * 8,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        max_position_embeddings=32,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config)


@torch.no_grad()
def learn_words(model: LlamaForCausalLM, count: int) -> None:
    """Enlarge the vocabulary to ``count`` words. Embeddings of new words are drawn like those of the known ones.

    This is how vocabularies are extended (transformers draws from the same distribution, with all its covariances).
    Words a model was never shown would all be in the same corner otherwise, pushed there as never the right answer.
    """
    known = model.model.embed_tokens.weight.clone()
    model.resize_token_embeddings(count, mean_resizing=False)
    added = model.model.embed_tokens.weight[len(known) :]
    added.copy_(known.mean(0) + known.std(0) * torch.randn(added.shape))


def as_batch(sentences: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> dict[str, Tensor]:
    """Sentences as one batch with the loss on every word: ``input_ids`` and ``labels``, int64 (N, T).

    Padding is on the right, where a causal model does not see it.
    """
    encoded: Any = tokenizer(list(sentences), padding=True, padding_side="right", return_tensors="pt")
    ids = encoded["input_ids"]
    return {"input_ids": ids, "labels": ids.masked_fill(ids == tokenizer.pad_token_id, IGNORED)}


def as_probes(facts: Iterable[Fact], held_out: bool) -> list[Probe]:
    """Every fact as probes with the loss on the object, one for each phrasing held out, or each trained on."""
    return [completion(prompt, fact.object, fact.subject) for fact in facts for prompt in fact.prompts(held_out)]
