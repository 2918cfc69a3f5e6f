"""The comparisons a report makes: what they ask, the methods of one side, those of the other.

A side of several methods is one of random draws of a kind, and counts by the mean of what they take in.
"""

from __future__ import annotations

from collections.abc import Sequence

RANDOM = ("random0", "random1", "random2", "random3", "random4")
RANDOM_KEPT = ("random-kept0", "random-kept1", "random-kept2")
RANDOM_GAIN_DAMAGE = (
    "gain-damage-random0",
    "gain-damage-random1",
    "gain-damage-random2",
    "gain-damage-random3",
    "gain-damage-random4",
)
RANDOM_CORPUS = tuple(f"corpus-random{draw}-selective" for draw in range(5))


class Best(tuple[str, ...]):
    """Random draws that count by the one that takes in most.

    It is chosen by what is compared, so the comparison is harder than a fair one.
    """


CONTRASTS: tuple[tuple[str, Sequence[str], Sequence[str]], ...] = (
    ("tracing against text, or random layers as many", ("fp-text",), RANDOM),
    ("tracing against text, or the best of those draws", ("fp-text",), Best(RANDOM)),
    ("tracing against text, or the deep half", ("fp-text",), ("deep",)),
    ("tracing against text, or AdamW", ("fp-text",), ("adamw",)),
    ("random layers, or AdamW", RANDOM, ("adamw",)),
    ("tracing against text, or the layers it freezes", ("fp-text",), ("inverted",)),
    ("tracing against facts to keep, or against text", ("fp-kept",), ("fp-text",)),
    ("tracing against facts to keep, or AdamW", ("fp-kept",), ("adamw",)),
    ("tracing against facts to keep, or the deep half", ("fp-kept",), ("deep",)),
    ("the same, both without the embedding", ("fp-kept-blocks",), ("deep",)),
    ("the same, both with the embedding", ("fp-kept",), ("deep-embedding",)),
    ("tracing against facts to keep, or random layers as many", ("fp-kept",), RANDOM_KEPT),
    ("the deep half, or AdamW", ("deep",), ("adamw",)),
    ("ALR, or a uniform rate of the same mean", ("alr-text",), ("uniform",)),
    ("online, or traced beforehand", ("online",), ("fp-text",)),
    ("online, or AdamW", ("online",), ("adamw",)),
    ("rates by gain over damage, or AdamW", ("gain-damage-alr",), ("adamw",)),
    ("layers by gain over damage, or AdamW", ("gain-damage-fp",), ("adamw",)),
    ("layers by gain over damage, or tracing against text", ("gain-damage-fp",), ("fp-text",)),
    ("layers by gain over damage, or the deep half", ("gain-damage-fp",), ("deep",)),
    ("layers by gain over damage, or all MLPs", ("gain-damage-fp",), ("mlp",)),
    ("layers by gain over damage, or random layers as many", ("gain-damage-fp",), RANDOM_GAIN_DAMAGE),
    ("layers by gain over damage, or the best of those draws", ("gain-damage-fp",), Best(RANDOM_GAIN_DAMAGE)),
    ("gain over damage of all layers as one step, or of each", ("gain-damage-joint-fp",), ("gain-damage-fp",)),
    ("rates by gain over damage to facts to keep, or to text", ("gain-damage-alr-kept",), ("gain-damage-alr",)),
    ("layers by gain over damage to facts to keep, or to text", ("gain-damage-fp-kept",), ("gain-damage-fp",)),
    ("layers by gain over damage to near facts, or to text", ("gain-damage-fp-near",), ("gain-damage-fp",)),
    ("layers by gain over damage to near facts, or tracing against facts", ("gain-damage-fp-near",), ("fp-kept",)),
    ("layers by gain over damage to both, or to text", ("gain-damage-fp-both",), ("gain-damage-fp",)),
    ("with text replayed: rates by gain over damage, or AdamW", ("gain-damage-alr-replay",), ("replay-text",)),
    ("with text replayed: layers by gain over damage, or AdamW", ("gain-damage-fp-replay",), ("replay-text",)),
    ("with text replayed: tracing, or AdamW", ("fp-text-replay",), ("replay-text",)),
    ("with text replayed: the deep half, or AdamW", ("deep-replay",), ("replay-text",)),
    ("LoRA on traced layers, or on all", ("fp-text-lora",), ("lora",)),
    ("with anchor decay: tracing, or AdamW", ("fp-text-anchor",), ("anchor",)),
    ("with anchor decay: layers by gain over damage, or AdamW", ("gain-damage-fp-anchor",), ("anchor",)),
    ("with anchor decay: layers by gain over damage, or the deep half", ("gain-damage-fp-anchor",), ("deep-anchor",)),
    (
        "with anchor decay: layers by gain over damage, or the best random draw",
        ("gain-damage-fp-anchor",),
        ("gain-damage-random4-anchor",),
    ),
    (
        "with text replayed and anchor decay: layers by gain over damage, or without the decay",
        ("gain-damage-fp-replay-anchor",),
        ("gain-damage-fp-replay",),
    ),
    (
        "layers by gain over damage and anchor decay, or AdamW with text replayed",
        ("gain-damage-fp-anchor",),
        ("replay-text",),
    ),
    ("layers by gain over damage: with anchor decay, or without", ("gain-damage-fp-anchor",), ("gain-damage-fp",)),
    ("anchor decay, or AdamW", ("anchor",), ("adamw",)),
    ("with RecAdam: tracing, or all layers", ("fp-text-recadam",), ("recadam",)),
    # Decay toward the start in the optimizer, and rules that look at every step.
    ("selective anchor decay, or AdamW", ("selective",), ("adamw",)),
    ("selective anchor decay, or plain", ("selective",), ("anchor",)),
    ("cautious anchor decay, or plain", ("cautious",), ("anchor",)),
    ("online gain over damage, or AdamW", ("gain-damage-online",), ("adamw",)),
    ("gain over damage online, or traced beforehand", ("gain-damage-online",), ("gain-damage-fp",)),
    ("with selective decay: online gain over damage, or AdamW", ("gain-damage-online-selective",), ("selective",)),
    ("with selective decay: layers by gain over damage, or AdamW", ("gain-damage-fp-selective",), ("selective",)),
    (
        "layers by gain over damage: selective decay, or plain",
        ("gain-damage-fp-selective",),
        ("gain-damage-fp-anchor",),
    ),
    ("layers chosen from the corpus alone, or AdamW", ("corpus-fp",), ("adamw",)),
    ("the same with selective decay, or AdamW", ("corpus-fp-selective",), ("adamw",)),
    ("with selective decay: layers from the corpus, or AdamW", ("corpus-fp-selective",), ("selective",)),
    ("with selective decay: from the corpus, or from answers", ("corpus-fp-selective",), ("gain-damage-fp-selective",)),
    ("with selective decay: layers from the corpus, or random", ("corpus-fp-selective",), RANDOM_CORPUS),
    ("with selective decay: from the corpus, or the best draw", ("corpus-fp-selective",), Best(RANDOM_CORPUS)),
    ("with selective decay: layers from the corpus, or all MLPs", ("corpus-fp-selective",), ("mlp-selective",)),
    ("with selective decay: online above the mean, or AdamW", ("online-selective",), ("selective",)),
    ("rate by the loss (FINCH), or AdamW", ("finch",), ("adamw",)),
    ("online by relative change, or AdamW", ("online-change",), ("adamw",)),
    ("frozen layers bank their gradients, or wait", ("online-carry",), ("online",)),
    ("MoFO, or AdamW", ("mofo",), ("adamw",)),
    ("KappaTune, or AdamW", ("kappatune",), ("adamw",)),
    ("ADEPT's rule, or AdamW", ("adept",), ("adamw",)),
    ("AdamW's change by depth (LiNeS), or alike in all layers", ("adamw-lines",), ("adamw",)),
    ("AdamW's change by gain over damage, or alike in all layers", ("adamw-path",), ("adamw",)),
    ("with selective decay: change by depth, or alike", ("selective-lines",), ("selective",)),
    ("with selective decay: change by gain over damage, or alike", ("selective-path",), ("selective",)),
)
