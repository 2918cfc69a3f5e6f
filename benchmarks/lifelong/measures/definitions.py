"""What each measure is, in words; between which numbers it lies; which way is better; how answers make a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

KNOWEDIT, PROPAGATION, EVOLVING = "KnowEdit", "Entity propagation", "EvolvingQA"
WORKING, CONTEXT, PROBES = "Working memory", "Context and memory", "Linguistic probes"


@dataclass(frozen=True)
class Definition:
    """A measure.

    The figure is sum(values) / sum(weights) over the questions, and of a perplexity the exponential of that; it lies in
    [low, high]. `better`: 1 for more, -1 for less, 0 where neither is.
    """

    system: str
    says: str
    better: int = 1
    low: float = 0.0
    high: float = 1.0
    perplexity: bool = False


@dataclass(frozen=True)
class Values:
    """What a measure found, question by question.

    `groups`: questions of one group are not independent. `weights`: what a question counts, 1 each where empty.
    """

    values: Sequence[float]
    groups: Sequence[str]
    weights: Sequence[float] = field(default_factory=tuple)


def _perplexity(system: str, says: str) -> Definition:
    return Definition(system, f"perplexity of {says}", better=-1, low=1.0, high=math.inf, perplexity=True)


DEFINITIONS: dict[str, Definition] = {
    "reliability": Definition(
        KNOWEDIT,
        "share of the passages taught, cut before the answer, after which it is the likeliest of those offered",
    ),
    "generality": Definition(
        KNOWEDIT, "share of other phrasings after which the answer taught is the likeliest offered"
    ),
    "portability": Definition(
        KNOWEDIT, "share of two-step questions about the subjects taught whose right answer is the likeliest offered"
    ),
    "portability taught": Definition(KNOWEDIT, "the same, of those alone that ask for the answer taught"),
    "locality near": Definition(
        KNOWEDIT, "share of facts like those taught that the start ranks first and the model still does"
    ),
    "locality far": Definition(KNOWEDIT, "the same of facts that share nothing with what is taught"),
    "text": _perplexity(KNOWEDIT, "WikiText that nothing else reads"),
    "entity spans": _perplexity(
        PROPAGATION,
        "the masked span of sentences on entities whose definitions were taught, given what stands before it",
    ),
    "entity spans defined": _perplexity(PROPAGATION, "the same spans with the definition in front: the upper bound"),
    "entity specificity": _perplexity(PROPAGATION, "masked spans of sentences on well-known entities"),
    "inferences": Definition(
        PROPAGATION, "share of sentences that follow from a definition taught in which the right word is the likeliest"
    ),
    "inferences defined": Definition(PROPAGATION, "the same with the definition in front: the upper bound"),
    "inferences untaught": Definition(PROPAGATION, "the same of entities whose definitions were not taught", better=0),
    "updated exact": Definition(
        EVOLVING, "share of facts with a former answer to which the new one is written, exactly"
    ),
    "updated F1": Definition(EVOLVING, "F1 of the words written to those, mean"),
    "new exact": Definition(EVOLVING, "share of facts without a former answer to which theirs is written, exactly"),
    "new F1": Definition(EVOLVING, "F1 of the words written to those, mean"),
    "unchanged exact": Definition(
        EVOLVING, "share of facts that the start ranks first whose answer is written, exactly"
    ),
    "unchanged F1": Definition(EVOLVING, "F1 of the words written to those, mean"),
    "new over old": Definition(EVOLVING, "share of phrasings with logP(new answer) > logP(former answer)"),
    "past": Definition(
        EVOLVING, "share of questions about a past interval with logP(who held it then) > logP(who does now)"
    ),
    "past until 1999": Definition(EVOLVING, "the same of intervals that ended before 2000"),
    "past 2000-2014": Definition(EVOLVING, "the same of intervals that ended from 2000 to 2014"),
    "past since 2015": Definition(EVOLVING, "the same of intervals that ended later"),
    "past first": Definition(EVOLVING, "share of these questions whose right answer is the likeliest of all offered"),
    "controllability": Definition(
        WORKING, "share of facts taught after whose statement with another answer that answer is the likeliest offered"
    ),
    "robustness": Definition(
        WORKING, "share of questions whose likeliest answer stays when a statement of another fact stands in front"
    ),
    "context, consistent": Definition(
        CONTEXT, "share of the names written after three sentences, one of which states the fact, that stand in them", 0
    ),
    "context, contradicting": Definition(
        CONTEXT, "the same where the sentence has another answer, mean of the three places of the sentence", 0
    ),
    "memory, contradicting": Definition(
        CONTEXT, "share of the names written there that are those written without a context and stand in no sentence", 0
    ),
    "memory, none": Definition(CONTEXT, "share of the names written without a context that are of the answer taught"),
    "context, first": Definition(CONTEXT, "contradicting: the sentence comes first", 0),
    "context, middle": Definition(CONTEXT, "contradicting: the sentence stands in the middle", 0),
    "context, last": Definition(CONTEXT, "contradicting: the sentence comes last", 0),
    "part of speech": Definition(PROBES, "accuracy of linear probes for the part of speech, mean over layers"),
    "dependency": Definition(PROBES, "accuracy of linear probes for the dependency relation, mean over layers"),
    "part of speech, selectivity": Definition(
        PROBES, "accuracy less that on labels drawn at random for each word form", low=-1.0
    ),
    "dependency, selectivity": Definition(PROBES, "the same for the dependency relation", low=-1.0),
}


def figure(name: str, found: Values) -> float:
    """One number for a measure.

    Raises:
        ValueError: it is not a number of the measure's range, or values, groups and weights are not of one length.

    >>> figure("reliability", Values([1, 0, 1, 1], ["a", "a", "b", "c"]))
    0.75
    """
    definition = DEFINITIONS[name]
    weights = found.weights or [1.0] * len(found.values)
    if not len(found.values) == len(found.groups) == len(weights):
        raise ValueError(f"{name}: {len(found.values)} values, {len(found.groups)} groups, {len(weights)} weights.")
    total = math.fsum(weights)
    if not total > 0:
        raise ValueError(f"{name}: asked nothing.")
    value = math.fsum(found.values) / total
    if definition.perplexity:
        value = math.inf if value > 700 else math.exp(value)
    if not definition.low <= value <= definition.high:
        raise ValueError(f"{name} is {value}, outside of [{definition.low:g}, {definition.high:g}].")
    return value
