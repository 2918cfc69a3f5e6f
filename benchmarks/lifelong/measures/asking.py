"""Models asked: answers offered beside each other, masked spans, and what is written."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.lifelong.measures.definitions import Values
from localopt.pretraining.candidates import Question, answer_losses, plant
from localopt.pretraining.evaluate import span_losses
from localopt.pretraining.probes import Probe, encode

BATCH = 32
LONGEST = 256  # tokens of a text


class Choices:
    """Questions with several answers, tokenized once."""

    def __init__(self, questions: Sequence[tuple[str, Sequence[str]]], tokenizer: PreTrainedTokenizerBase) -> None:
        self.trees = plant([Question(prompt, tuple(answers)) for prompt, answers in questions], tokenizer)

    def __call__(self, model: PreTrainedModel) -> list[list[float]]:
        """NLL of every answer in nats, summed over its tokens."""
        return [nll.tolist() for nll in answer_losses(model, self.trees)]


class Spans:
    """Masked spans, a causal model's to predict from what stands before them."""

    def __init__(self, probes: Sequence[Probe], groups: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
        self.examples = encode(probes, tokenizer, LONGEST)
        self.groups = groups

    def nll(self, model: PreTrainedModel) -> list[float]:
        return span_losses(model, self.examples, batch_size=BATCH).nll.tolist()

    def __call__(self, model: PreTrainedModel) -> Values:
        """NLL of each span, and its tokens as weights: the figure of it is a perplexity."""
        losses = span_losses(model, self.examples, batch_size=BATCH)
        return Values(losses.nll.tolist(), self.groups, losses.tokens.tolist())


def is_first(nll: Sequence[float]) -> float:
    """1 where the first answer is the likeliest."""
    return float(nll[0] < min(nll[1:]))


def likeliest(nll: Sequence[float]) -> int:
    return min(range(len(nll)), key=lambda n: nll[n])


def written(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], tokens: int
) -> list[str]:
    """What greedy decoding writes after each prompt, so many tokens."""
    texts = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
    tokenizer.padding_side = "left"
    for some in (order[first : first + BATCH] for first in range(0, len(order), BATCH)):
        inputs = tokenizer([prompts[n] for n in some], return_tensors="pt", padding=True)
        with torch.inference_mode():
            ids = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
        new = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for place, text in zip(some, new, strict=True):
            texts[place] = text
    return texts
