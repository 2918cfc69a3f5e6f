"""Rules: what may be known before training -> a scale for every layer (0 freezes it, 1 is the rate), or a policy."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from benchmarks.lifelong.methods.norms import Norms
from localopt.layers import locate
from localopt.policies import AboveMean, GainOverDamage, Policy, RandomLayers, RelativeTo

Scales = dict[str, float]


@dataclass(frozen=True)
class Case:
    """What a method may look at: the layers by name, the half it is to learn, norms at the start, a seed.

    `anchor`: the weights that decay goes toward, by parameter name; None for those that training begins with.
    """

    layers: tuple[str, ...]
    half: str
    seed: int
    norms: Norms
    anchor: dict[str, Tensor] | None = None


@dataclass(frozen=True)
class Online:
    """A policy that decides at every step, and what becomes of the moments of the layers it freezes."""

    policy: Policy
    frozen_state: str = "hold"


Rule = Callable[[Case], Scales | Online]


def everything(case: Case) -> Scales:
    return dict.fromkeys(case.layers, 1.0)


def frozen(reference: str) -> Rule:
    """TGL + FP relative to these sets."""
    return lambda case: dict(case.norms.trace(case.half, reference).frozen_parameters().scales)


def inverted(reference: str) -> Rule:
    """The layers TGL + FP freezes."""
    return lambda case: {layer: 1 - scale for layer, scale in frozen(reference)(case).items()}  # type: ignore[union-attr]


def rescaled(reference: str, normalize: str = "max") -> Rule:
    """TGL + ALR relative to these sets."""
    return lambda case: dict(case.norms.trace(case.half, reference).adaptive_learning_rates(normalize).scales)  # type: ignore[arg-type]


def uniform(rule: Rule) -> Rule:
    """Every layer at the mean of the scales of another method."""

    def scales(case: Case) -> Scales:
        found = rule(case)
        assert isinstance(found, dict)
        return dict.fromkeys(case.layers, sum(found.values()) / len(found))

    return scales


def without_embedding(rule: Rule) -> Rule:
    def scales(case: Case) -> Scales:
        found = rule(case)
        assert isinstance(found, dict)
        return {layer: 0.0 if kind_of(layer) == "embedding" else scale for layer, scale in found.items()}

    return scales


def matched(rule: Rule, draw: int) -> Rule:
    """As many random attentions and MLPs as another method trains, and what it trains outside the blocks."""

    def scales(case: Case) -> Scales:
        template = rule(case)
        assert isinstance(template, dict)
        rng = random.Random(f"{draw}/{case.seed}")
        found = dict(template)
        for kind in sorted({kind_of(layer) for layer in case.layers if locate(layer)[1] is not None}):
            layers = [layer for layer in case.layers if locate(layer)[1] is not None and kind_of(layer) == kind]
            chosen = set(rng.sample(layers, sum(template[layer] > 0 for layer in layers)))
            found |= {layer: float(layer in chosen) for layer in layers}
        return found

    return scales


def depth(deep: bool, embedding: bool = False) -> Rule:
    """The deep or the shallow half of the blocks."""

    def scales(case: Case) -> Scales:
        blocks = {layer: locate(layer)[1] for layer in case.layers}
        middle = (max(index for index in blocks.values() if index is not None) + 1) / 2
        return {
            layer: float(embedding and kind_of(layer) == "embedding" if index is None else (index >= middle) is deep)
            for layer, index in blocks.items()
        }

    return scales


def kinds(*chosen: str) -> Rule:
    """The layers of some kinds, of all blocks."""
    return lambda case: {layer: float(kind_of(layer) in chosen) for layer in case.layers}


def rescaled_by_square(reference: str) -> Rule:
    """Rates N_new / N_K^2, their mean 1, clipped to [0.1, 1]: large where news is loud and what to keep is quiet."""

    def scales(case: Case) -> Scales:
        trace = case.norms.trace(case.half, reference)
        rates = trace.probe_norms / trace.reference_norms.square()
        rates = (rates / rates.mean()).clamp(0.1, 1.0)
        return dict(zip(trace.layers, rates.tolist(), strict=True))

    return scales


def gain_damage_alr(reference: str) -> Rule:
    """Rates as what a step wins on the news over what it costs a set to keep, their mean 1, clipped to [0.1, 1]."""

    def scales(case: Case) -> Scales:
        found = case.norms.gain_over_damage(case.half, reference)
        mean = sum(found.values()) / len(found)
        return {layer: min(1.0, max(0.1, value / mean)) for layer, value in found.items()}

    return scales


def gain_damage_fp(reference: str, probe: str = "", layers: Literal["sublayer", "matrix"] = "sublayer") -> Rule:
    """The layers where gain over damage is above its mean; the others are frozen.

    `probe` "corpus" takes the gain on the raw passages, the loss on every token, instead of on the answers in them.
    """

    def scales(case: Case) -> Scales:
        found = case.norms.gain_over_damage(probe + case.half, reference, layers)
        mean = sum(found.values()) / len(found)
        return {layer: float(value > mean) for layer, value in found.items()}

    return scales


def gain_damage_online(reference: str) -> Rule:
    """The layers where this step's gain over the damage to a set, known from a trace, is at or above its mean."""
    return lambda case: Online(GainOverDamage(case.norms.damages("corpus" + case.half, reference)))


def gain_damage_joint(reference: str) -> Rule:
    """The layers whose rate is above the mean where gain and damage are weighed for all layers as one step."""

    def scales(case: Case) -> Scales:
        found = case.norms.joint_rates(case.half, reference)
        mean = sum(found.values()) / len(found)
        return {layer: float(value > mean) for layer, value in found.items()}

    return scales


def by_size(case: Case) -> Scales:
    """Rates in proportion to the weights of a layer, their mean 1, clipped to [0.1, 1].

    The steps of Adam have one size for every weight, so this bounds how far a layer changes relative to itself.
    """
    sizes = case.norms.sizes()
    mean = sum(sizes.values()) / len(sizes)
    return {layer: min(1.0, max(0.1, size / mean)) for layer, size in sizes.items()}


def top_share(reference: str, share: float) -> Rule:
    """TGL + FP with a share of the layers instead of those above the mean."""

    def scales(case: Case) -> Scales:
        trace = case.norms.trace(case.half, reference)
        order = trace.relative_norms.argsort(descending=True)[: round(share * len(trace.layers))].tolist()
        return {layer: float(number in order) for number, layer in enumerate(trace.layers)}

    return scales


def online(policy: Callable[[], Policy], frozen_state: str = "hold") -> Rule:
    """A policy that decides at every step."""
    return lambda case: Online(policy(), frozen_state)


def redrawn(share: float, every: int) -> Rule:
    """Random layers, drawn anew every few steps."""
    return lambda case: Online(RandomLayers(share, every, case.seed))


def relative(reference: str) -> Rule:
    """`AboveMean` at every step, on norms relative to those of these sets at the start."""
    return lambda case: Online(RelativeTo(case.norms.trace(case.half, reference), AboveMean()))


def kind_of(layer: str) -> str:
    """ "attention", "mlp", ...; outside the blocks "embedding" for a layer of matrices, "norm" for one of vectors."""
    _, index, kind = locate(layer)
    return kind if index is not None else "norm" if "norm" in layer or "ln_" in layer else "embedding"
