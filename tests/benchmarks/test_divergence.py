"""How far a model has moved from the start, in nats of what it expects to read."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.lifelong.exam.divergence import Divergence
from tests.tiny_lm import tiny_model, tiny_tokenizer

TEXTS = [{"input_ids": torch.arange(5, 13)}, {"input_ids": torch.arange(20, 26)}]


def test_the_start_is_at_zero_from_itself_and_another_model_is_not() -> None:
    model = tiny_model(tiny_tokenizer()).eval()
    divergence = Divergence(model, TEXTS)
    assert divergence(model) == [0.0, 0.0]
    with torch.no_grad():
        model.lm_head.weight.mul_(1.1)
    assert min(divergence(model)) > 0


def test_it_is_the_kl_of_the_start_to_the_model_averaged_over_tokens() -> None:
    one, other = (tiny_model(tiny_tokenizer(), seed=seed).eval() for seed in (0, 1))
    found = Divergence(one, TEXTS)(other)
    for text, nats in zip(TEXTS, found, strict=True):
        ids = text["input_ids"][None]
        before, now = (model(input_ids=ids).logits[0, :-1].log_softmax(1) for model in (one, other))
        expected = nn.functional.kl_div(now, before, reduction="batchmean", log_target=True).item()
        assert abs(nats - expected) < 0.01 * expected
