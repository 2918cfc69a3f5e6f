"""MixReview (He et al. 2021, arXiv 1910.07117), as ECKL and EvolvingQA (arXiv 2311.08106) compare by.

In epoch e (from 0), ratio * decay^e times as many sequences of what the model was pretrained on are mixed into what it
learns, other ones every epoch. Ratio 4 and decay 0.7 are the settings of continual knowledge learning (Jang et al.
2022, arXiv 2110.03215).

Departures: what SmolLM2 was pretrained on is not there; ordinary text (of WikiText, which the start read other pieces
of) stands for it. That is also the kind of text that forgetting is measured on, so it is flattered. Three epochs are 89
steps instead of 24.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from benchmarks.lifelong.data.passages import lessons
from benchmarks.lifelong.methods.norms import EXAMPLES
from benchmarks.lifelong.methods.study import Lesson
from benchmarks.lifelong.start import SEQUENCES, plain_text
from localopt.pretraining.probes import Example

RATIO, DECAY = 4.0, 0.7


def mixed(ratio: float = RATIO, decay: float = DECAY) -> Callable[[Lesson], list[list[Example]]]:
    """The passages in every epoch, and text that falls off."""

    def reads(lesson: Lesson) -> list[list[Example]]:
        length = lesson.settings.length
        passages = lessons(lesson.prepared, lesson.case.half, lesson.tokenizer, length)
        text = unread(lesson)
        random.Random(f"mixreview/{lesson.case.seed}").shuffle(text)
        epochs, used = [], 0
        for epoch in range(lesson.settings.epochs):
            count = round(ratio * decay**epoch * len(passages))
            epochs.append(passages + [text[(used + i) % len(text)] for i in range(count)])
            used += count
        return epochs

    return reads


def unread(lesson: Lesson) -> list[Example]:
    """Ordinary text that neither the start nor a trace reads; all of it where there is too little."""
    text = plain_text(lesson.tokenizer, lesson.prepared, lesson.settings.length)
    return text[SEQUENCES:-EXAMPLES] or text
