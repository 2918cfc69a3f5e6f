"""The comparisons a report makes: what they ask, the methods of one side, those of the other.

A side of several methods is one of random draws of a kind, and counts by the mean of what they take in.
"""

from __future__ import annotations

from collections.abc import Sequence

RANDOM = ("random0", "random1", "random2", "random3", "random4")
RANDOM_KEPT = ("random-kept0", "random-kept1", "random-kept2")
RANDOM_WORTH = ("worth-random0", "worth-random1", "worth-random2", "worth-random3", "worth-random4")


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
    ("rates by gain over damage, or AdamW", ("worth-text",), ("adamw",)),
    ("layers by gain over damage, or AdamW", ("worth-fp",), ("adamw",)),
    ("layers by gain over damage, or tracing against text", ("worth-fp",), ("fp-text",)),
    ("layers by gain over damage, or the deep half", ("worth-fp",), ("deep",)),
    ("layers by gain over damage, or all MLPs", ("worth-fp",), ("mlp",)),
    ("layers by gain over damage, or random layers as many", ("worth-fp",), RANDOM_WORTH),
    ("layers by gain over damage, or the best of those draws", ("worth-fp",), Best(RANDOM_WORTH)),
    ("gain over damage of all layers as one step, or of each", ("together-fp",), ("worth-fp",)),
    ("rates by gain over damage to facts to keep, or to text", ("worth-kept",), ("worth-text",)),
    ("layers by gain over damage to facts to keep, or to text", ("worth-fp-kept",), ("worth-fp",)),
    ("layers by gain over damage to near facts, or to text", ("worth-fp-near",), ("worth-fp",)),
    ("layers by gain over damage to near facts, or tracing against facts", ("worth-fp-near",), ("fp-kept",)),
    ("layers by gain over damage to both, or to text", ("worth-fp-both",), ("worth-fp",)),
    ("with text replayed: rates by gain over damage, or AdamW", ("worth-text-replay",), ("replay-text",)),
    ("with text replayed: layers by gain over damage, or AdamW", ("worth-fp-replay",), ("replay-text",)),
    ("with text replayed: tracing, or AdamW", ("fp-text-replay",), ("replay-text",)),
    ("with text replayed: the deep half, or AdamW", ("deep-replay",), ("replay-text",)),
    ("LoRA on traced layers, or on all", ("fp-text-lora",), ("lora",)),
    ("with a pull to the start: tracing, or AdamW", ("fp-text-pull",), ("pull",)),
    ("with a pull to the start: layers by gain over damage, or AdamW", ("worth-fp-pull",), ("pull",)),
    ("with a pull: layers by gain over damage, or the deep half", ("worth-fp-pull",), ("deep-pull",)),
    ("with a pull: layers by gain over damage, or the best random draw", ("worth-fp-pull",), ("worth-random4-pull",)),
    (
        "with text replayed and a pull: layers by gain over damage, or without the pull",
        ("worth-fp-replay-pull",),
        ("worth-fp-replay",),
    ),
    ("layers by gain over damage and a pull, or AdamW with text replayed", ("worth-fp-pull",), ("replay-text",)),
    ("layers by gain over damage: pulled to the start, or not", ("worth-fp-pull",), ("worth-fp",)),
    ("a pull to the start, or AdamW", ("pull",), ("adamw",)),
    ("with RecAdam: tracing, or all layers", ("fp-text-recadam",), ("recadam",)),
)
