"""Names of methods -> what each does to a model and its optimizer.

A method gives each layer a scale for the whole run (0 freezes it, 1 is the rate), or is a policy that decides at every
step. `METHODS` is in the order of evidence: what a sweep that is cut short should have done first.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from torch.optim import AdamW, Optimizer

from benchmarks.lifelong.norms import Norms
from benchmarks.lifelong.training import grouped
from localopt import LocalizedOptimizer
from localopt.layers import locate, partition
from localopt.policies import AboveMean, Fixed, Policy, RelativeTo

Scales = dict[str, float]


@dataclass(frozen=True)
class Case:
    """What a method may look at: the layers by name, the half it is to learn, norms at the start, a seed."""

    layers: tuple[str, ...]
    half: str
    seed: int
    norms: Norms


@dataclass(frozen=True)
class Online:
    """A policy that decides at every step, and what becomes of the moments of the layers it freezes."""

    policy: Policy
    frozen_state: str = "hold"


Method = Callable[[Case], Scales | Online]


def everything(case: Case) -> Scales:
    return dict.fromkeys(case.layers, 1.0)


def frozen(reference: str) -> Method:
    """TGL + FP relative to these sets."""
    return lambda case: dict(case.norms.trace(case.half, reference).frozen_parameters().scales)


def inverted(reference: str) -> Method:
    """The layers TGL + FP freezes."""
    return lambda case: {layer: 1 - scale for layer, scale in frozen(reference)(case).items()}  # type: ignore[union-attr]


def rescaled(reference: str, normalize: str = "max") -> Method:
    """TGL + ALR relative to these sets."""
    return lambda case: dict(case.norms.trace(case.half, reference).adaptive_learning_rates(normalize).scales)  # type: ignore[arg-type]


def uniform(method: Method) -> Method:
    """Every layer at the mean of the scales of another method."""

    def scales(case: Case) -> Scales:
        found = method(case)
        assert isinstance(found, dict)
        return dict.fromkeys(case.layers, sum(found.values()) / len(found))

    return scales


def without_embedding(method: Method) -> Method:
    def scales(case: Case) -> Scales:
        found = method(case)
        assert isinstance(found, dict)
        return {layer: 0.0 if _kind(layer) == "embedding" else scale for layer, scale in found.items()}

    return scales


def matched(method: Method, draw: int) -> Method:
    """As many random attentions and MLPs as another method trains, and what it trains outside the blocks."""

    def scales(case: Case) -> Scales:
        template = method(case)
        assert isinstance(template, dict)
        rng = random.Random(f"{draw}/{case.seed}")
        found = dict(template)
        for kind in sorted({_kind(layer) for layer in case.layers if locate(layer)[1] is not None}):
            layers = [layer for layer in case.layers if locate(layer)[1] is not None and _kind(layer) == kind]
            chosen = set(rng.sample(layers, sum(template[layer] > 0 for layer in layers)))
            found |= {layer: float(layer in chosen) for layer in layers}
        return found

    return scales


def depth(deep: bool, embedding: bool = False) -> Method:
    """The deep or the shallow half of the blocks."""

    def scales(case: Case) -> Scales:
        blocks = {layer: locate(layer)[1] for layer in case.layers}
        middle = (max(index for index in blocks.values() if index is not None) + 1) / 2
        return {
            layer: float(embedding and _kind(layer) == "embedding" if index is None else (index >= middle) is deep)
            for layer, index in blocks.items()
        }

    return scales


def careful(reference: str) -> Method:
    """Rates N_new / N_K^2, their mean 1, clipped to [0.1, 1]: large where news is loud and facts to keep are quiet."""

    def scales(case: Case) -> Scales:
        trace = case.norms.trace(case.half, reference)
        rates = trace.probe_norms / trace.reference_norms.square()
        rates = (rates / rates.mean()).clamp(0.1, 1.0)
        return dict(zip(trace.layers, rates.tolist(), strict=True))

    return scales


def relative(reference: str) -> Method:
    """`AboveMean` at every step, on norms relative to those of these sets at the start."""
    return lambda case: Online(RelativeTo(case.norms.trace(case.half, reference), AboveMean()))


@dataclass(frozen=True)
class Entry:
    """A method with what a table says of it."""

    about: str
    plan: Method


_KEPT, _TEXT = frozen("kept"), frozen("text")
METHODS: dict[str, Entry] = {
    "adamw": Entry("AdamW on everything", everything),
    "fp-text": Entry("TGL+FP against ordinary text", _TEXT),
    "deep": Entry("deep half of the blocks", depth(True)),
    "random0": Entry("random layers, as many as TGL+FP against text", matched(_TEXT, 0)),
    "fp-kept": Entry("TGL+FP against facts to keep", _KEPT),
    "shallow": Entry("shallow half of the blocks", depth(False)),
    "random1": Entry("random layers, second draw", matched(_TEXT, 1)),
    "alr-text": Entry("TGL+ALR against text", rescaled("text")),
    "online": Entry("online, `AboveMean`", lambda case: Online(AboveMean())),
    "inverted": Entry("what TGL+FP against text freezes", inverted("text")),
    "random2": Entry("random layers, third draw", matched(_TEXT, 2)),
    "deep-embedding": Entry("deep half and embedding", depth(True, embedding=True)),
    "uniform": Entry("AdamW at ALR's mean rate", uniform(rescaled("text"))),
    "online-relative": Entry("online, relative to text", relative("text")),
    "fp-kept-blocks": Entry("TGL+FP against facts to keep, no embedding", without_embedding(_KEPT)),
    "random3": Entry("random layers, fourth draw", matched(_TEXT, 3)),
    "random4": Entry("random layers, fifth draw", matched(_TEXT, 4)),
    "alr-kept": Entry("TGL+ALR against facts to keep", rescaled("kept")),
    "online-track": Entry("online, moments of frozen layers move on", lambda case: Online(AboveMean(), "track")),
    "alr-text-mean": Entry("TGL+ALR against text, mean rate kept", rescaled("text", "mean")),
    "random-kept0": Entry("random layers, as many as TGL+FP against facts", matched(_KEPT, 0)),
    "random-kept1": Entry("the same, second draw", matched(_KEPT, 1)),
    "random-kept2": Entry("the same, third draw", matched(_KEPT, 2)),
    "online-kept": Entry("online, relative to facts to keep", relative("kept")),
    "careful": Entry("rates N_new / N_K^2, clipped to [.1, 1]", careful("kept")),
    "fp-near": Entry("TGL+FP against near facts alone", frozen("near")),
    "fp-far": Entry("TGL+FP against far facts alone", frozen("far")),
    "fp-kept4": Entry("TGL+FP against 4 facts to keep", frozen("kept4")),
    "fp-kept16": Entry("TGL+FP against 16 facts to keep", frozen("kept16")),
    "fp-text+kept": Entry("TGL+FP against text and facts to keep", frozen("text+kept")),
    "alr-kept-mean": Entry("TGL+ALR against facts to keep, mean rate kept", rescaled("kept", "mean")),
}


def layer_names(model: nn.Module) -> tuple[str, ...]:
    return tuple(dict.fromkeys(partition((name for name, _ in model.named_parameters()), "sublayer").values()))


def make_optimizer(model: nn.Module, rate: float, plan: Scales | Online) -> Optimizer:
    """AdamW, localized. Layers of scale 0 get no gradients at all, which saves their part of the backward pass."""
    if isinstance(plan, Online):
        inner = AdamW(grouped(list(model.parameters())), lr=rate, fused=True)
        return LocalizedOptimizer(inner, model, plan.policy, frozen_state=plan.frozen_state)  # type: ignore[arg-type]
    layer_of = partition((name for name, _ in model.named_parameters()), "sublayer")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(plan[layer_of[name]] > 0)
    inner = AdamW(grouped([p for p in model.parameters() if p.requires_grad]), lr=rate, fused=True)
    trained = {layer: scale for layer, scale in plan.items() if scale > 0}
    return inner if set(trained.values()) <= {1.0} else LocalizedOptimizer(inner, model, Fixed(trained))


def _kind(layer: str) -> str:
    """ "attention", "mlp", ...; outside the blocks "embedding" for a layer of matrices, "norm" for one of vectors."""
    _, index, kind = locate(layer)
    return kind if index is not None else "norm" if "norm" in layer or "ln_" in layer else "embedding"
