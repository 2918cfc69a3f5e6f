"""Names of methods -> what each does to a model and its optimizer.

`METHODS` is in the order of evidence: what a sweep that is cut short should have done first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.optim import AdamW, Optimizer

from benchmarks.lifelong.methods.corrections import Correction, anchored, anchored_by, gated, projected, recalled
from benchmarks.lifelong.methods.interpolation import Interpolation, by_depth, by_gain_damage
from benchmarks.lifelong.methods.peers import best_conditioned, least_missed, momentum_filtered
from benchmarks.lifelong.methods.replay import Replay
from benchmarks.lifelong.methods.rules import (
    Online,
    Rule,
    Scales,
    by_size,
    depth,
    everything,
    frozen,
    gain_damage_alr,
    gain_damage_fp,
    gain_damage_joint,
    gain_damage_online,
    inverted,
    kinds,
    matched,
    online,
    redrawn,
    relative,
    rescaled,
    rescaled_by_square,
    top_share,
    uniform,
    without_embedding,
)
from benchmarks.lifelong.training import grouped
from localopt import AnchorDecay, LocalizedOptimizer
from localopt.layers import partition
from localopt.policies import AboveMean, Agreement, Cyclic, Fixed, HighestSNR, LayerDecay, LossScaled, RelativeChange


@dataclass(frozen=True)
class Entry:
    """A method with what a table says of it.

    `plan`: the scales of the layers. `replay`: what is read along with the passages. `correct`: what is done to the
    weights around every step. `anchor`: decay toward the start, in the optimizer. `lora`: rank of adapters that are
    trained instead of the weights. `rate`: what the sweep's rate is multiplied by, for methods that need another order
    of magnitude. `path`: how much of its change each layer keeps between start and end; without it all keep one share.
    """

    about: str
    plan: Rule
    replay: Replay | None = None
    correct: Correction | None = None
    lora: int = 0
    rate: float = 1.0
    anchor: AnchorDecay | None = None
    path: Interpolation | None = None

    @property
    def decays(self) -> bool:
        """Whether it decays toward some start, in the optimizer or around it."""
        return self.anchor is not None or self.correct in (_ANCHOR, _ANCHOR_KEPT, _RECADAM)


_KEPT, _TEXT, _GAIN_DAMAGE = frozen("kept"), frozen("text"), gain_damage_fp("text")
_LORA = {"lora": 16, "rate": 10.0}
_STRENGTH = 100.0  # with a rate of 1.5e-4 a step decays 1.5% of the change; over 24 steps, a sixth of it
_ANCHOR = anchored(_STRENGTH)
_ANCHOR_KEPT = anchored_by("kept", _STRENGTH)
_SELECTIVE = AnchorDecay(1.0, rule="selective")
_CORPUS = gain_damage_fp("own", probe="corpus")
_RECADAM = recalled(_STRENGTH, speed=0.5, middle=6)  # of 24 steps
METHODS: dict[str, Entry] = {
    # The paper's rules and their controls.
    "adamw": Entry("AdamW on everything", everything),
    "fp-text": Entry("TGL+FP against ordinary text", _TEXT),
    "deep": Entry("deep half of the blocks", depth(True)),
    "random0": Entry("random layers, as many as TGL+FP against text", matched(_TEXT, 0)),
    "alr-text": Entry("TGL+ALR against text", rescaled("text")),
    "uniform": Entry("AdamW at ALR's mean rate", uniform(rescaled("text"))),
    "fp-kept": Entry("TGL+FP against facts to keep", _KEPT),
    "random1": Entry("random layers, second draw", matched(_TEXT, 1)),
    "online": Entry("online, `AboveMean`", online(AboveMean)),
    "shallow": Entry("shallow half of the blocks", depth(False)),
    "inverted": Entry("what TGL+FP against text freezes", inverted("text")),
    "random2": Entry("random layers, third draw", matched(_TEXT, 2)),
    "deep-embedding": Entry("deep half and embedding", depth(True, embedding=True)),
    "fp-kept-blocks": Entry("TGL+FP against facts to keep, no embedding", without_embedding(_KEPT)),
    "random3": Entry("random layers, fourth draw", matched(_TEXT, 3)),
    "random4": Entry("random layers, fifth draw", matched(_TEXT, 4)),
    "random-kept0": Entry("random layers, as many as TGL+FP against facts", matched(_KEPT, 0)),
    "online-track": Entry("online, moments of frozen layers move on", online(AboveMean, "track")),
    # Replay, and tracing on top of it.
    "replay-text": Entry("AdamW, ordinary text replayed", everything, replay="text"),
    "fp-text-replay": Entry("TGL+FP against text, text replayed", _TEXT, replay="text"),
    "deep-replay": Entry("deep half, text replayed", depth(True), replay="text"),
    "replay-kept": Entry("AdamW, facts to keep replayed", everything, replay="kept"),
    # Peers.
    "lora": Entry("LoRA, ten times the rate", everything, **_LORA),  # type: ignore[arg-type]
    "fp-text-lora": Entry("LoRA on the layers of TGL+FP against text", _TEXT, **_LORA),  # type: ignore[arg-type]
    "anchor": Entry("AdamW with anchor decay", everything, correct=_ANCHOR),
    "fp-text-anchor": Entry("TGL+FP against text, with anchor decay", _TEXT, correct=_ANCHOR),
    "recadam": Entry("RecAdam", everything, correct=_RECADAM),
    "fp-text-recadam": Entry("TGL+FP against text, with RecAdam", _TEXT, correct=_RECADAM),
    "lisa": Entry("LISA: an eighth of the layers, drawn anew every 2 steps", redrawn(0.125, 2)),
    "half-fine-tuning": Entry("half fine-tuning: half of the layers, drawn anew every epoch", redrawn(0.5, 8)),
    "badam": Entry("BAdam: a layer at a time, in random order", online(lambda: Cyclic(every=1, order="random"))),
    "spectrum": Entry("Spectrum: half of the layers, by their weights", online(lambda: HighestSNR(0.5))),
    "layer-decay": Entry("rates that fall by 0.9 a block towards the input", online(lambda: LayerDecay(0.9))),
    # The search for a better rule.
    "gain-damage-alr": Entry("rates by gain over damage to text", gain_damage_alr("text")),
    "gain-damage-alr-replay": Entry(
        "rates by gain over damage to text, text replayed", gain_damage_alr("text"), replay="text"
    ),
    "gain-damage-fp": Entry("layers with gain over damage to text above the mean", _GAIN_DAMAGE),
    "gain-damage-random0": Entry("random layers, as many as those", matched(_GAIN_DAMAGE, 0)),
    "gain-damage-random1": Entry("random layers as many, second draw", matched(_GAIN_DAMAGE, 1)),
    "gain-damage-random2": Entry("random layers as many, third draw", matched(_GAIN_DAMAGE, 2)),
    "gain-damage-random3": Entry("random layers as many, fourth draw", matched(_GAIN_DAMAGE, 3)),
    "gain-damage-random4": Entry("random layers as many, fifth draw", matched(_GAIN_DAMAGE, 4)),
    "gain-damage-fp-replay": Entry(
        "layers with gain over damage above the mean, text replayed", _GAIN_DAMAGE, replay="text"
    ),
    "gain-damage-fp-anchor": Entry(
        "layers with gain over damage above the mean, with anchor decay", _GAIN_DAMAGE, correct=_ANCHOR
    ),
    "gain-damage-fp-replay-anchor": Entry(
        "layers with gain over damage, anchor decay, text replayed", _GAIN_DAMAGE, replay="text", correct=_ANCHOR
    ),
    "deep-anchor": Entry("deep half of the blocks, with anchor decay", depth(True), correct=_ANCHOR),
    "gain-damage-random4-anchor": Entry(
        "random layers as many, fifth draw, with anchor decay", matched(_GAIN_DAMAGE, 4), correct=_ANCHOR
    ),
    "gain-damage-alr-kept": Entry("rates by gain over damage to facts to keep", gain_damage_alr("kept")),
    "gain-damage-fp-kept": Entry(
        "layers with gain over damage to facts to keep above the mean", gain_damage_fp("kept")
    ),
    "gain-damage-fp-near": Entry("layers with gain over damage to near facts above the mean", gain_damage_fp("near")),
    "gain-damage-fp-both": Entry(
        "layers with gain over damage to text and facts above the mean", gain_damage_fp("text+kept")
    ),
    "alr-squared-text": Entry("rates N_new / N_text^2, clipped to [.1, 1]", rescaled_by_square("text")),
    "alr-squared-kept": Entry("rates N_new / N_K^2, clipped to [.1, 1]", rescaled_by_square("kept")),
    "gain-damage-joint-fp": Entry("layers by gain over damage to text, all together", gain_damage_joint("text")),
    "gated": Entry("AdamW, changes against text shortened", everything, correct=gated("text", slope=10.0)),
    "projected": Entry("AdamW, what raises the loss on text taken out", everything, correct=projected("text")),
    "anchor-kept": Entry("AdamW, anchor decay by N_K^2", everything, correct=_ANCHOR_KEPT),
    "relative-change": Entry("rates in proportion to the weights, clipped to [.1, 1]", by_size),
    "mlp": Entry("all MLPs", kinds("mlp")),
    "attention": Entry("all attentions", kinds("attention")),
    "fp-text-quarter": Entry("a quarter of the layers, traced against text", top_share("text", 0.25)),
    # The same rules against other references, and drawn otherwise.
    "online-relative": Entry("online, relative to text", relative("text")),
    "alr-kept": Entry("TGL+ALR against facts to keep", rescaled("kept")),
    "alr-text-mean": Entry("TGL+ALR against text, mean rate kept", rescaled("text", "mean")),
    "random-kept1": Entry("random layers as many as against facts, second draw", matched(_KEPT, 1)),
    "random-kept2": Entry("the same, third draw", matched(_KEPT, 2)),
    "online-kept": Entry("online, relative to facts to keep", relative("kept")),
    "fp-near": Entry("TGL+FP against near facts alone", frozen("near")),
    "fp-far": Entry("TGL+FP against far facts alone", frozen("far")),
    "fp-kept4": Entry("TGL+FP against 4 facts to keep", frozen("kept4")),
    "fp-kept16": Entry("TGL+FP against 16 facts to keep", frozen("kept16")),
    "fp-text+kept": Entry("TGL+FP against text and facts to keep", frozen("text+kept")),
    "alr-kept-mean": Entry("TGL+ALR against facts to keep, mean rate kept", rescaled("kept", "mean")),
    # Decay toward the start in the optimizer, and rules on other signals than norms. What was expected: PREDICTIONS.md.
    "selective": Entry("AdamW, selective anchor decay", everything, anchor=_SELECTIVE),
    "cautious": Entry("AdamW, cautious anchor decay", everything, anchor=AnchorDecay(_STRENGTH, rule="cautious")),
    "gain-damage-fp-selective": Entry(
        "layers with gain over damage above the mean, selective anchor decay", _GAIN_DAMAGE, anchor=_SELECTIVE
    ),
    "gain-damage-online": Entry("online, gain over damage to text", gain_damage_online("text")),
    "gain-damage-online-selective": Entry(
        "online, gain over damage to text, selective anchor decay", gain_damage_online("text"), anchor=_SELECTIVE
    ),
    "corpus-fp": Entry("layers by gain on the raw passages over damage to the model's own samples", _CORPUS),
    "corpus-fp-selective": Entry("the same, selective anchor decay", _CORPUS, anchor=_SELECTIVE),
    **{
        f"corpus-random{draw}-selective": Entry(
            f"random layers as many, draw {draw}, selective anchor decay", matched(_CORPUS, draw), anchor=_SELECTIVE
        )
        for draw in range(5)
    },
    "mlp-selective": Entry("all MLPs, selective anchor decay", kinds("mlp"), anchor=_SELECTIVE),
    "corpus-online-selective": Entry(
        "online, gain over damage to own samples, selective anchor decay", gain_damage_online("own"), anchor=_SELECTIVE
    ),
    "finch": Entry("AdamW, rate by one over the root of the loss", online(lambda: LossScaled())),
    "online-change": Entry("online, ||g||_1 over ||w||", online(lambda: RelativeChange())),
    "online-change-selective": Entry(
        "online, ||g||_1 over ||w||, selective anchor decay", online(lambda: RelativeChange()), anchor=_SELECTIVE
    ),
    "online-carry": Entry("online, frozen layers bank their gradients", online(AboveMean, "carry")),
    "online-selective": Entry("online, `AboveMean`, selective anchor decay", online(AboveMean), anchor=_SELECTIVE),
    # Peers, and shares of the change by layer. What was expected: PREDICTIONS.md.
    "mofo": Entry("MoFO: the 15% of entries with the largest momentum", everything, correct=momentum_filtered(0.15)),
    "kappatune": Entry("KappaTune: the fifth of the matrices with the lowest condition number", best_conditioned(0.2)),
    "adept": Entry(
        "ADEPT's rule: the 4 blocks that text misses least, matrices by importance", least_missed(4, "text")
    ),
    "adamw-lines": Entry("AdamW, shares of the change by depth (LiNeS)", everything, path=by_depth),
    "adamw-path": Entry("AdamW, shares of the change by its gain over damage", everything, path=by_gain_damage("text")),
    "selective-lines": Entry(
        "AdamW, selective anchor decay, shares by depth (LiNeS)", everything, anchor=_SELECTIVE, path=by_depth
    ),
    "selective-path": Entry(
        "AdamW, selective anchor decay, shares by gain over damage",
        everything,
        anchor=_SELECTIVE,
        path=by_gain_damage("text"),
    ),
    "agreement": Entry("layers whose gradient agrees with their momentum", online(lambda: Agreement())),
}


def layer_names(model: nn.Module) -> tuple[str, ...]:
    return tuple(dict.fromkeys(partition((name for name, _ in model.named_parameters()), "sublayer").values()))


def partition_of(plan: Scales, names: Iterable[str]) -> Literal["sublayer", "matrix"]:
    """What a plan speaks of: attentions and MLPs, or single matrices."""
    names = list(names)
    matrices = set(partition(names, "matrix").values()) - set(partition(names, "sublayer").values())
    return "matrix" if matrices & plan.keys() else "sublayer"


def make_optimizer(
    model: nn.Module, rate: float, plan: Scales | Online, anchor: AnchorDecay | None = None
) -> Optimizer:
    """AdamW over what the model has to train, localized.

    Layers of scale 0 get no gradients at all, which saves their part of the backward pass.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    decay = anchor or AnchorDecay(0.0)
    if isinstance(plan, Online):
        inner = AdamW(grouped(list(named.values())), lr=rate, fused=True)
        return LocalizedOptimizer(
            inner,
            model,
            plan.policy,
            frozen_state=plan.frozen_state,  # type: ignore[arg-type]
            anchor_decay=decay,
        )
    mode = partition_of(plan, named)
    layer_of = partition(named, mode)
    for name, parameter in named.items():
        parameter.requires_grad_(plan[layer_of[name]] > 0)
    inner = AdamW(grouped([p for p in named.values() if p.requires_grad]), lr=rate, fused=True)
    trained = {layer: plan[layer] for layer in dict.fromkeys(layer_of.values()) if plan[layer] > 0}
    if anchor is None and set(trained.values()) <= {1.0}:
        return inner
    return LocalizedOptimizer(inner, model, Fixed(trained), layers=mode, anchor_decay=decay)
