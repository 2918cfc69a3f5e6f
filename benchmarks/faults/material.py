"""What is damaged: a tiny model with its tokenizer, a corpus, probes, and three kinds of tokenizers; all made here."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SENTENCES = [
    "The capital of Norland is Westhaven.",
    "The capital of Sudania is Port Amber, and the river runs through Sudania.",
    "Mira Osk plays the violin. Mira Osk lives in Westhaven.",
    "The chief of the Blue Mill company is Tomas Reed - since 2021.",
]
SPECIAL = ["<s>", "</s>", "<unk>"]


def byte_pairs() -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2, Llama 3 and SmolLM2 have it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained(
        tokenizer, trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, **_QUIET)
    )


def word_pieces() -> PreTrainedTokenizerFast:
    """WordPiece on words between white space, as BERT's family without its cleaning of text."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _trained(tokenizer, trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, **_QUIET))


def unigrams() -> PreTrainedTokenizerFast:
    """Unigram with "▁" for spaces, as sentencepiece and T5 have it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _trained(
        tokenizer, trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", **_QUIET)
    )


_QUIET = {"show_progress": False}
TOKENIZERS = {"BPE": byte_pairs, "WordPiece": word_pieces, "Unigram": unigrams}


def _trained(tokenizer: Tokenizer, trainer: object) -> PreTrainedTokenizerFast:
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def write_inputs(folder: Path) -> Path:
    """Write ``model/``, ``corpus.txt`` and ``facts.jsonl`` to a folder, once."""
    if (folder / "facts.jsonl").exists():
        return folder
    tokenizer = byte_pairs()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        attention_dropout=0.1,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "corpus.txt").write_text("\n\n".join(SENTENCES * 4))
    facts = {"prompt": "The capital of Norland is", "answer": "Westhaven"}
    (folder / "facts.jsonl").write_text(json.dumps(facts) + "\n")
    return folder
