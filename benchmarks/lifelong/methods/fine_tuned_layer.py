"""Editors of KnowEdit that are forms of fine-tuning (Zhang et al. 2024, arXiv 2401.01286): FT-L and FT-M.

Both train the second matrix of one MLP (`down_proj`) by the answers alone. **FT-L** (Zhu et al. 2020, arXiv 2012.00363,
as Meng et al. 2022 build it) predicts all tokens y_t of an answer from where the first one is predicted,

    L = - mean over t of log p(y_t | prompt),

and bounds the change after every step: |w - w_0| <= epsilon for every entry. **FT-M** has the NLL of the answer, each
token after those before it, the prompt masked, and no bound.

The layer is at two thirds of the depth, as 21 of 32 in KnowEdit; `best_layer` takes the one with the most gain over
damage instead. Epsilon is 5e-4, as in Meng et al. (2022) for GPT-2 XL, the smallest of their models.

Departures: what stands before the answer in its passage is the prompt; all facts at once, in the batches and the 24
steps of all methods, not one by one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.lifelong.data.passages import answers_in_passages
from benchmarks.lifelong.methods.corrections import Correction
from benchmarks.lifelong.methods.rules import Case, Rule, Scales, kind_of
from benchmarks.lifelong.methods.study import Lesson
from localopt.layers import locate, partition
from localopt.pretraining.evaluate import padded
from localopt.pretraining.probes import IGNORED, Example, encode

EPSILON = 5e-4
DEPTH = 21 / 32


def answers(lesson: Lesson) -> list[list[Example]]:
    """Each passage up to its answer, the loss on the answer."""
    probes = answers_in_passages(lesson.prepared, lesson.case.half)
    examples = encode(probes, lesson.tokenizer, lesson.settings.length)
    cut = []
    for example in examples:
        end = int((example["labels"] != IGNORED).nonzero()[-1]) + 1
        cut.append({name: value[:end] for name, value in example.items()})
    return [cut] * lesson.settings.epochs


def from_the_prompt(model: nn.Module, examples: Sequence[Example]) -> Tensor:
    """The NLL of all labeled tokens by the distribution at the place before the first of them, averaged over them."""
    ids, labels, attention = padded(examples)
    logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits
    asked = labels != IGNORED
    first = asked.int().argmax(1)
    there = logits[torch.arange(len(ids)), first - 1].float().log_softmax(-1)
    spoken = [-row[one[where]] for row, one, where in zip(there, labels, asked, strict=True)]
    return torch.cat(spoken).mean()


def bounded(epsilon: float = EPSILON) -> Correction:
    """After every step, clamp each entry to within epsilon of where it began."""

    def hook(case: Case, model: nn.Module, optimizer: Optimizer) -> None:
        start = {p: p.detach().clone() for group in optimizer.param_groups for p in group["params"]}

        @torch.no_grad()
        def after(*_: object) -> None:
            for p, before in start.items():
                p.copy_(torch.clamp(p, before - epsilon, before + epsilon))

        optimizer.register_step_post_hook(after)

    return hook


def at_depth(share: float = DEPTH) -> Rule:
    """The second matrix of the MLP at this share of the depth."""

    def scales(case: Case) -> Scales:
        mlps = _mlps(case)
        return only(case, [mlps[min(len(mlps) - 1, int(share * len(mlps)))]])

    return scales


def best_layer(reference: str, probe: str, count: int = 1) -> Rule:
    """Those of the MLPs with the most gain over damage, `probe` and `reference` as for `gain_damage_fp`."""

    def scales(case: Case) -> Scales:
        found = case.norms.gain_over_damage(probe + case.half, reference)
        return only(case, sorted(_mlps(case), key=lambda layer: found[layer], reverse=True)[:count])

    return scales


def only(case: Case, mlps: Sequence[str]) -> Scales:
    """The second matrices of these MLPs, in order of depth: those whose output is as wide as the hidden state."""
    names = {name: p for name, p in case.norms.model.named_parameters() if p.dim() == 2}
    sublayer, matrix = partition(names, "sublayer"), partition(names, "matrix")
    width = case.norms.model.config.hidden_size
    chosen = {matrix[n] for n, p in names.items() if sublayer[n] in mlps and p.shape[0] == width != p.shape[1]}
    return {layer: float(layer in chosen) for layer in _matrices(case)}


def _mlps(case: Case) -> list[str]:
    return [layer for layer in case.layers if locate(layer)[1] is not None and kind_of(layer) == "mlp"]


def _matrices(case: Case) -> list[str]:
    return list(dict.fromkeys(partition([name for name, _ in case.norms.model.named_parameters()], "matrix").values()))
