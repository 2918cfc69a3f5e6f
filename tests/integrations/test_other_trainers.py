"""TRL's trainers and the sequence-to-sequence one, localized by one call, resume bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer

from localopt import AboveMean, RandomLayers
from localopt.integrations.transformers import localize
from tests.integrations.test_transformers import localized, tokens
from tests.laws import assert_same_bits
from tests.tiny_models import llama, t5

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory")
TRL = {"use_cpu": True, "report_to": "none", "bf16": False, "logging_steps": 1, "max_steps": 4, "save_steps": 2}


def resumed_as_it_was(make: Callable[[], Trainer], folder: Path, policy: Any) -> Trainer:
    """Train by a policy, and again from halfway, with another start: the same weights. Returns the first run."""
    runs = []
    for seed, options in ((0, {}), (1, {"resume_from_checkpoint": str(folder / "checkpoint-2")})):
        torch.manual_seed(seed)
        run = make()
        localize(run, policy)
        run.train(**options)
        runs.append(run)
    assert_same_bits(runs[1].model, runs[0].model, "resumed")
    return runs[0]


def test_sft_of_trl_is_localized_by_one_call_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    trl, dataset, tokenizer = pytest.importorskip("trl"), pytest.importorskip("datasets"), word_tokenizer()
    rows = dataset.Dataset.from_dict({"text": ["a b c d e", "b c d e f"] * 8})

    def make() -> Trainer:
        config = trl.SFTConfig(str(tmp_path), per_device_train_batch_size=2, learning_rate=0.01, **TRL)
        return trl.SFTTrainer(llama(), config, train_dataset=rows, processing_class=tokenizer)

    run = resumed_as_it_was(make, tmp_path, AboveMean())
    assert 0 < localized(run).report().share_updated < 1


def test_dpo_of_trl_with_lora_is_localized_by_one_call_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    trl, dataset, tokenizer = pytest.importorskip("trl"), pytest.importorskip("datasets"), word_tokenizer()
    peft = pytest.importorskip("peft")
    rows = dataset.Dataset.from_dict({"prompt": ["a b"] * 16, "chosen": ["c d"] * 16, "rejected": ["e f"] * 16})

    def make() -> Trainer:
        torch.manual_seed(0)  # of the base, which no checkpoint holds
        config = trl.DPOConfig(str(tmp_path), per_device_train_batch_size=2, learning_rate=0.01, **TRL)
        lora = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"])
        return trl.DPOTrainer(llama(), args=config, train_dataset=rows, processing_class=tokenizer, peft_config=lora)

    report = localized(resumed_as_it_was(make, tmp_path, RandomLayers(1, every=1))).report()
    assert len(report.updated) == 1
    assert {name.rpartition(".")[2] for name in report.names} == {"attention", "mlp"}


def test_grpo_of_trl_is_localized_by_one_call_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    trl, dataset, tokenizer = pytest.importorskip("trl"), pytest.importorskip("datasets"), word_tokenizer()
    rows = dataset.Dataset.from_dict({"prompt": ["a b", "b c", "c d", "d e"] * 2})

    def rewarded(completions: list[str], **_: Any) -> list[float]:
        return [float(text.count("a") + 2 * len(text)) for text in completions]

    def make() -> Trainer:
        group = {"per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 6}
        config = trl.GRPOConfig(str(tmp_path), learning_rate=0.01, **group, **TRL)
        return trl.GRPOTrainer(llama(), rewarded, args=config, train_dataset=rows, processing_class=tokenizer)

    run = resumed_as_it_was(make, tmp_path, RandomLayers(2, every=1))
    assert len(localized(run).report().updated) == 2
    assert localized(run).state  # there were advantages to learn from


def test_a_sequence_to_sequence_trainer_is_localized_by_one_call_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    def make() -> Trainer:
        args = Seq2SeqTrainingArguments(
            str(tmp_path),
            max_steps=4,
            save_steps=2,
            eval_strategy="steps",
            eval_steps=1,  # by what the model writes, which must not disturb the training
            predict_with_generate=True,
            generation_max_length=6,
            learning_rate=0.01,
            use_cpu=True,
            report_to="none",
        )
        return Seq2SeqTrainer(t5(), args, train_dataset=tokens(), eval_dataset=tokens(2))

    report = localized(resumed_as_it_was(make, tmp_path, RandomLayers(2, every=1))).report()
    assert len(report.updated) == 2
    assert {"encoder", "decoder"} <= {name.split(".")[0] for name in report.names}


def word_tokenizer() -> Any:
    tokenizers = pytest.importorskip("tokenizers")
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", *"abcdefgh"]
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>")
