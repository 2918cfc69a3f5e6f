"""Distillation of propagated knowledge (Padmanabhan et al. 2023, arXiv 2306.09306).

The model writes continuations of a passage; then it is trained to expect, *without* the passage, what it expected with
it. With c the passage, x a continuation and p_0 the model at the start, the loss is the mean over the tokens of

    KL(p_0(. | c, x_<t) || p(. | x_<t)) = sum over the vocabulary of p_0 (log p_0 - log p).

As there, a continuation begins with the name of whom the passage is about, which says without the passage what it
speaks of; the loss is on what follows. As there, text is drawn at a temperature of 0.9.

Departures: the passage is the part of it that all methods read (64 tokens); 6 continuations of 40 tokens each instead
of 5 read five times, two in an epoch and each read once, 16 in a batch, so that there are as many steps as for all
other methods; distributions are compared as they are, at a softmax temperature of 1 (the authors' code has 2); all
passages at once instead of one or some at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchmarks.lifelong.data.passages import answers_in_passages, lessons, subject_of
from benchmarks.lifelong.methods.study import Lesson
from benchmarks.lifelong.training import Loss
from localopt.pretraining.evaluate import padded
from localopt.pretraining.probes import IGNORED, Example

AN_EPOCH = 2  # continuations of every passage
LENGTH = 40  # tokens, at most
TEMPERATURE = 0.9
SEED = 0
AT_ONCE = 32


def continuations(lesson: Lesson) -> list[list[Example]]:
    """What the start writes about each passage, other texts every epoch: the loss on what follows the name.

    `context` holds the tokens that only the teacher reads before them.
    """
    tokenizer, half, length = lesson.tokenizer, lesson.case.half, lesson.settings.length
    probes = answers_in_passages(lesson.prepared, half)
    line = _tokens(lesson, "\n")
    contexts = [torch.cat([read["input_ids"], line]) for read in lessons(lesson.prepared, half, tokenizer, length)]
    names = [_tokens(lesson, subject_of(probe)) for probe in probes]
    prompts = [torch.cat(pair) for pair in zip(contexts, names, strict=True)]
    epochs = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        for _ in range(lesson.settings.epochs):
            examples = []
            for _ in range(AN_EPOCH):
                for context, name, more in zip(contexts, names, _written(lesson, prompts), strict=True):
                    labels = torch.cat([torch.full_like(name, IGNORED), more])
                    examples.append({"input_ids": torch.cat([name, more]), "labels": labels, "context": context})
            epochs.append(examples)
    return epochs


def distilled(lesson: Lesson) -> Loss:
    """The divergence from the model as it is now, which reads an example's `context` first, on the labeled tokens."""
    teacher = copy.deepcopy(lesson.model).eval().requires_grad_(False)

    def loss(model: nn.Module, examples: Sequence[Example]) -> Tensor:
        told = [
            {
                "input_ids": torch.cat([example["context"], example["input_ids"]]),
                "labels": torch.cat([torch.full_like(example["context"], IGNORED), example["labels"]]),
            }
            for example in examples
        ]
        with torch.no_grad():
            expected = expectations(teacher, told)
        return divergence(expected, expectations(model, examples))

    return loss


def expectations(model: nn.Module, examples: Sequence[Example]) -> Tensor:
    """Log-probabilities of the next token wherever it is labeled, (N, V), fp32."""
    ids, labels, attention = padded(examples)
    logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits
    found: Tensor = logits[:, :-1][labels[:, 1:] != IGNORED].float().log_softmax(-1)
    return found


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student) of log-probabilities (N, V), averaged over the N.

    >>> half, most = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.75, 0.25]]).log()
    >>> divergence(half, half), divergence(half, most)  # 1/2 log(2/3) + 1/2 log 2
    (tensor(0.), tensor(0.1438))
    """
    return (teacher.exp() * (teacher - student)).sum(-1).mean()


def _tokens(lesson: Lesson, text: str) -> Tensor:
    return torch.tensor(lesson.tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.int64)


@torch.inference_mode()
def _written(lesson: Lesson, prompts: Sequence[Tensor]) -> list[Tensor]:
    """One continuation of each prompt, at least one token, without the token that ends a text."""
    model, end = lesson.model.eval(), lesson.tokenizer.eos_token_id
    texts: list[Tensor] = []
    for first in range(0, len(prompts), AT_ONCE):
        some = prompts[first : first + AT_ONCE]
        widest = max(map(len, some))
        ids = torch.stack([nn.functional.pad(one, (widest - len(one), 0), value=end or 0) for one in some])
        mask = torch.stack([nn.functional.pad(torch.ones_like(one), (widest - len(one), 0)) for one in some])
        with lesson.settings.autocast():
            rows = model.generate(
                input_ids=ids,
                attention_mask=mask,
                min_new_tokens=1,
                max_new_tokens=LENGTH,
                do_sample=True,
                top_k=0,
                top_p=1.0,
                temperature=TEMPERATURE,
                pad_token_id=end or 0,
            )
        for row in rows[:, widest:]:
            ends = (row == end).nonzero().flatten()
            texts.append(row[: int(ends[0]) if len(ends) else LENGTH].clone())
    return texts
