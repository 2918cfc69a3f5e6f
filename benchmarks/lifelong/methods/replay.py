"""What is read along with the passages, so that it is not forgotten: ordinary text, or facts to keep.

Replay of text is the method of MixReview (He et al. 2021). A few sequences an epoch, other ones every epoch; with the
passages of a half they fill as many batches as the passages alone.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Literal, TypeAlias

from transformers import PreTrainedTokenizerBase

from benchmarks.lifelong.methods.norms import EXAMPLES, kept_facts
from benchmarks.lifelong.start import plain_text
from localopt.pretraining.probes import Example, encode_text

SEQUENCES = 4  # an epoch: 6% of what is read
Replay: TypeAlias = Literal["text", "kept"]


def replayed(
    kind: Replay, prepared: Path, tokenizer: PreTrainedTokenizerBase, length: int, epochs: int
) -> list[list[Example]]:
    """The sequences of every epoch: text that neither the start nor a trace reads, or facts that a trace may see."""
    if kind == "text":
        text = plain_text(tokenizer, prepared, length)
        found = (text[:-EXAMPLES] or text)[-SEQUENCES * epochs :]
    else:
        kept = kept_facts(prepared, "kept", 2 * len(kept_facts(prepared, "far", 10**6)))  # half near, half far
        random.Random(0).shuffle(kept)
        facts = [f"{fact.text.rstrip('.')}." for fact in kept]
        found = encode_text(facts, tokenizer, length)
    # Read again from the beginning where there are too few.
    return [[found[(SEQUENCES * epoch + i) % len(found)] for i in range(SEQUENCES)] for epoch in range(epochs)]
