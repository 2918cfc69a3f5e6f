"""Names of methods -> what each does to a model and its optimizer.

`METHODS` is in the order of evidence: what a sweep that is cut short should have done first.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.optim import AdamW, Optimizer

from benchmarks.lifelong.methods.corrections import Correction, gated, projected, pulled, pulled_by, recalled
from benchmarks.lifelong.methods.replay import Replay
from benchmarks.lifelong.methods.rules import (
    Online,
    Rule,
    Scales,
    by_size,
    careful,
    depth,
    everything,
    frozen,
    inverted,
    kinds,
    loudest,
    matched,
    online,
    redrawn,
    relative,
    rescaled,
    together,
    uniform,
    without_embedding,
    worth,
    worthwhile,
)
from benchmarks.lifelong.training import grouped
from localopt import LocalizedOptimizer
from localopt.layers import partition
from localopt.policies import AboveMean, Fixed
from localopt.policies.peers import Cyclic, HighestSNR, LayerDecay


@dataclass(frozen=True)
class Entry:
    """A method with what a table says of it.

    `plan`: the scales of the layers. `replay`: what is read along with the passages. `correct`: what is done to the
    weights around every step. `lora`: rank of adapters that are trained instead of the weights. `rate`: what the
    sweep's rate is multiplied by, for methods that need another order of magnitude.
    """

    about: str
    plan: Rule
    replay: Replay | None = None
    correct: Correction | None = None
    lora: int = 0
    rate: float = 1.0


_KEPT, _TEXT, _WORTH = frozen("kept"), frozen("text"), worthwhile("text")
_LORA = {"lora": 16, "rate": 10.0}
_STRENGTH = 100.0  # with a rate of 1.5e-4 a step's pull is 1.5%; over a run of 24 steps, a sixth of the way back
_PULL = pulled(_STRENGTH)
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
    "pull": Entry("AdamW, pulled to the start", everything, correct=_PULL),
    "fp-text-pull": Entry("TGL+FP against text, pulled to the start", _TEXT, correct=_PULL),
    "recadam": Entry("RecAdam", everything, correct=_RECADAM),
    "fp-text-recadam": Entry("TGL+FP against text, with RecAdam", _TEXT, correct=_RECADAM),
    "lisa": Entry("LISA: an eighth of the layers, drawn anew every 2 steps", redrawn(0.125, 2)),
    "half": Entry("half fine-tuning: half of the layers, drawn anew every epoch", redrawn(0.5, 8)),
    "badam": Entry("BAdam: a layer at a time, in random order", online(lambda: Cyclic(every=1, order="random"))),
    "spectrum": Entry("Spectrum: half of the layers, by their weights", online(lambda: HighestSNR(0.5))),
    "decay": Entry("rates that fall by 0.9 a block towards the input", online(lambda: LayerDecay(0.9))),
    # The search for a better rule.
    "worth-text": Entry("rates by gain over damage to text", worth("text")),
    "worth-text-replay": Entry("rates by gain over damage to text, text replayed", worth("text"), replay="text"),
    "worth-fp": Entry("layers with gain over damage to text above the mean", _WORTH),
    "worth-random0": Entry("random layers, as many as those", matched(_WORTH, 0)),
    "worth-random1": Entry("random layers as many, second draw", matched(_WORTH, 1)),
    "worth-random2": Entry("random layers as many, third draw", matched(_WORTH, 2)),
    "worth-random3": Entry("random layers as many, fourth draw", matched(_WORTH, 3)),
    "worth-random4": Entry("random layers as many, fifth draw", matched(_WORTH, 4)),
    "worth-fp-replay": Entry("layers with gain over damage above the mean, text replayed", _WORTH, replay="text"),
    "worth-fp-pull": Entry("layers with gain over damage above the mean, pulled to the start", _WORTH, correct=_PULL),
    "worth-fp-replay-pull": Entry(
        "layers with gain over damage, pulled, text replayed", _WORTH, replay="text", correct=_PULL
    ),
    "deep-pull": Entry("deep half of the blocks, pulled to the start", depth(True), correct=_PULL),
    "worth-random4-pull": Entry(
        "random layers as many, fifth draw, pulled to the start", matched(_WORTH, 4), correct=_PULL
    ),
    "worth-kept": Entry("rates by gain over damage to facts to keep", worth("kept")),
    "worth-fp-kept": Entry("layers with gain over damage to facts to keep above the mean", worthwhile("kept")),
    "worth-fp-near": Entry("layers with gain over damage to near facts above the mean", worthwhile("near")),
    "worth-fp-both": Entry("layers with gain over damage to text and facts above the mean", worthwhile("text+kept")),
    "careful-text": Entry("rates N_new / N_text^2, clipped to [.1, 1]", careful("text")),
    "careful": Entry("rates N_new / N_K^2, clipped to [.1, 1]", careful("kept")),
    "together-fp": Entry("layers by gain over damage to text, all together", together("text")),
    "gated": Entry("AdamW, changes against text shortened", everything, correct=gated("text", slope=10.0)),
    "projected": Entry("AdamW, what raises the loss on text taken out", everything, correct=projected("text")),
    "pull-kept": Entry("AdamW, pulled to the start by N_K^2", everything, correct=pulled_by("kept", _STRENGTH)),
    "relative-change": Entry("rates in proportion to the weights, clipped to [.1, 1]", by_size),
    "mlp": Entry("all MLPs", kinds("mlp")),
    "attention": Entry("all attentions", kinds("attention")),
    "loudest-text": Entry("a quarter of the layers, traced against text", loudest("text", 0.25)),
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
}


def layer_names(model: nn.Module) -> tuple[str, ...]:
    return tuple(dict.fromkeys(partition((name for name, _ in model.named_parameters()), "sublayer").values()))


def make_optimizer(model: nn.Module, rate: float, plan: Scales | Online) -> Optimizer:
    """AdamW over what the model has to train, localized.

    Layers of scale 0 get no gradients at all, which saves their part of the backward pass.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if isinstance(plan, Online):
        inner = AdamW(grouped(list(named.values())), lr=rate, fused=True)
        return LocalizedOptimizer(inner, model, plan.policy, frozen_state=plan.frozen_state)  # type: ignore[arg-type]
    layer_of = partition(named, "sublayer")
    for name, parameter in named.items():
        parameter.requires_grad_(plan[layer_of[name]] > 0)
    inner = AdamW(grouped([p for p in named.values() if p.requires_grad]), lr=rate, fused=True)
    trained = {layer: plan[layer] for layer in dict.fromkeys(layer_of.values()) if plan[layer] > 0}
    return inner if set(trained.values()) <= {1.0} else LocalizedOptimizer(inner, model, Fixed(trained))
