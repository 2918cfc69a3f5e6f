"""How far a model has moved from the start on what it was taught: KL(start || model), nats a token.

On the task's own text it predicts what is forgotten elsewhere (Shenfeld, Pari and Agrawal 2025, arXiv 2509.04259).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from localopt.pretraining.probes import Example

TOKENS = 1024  # at most: their distributions are kept, 100 MB for a vocabulary of 49,000


class Divergence:
    """The start's distribution of the next token at every place of some texts, to compare others with.

    The model is at the start when this is made. As many of the texts are taken, from everywhere among them, as have
    about TOKENS tokens.
    """

    def __init__(self, start: nn.Module, texts: Sequence[Example]) -> None:
        most = max(1, TOKENS // max(len(text["input_ids"]) for text in texts))
        count = min(most, len(texts))
        self.texts = [texts[i * len(texts) // count]["input_ids"] for i in range(count)]
        self.start = [log_probs.half() for log_probs in self._log_probs(start)]

    def __call__(self, model: nn.Module) -> list[float]:
        """KL of every text, averaged over its tokens: sum over the vocabulary of p_0 (log p_0 - log p)."""
        return [
            float((before.float().exp() * (before.float() - now)).sum(1).mean())
            for before, now in zip(self.start, self._log_probs(model), strict=True)
        ]

    @torch.inference_mode()
    def _log_probs(self, model: nn.Module) -> list[Tensor]:
        """Of each text (T - 1, V), fp32; rounded to fp16 as the start's are, so that the start is at 0 from itself."""
        return [
            model(input_ids=ids[None], use_cache=False).logits[0, :-1].float().log_softmax(1).half().float()
            for ids in self.texts
        ]
