"""The systems of the field as methods: each alone, and on the layers that gain over damage chooses.

"on the chosen layers" is `corpus-fp-selective` with the system in place of plain reading: the layers whose gain on the
raw passages over the damage to the model's own text is above the mean, the others frozen, and selective decay toward
the start. A formula, its source and where ours departs from it stand on top of each system's file.
"""

from __future__ import annotations

from typing import Any

from benchmarks.lifelong.methods import lexical_change
from benchmarks.lifelong.methods.dark_experience import remembered
from benchmarks.lifelong.methods.distillation import AN_EPOCH, continuations, distilled
from benchmarks.lifelong.methods.entry import CORPUS, SELECTIVE, Entry
from benchmarks.lifelong.methods.f_learning import forgotten
from benchmarks.lifelong.methods.fine_tuned_layer import answers, at_depth, best_layer, bounded, from_the_prompt
from benchmarks.lifelong.methods.memit import early_mlps, memit
from benchmarks.lifelong.methods.mixreview import mixed
from benchmarks.lifelong.methods.rules import everything
from benchmarks.lifelong.methods.side_network import beside, best_tapped, side_alone, spread
from benchmarks.lifelong.methods.study import Study

_CHOSEN: dict[str, Any] = {"plan": CORPUS, "anchor": SELECTIVE}
_BEST: dict[str, Any] = {"reference": "own", "probe": "corpus"}
_DISTILLATION = Study(reads=continuations, loss=distilled, batches=AN_EPOCH)
_CHANGED = Study(reads=lexical_change.changed, loss=lambda lesson: lexical_change.by_weights)
_AS_FREQUENT = Study(reads=lexical_change.as_frequent, loss=lambda lesson: lexical_change.by_weights)
_ANSWERS = Study(reads=answers)
_FROM_THE_PROMPT = Study(reads=answers, loss=lambda lesson: from_the_prompt)

SYSTEMS: dict[str, Entry] = {
    "distillation": Entry("distillation of what the passage makes likely", everything, study=_DISTILLATION),
    "distillation-chosen": Entry("distillation, on the chosen layers", study=_DISTILLATION, **_CHOSEN),
    "f-learning": Entry(
        "F-Learning: three tenths of the old facts taken off first", everything, study=Study(before=forgotten())
    ),
    "f-learning-lora": Entry(
        "F-Learning, the old facts by LoRA", everything, study=Study(before=forgotten(lora=16, faster=10.0))
    ),
    "f-learning-chosen": Entry("F-Learning, on the chosen layers", study=Study(before=forgotten()), **_CHOSEN),
    "lexical-change": Entry("AdamW, words whose use changed weigh more", everything, study=_CHANGED),
    "lexical-random": Entry("AdamW, random words as frequent weigh more", everything, study=_AS_FREQUENT),
    "lexical-change-chosen": Entry("words whose use changed, on the chosen layers", study=_CHANGED, **_CHOSEN),
    "mixreview": Entry("MixReview: four times as much text, falling by 0.7", everything, study=Study(reads=mixed())),
    "mixreview-chosen": Entry("MixReview, on the chosen layers", study=Study(reads=mixed()), **_CHOSEN),
    "der": Entry("DER++: text and its logits replayed", everything, study=Study(loss=remembered())),
    "der-chosen": Entry("DER++, on the chosen layers", study=Study(loss=remembered()), **_CHOSEN),
    "k-adapter": Entry(
        "K-Adapter: adapters behind the first, middle and last block", side_alone, rate=10.0, extension=beside(spread)
    ),
    "k-adapter-best": Entry(
        "K-Adapter, behind the blocks with the most gain over damage",
        side_alone,
        rate=10.0,
        extension=beside(best_tapped(**_BEST)),
    ),
    "ft-l": Entry("FT-L: one matrix, bounded", at_depth(), correct=bounded(), study=_FROM_THE_PROMPT),
    "ft-l-best": Entry(
        "FT-L, where gain over damage is largest", best_layer(**_BEST), correct=bounded(), study=_FROM_THE_PROMPT
    ),
    "ft-m": Entry("FT-M: one matrix, the answers alone", at_depth(), study=_ANSWERS),
    "ft-m-best": Entry("FT-M, where gain over damage is largest", best_layer(**_BEST), study=_ANSWERS),
    "ft-m-chosen": Entry("the answers alone, on the chosen layers", study=_ANSWERS, **_CHOSEN),
    "memit": Entry("MEMIT: five early MLPs edited", early_mlps, study=Study(instead=memit)),
    "memit-best": Entry(
        "MEMIT, the five MLPs with the most gain over damage", best_layer(**_BEST, count=5), study=Study(instead=memit)
    ),
}
