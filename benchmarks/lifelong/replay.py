"""What is read along with the passages, so that it is not forgotten: ordinary text, or facts to keep.

Replay of text is the method of MixReview (He et al. 2021). A few sequences an epoch, other ones every epoch; with the
passages of a half they fill as many batches as the passages alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

from transformers import PreTrainedTokenizerBase

from benchmarks.lifelong.norms import EXAMPLES, kept_facts
from benchmarks.lifelong.start import plain_text
from localopt.probes import Example, encode_text

SEQUENCES = 5  # an epoch: 8% of what is read
Replay: TypeAlias = Literal["text", "kept"]


def replayed(
    kind: Replay, prepared: Path, tokenizer: PreTrainedTokenizerBase, length: int, epochs: int
) -> list[list[Example]]:
    """The sequences of every epoch: text that neither the start nor a trace reads, or facts that a trace may see."""
    if kind == "text":
        text = plain_text(tokenizer, prepared, length)
        found = (text[:-EXAMPLES] or text)[-SEQUENCES * epochs :]
    else:
        facts = [f"{fact.text.rstrip('.')}." for side in ("near", "far") for fact in kept_facts(prepared, side, 10**6)]
        found = encode_text(facts, tokenizer, length)
    # Read again from the beginning where there are too few.
    return [[found[(SEQUENCES * epoch + i) % len(found)] for i in range(SEQUENCES)] for epoch in range(epochs)]
