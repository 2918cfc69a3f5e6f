"""A method of the benchmark: what it does to a model and its optimizer, and what a table says of it."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.lifelong.methods.corrections import Correction, anchored, anchored_by, recalled
from benchmarks.lifelong.methods.interpolation import Interpolation
from benchmarks.lifelong.methods.replay import Replay
from benchmarks.lifelong.methods.rules import Rule, gain_damage_fp
from benchmarks.lifelong.methods.study import PLAIN, Extension, Study
from localopt import AnchorDecay
from localopt.layers import Layers

STRENGTH = 100.0  # with a rate of 1.5e-4 a step decays 1.5% of the change; over 24 steps, a sixth of it
ANCHOR = anchored(STRENGTH)
ANCHOR_KEPT = anchored_by("kept", STRENGTH)
RECADAM = recalled(STRENGTH, speed=0.5, middle=6)  # of 24 steps
SELECTIVE = AnchorDecay(1.0, rule="selective")
CORPUS = gain_damage_fp("own", probe="corpus")


@dataclass(frozen=True)
class Entry:
    """A method with what a table says of it.

    `plan`: the scales of the layers. `replay`: what is read along with the passages. `correct`: what is done to the
    weights around every step. `anchor`: decay toward the start, in the optimizer. `lora`: rank of adapters that are
    trained instead of the weights. `rate`: what the sweep's rate is multiplied by, for methods that need another order
    of magnitude. `path`: how much of its change each layer keeps between start and end; without it all keep one share.
    `layers`: what a layer is to the decay of a method that trains everything, where not an attention or MLP.
    `study`: how it teaches where it does more than read the passages. `extension`: what it adds to the model.
    """

    about: str
    plan: Rule
    replay: Replay | None = None
    correct: Correction | None = None
    lora: int = 0
    rate: float = 1.0
    anchor: AnchorDecay | None = None
    path: Interpolation | None = None
    layers: Layers | None = None
    study: Study = PLAIN
    extension: Extension | None = None

    @property
    def decays(self) -> bool:
        """Whether it decays toward some start, in the optimizer or around it."""
        return self.anchor is not None or self.correct in (ANCHOR, ANCHOR_KEPT, RECADAM)
