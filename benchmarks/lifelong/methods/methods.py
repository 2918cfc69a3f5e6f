"""Names of methods -> what each does to a model and its optimizer.

`METHODS` is in the order of evidence: what a sweep that is cut short should have done first.
"""

from __future__ import annotations

from benchmarks.lifelong.methods.corrections import gated, projected
from benchmarks.lifelong.methods.entry import ANCHOR as _ANCHOR
from benchmarks.lifelong.methods.entry import ANCHOR_KEPT as _ANCHOR_KEPT
from benchmarks.lifelong.methods.entry import CORPUS as _CORPUS
from benchmarks.lifelong.methods.entry import RECADAM as _RECADAM
from benchmarks.lifelong.methods.entry import SELECTIVE as _SELECTIVE
from benchmarks.lifelong.methods.entry import STRENGTH as _STRENGTH
from benchmarks.lifelong.methods.entry import Entry
from benchmarks.lifelong.methods.interpolation import by_depth, by_gain_damage
from benchmarks.lifelong.methods.optimizers import layer_names, make_optimizer, partition_of
from benchmarks.lifelong.methods.peers import best_conditioned, least_missed, momentum_filtered
from benchmarks.lifelong.methods.rules import (
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
from benchmarks.lifelong.methods.systems import SYSTEMS
from localopt import AnchorDecay
from localopt.policies import AboveMean, Agreement, Cyclic, HighestSNR, LayerDecay, LossScaled, RelativeChange

__all__ = ["METHODS", "Entry", "layer_names", "make_optimizer", "partition_of"]

_KEPT, _TEXT, _GAIN_DAMAGE = frozen("kept"), frozen("text"), gain_damage_fp("text")
_LORA = {"lora": 16, "rate": 10.0}
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
    "corpus-fp-selective": Entry(
        "layers by gain on the raw passages over damage to own samples, selective anchor decay",
        _CORPUS,
        anchor=_SELECTIVE,
    ),
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
    # What is a layer to the decay, how strong it is, and single matrices as layers. What was expected: PREDICTIONS.md.
    "selective-matrix": Entry("selective decay, a matrix at a time", everything, anchor=_SELECTIVE, layers="matrix"),
    "selective-block": Entry("selective decay, a block at a time", everything, anchor=_SELECTIVE, layers="block"),
    "selective-whole": Entry("selective decay, all at once", everything, anchor=_SELECTIVE, layers=lambda name: "all"),
    **{
        f"anchor-{strength}": Entry(f"AdamW with anchor decay of {strength}", everything, anchor=AnchorDecay(strength))
        for strength in (25, 50, 200, 400)
    },
    "gain-damage-matrix-fp-selective": Entry(
        "matrices with gain over damage above the mean, selective anchor decay",
        gain_damage_fp("text", layers="matrix"),
        anchor=_SELECTIVE,
    ),
    "corpus-matrix-fp-selective": Entry(
        "matrices by gain on the raw passages over damage to own samples, selective anchor decay",
        gain_damage_fp("own", probe="corpus", layers="matrix"),
        anchor=_SELECTIVE,
    ),
    "agreement": Entry("layers whose gradient agrees with their momentum", online(lambda: Agreement())),
    **SYSTEMS,  # of the field
}
