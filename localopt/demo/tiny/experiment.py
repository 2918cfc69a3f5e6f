"""The experiment: a model learns a world, the world changes, and five ways of keeping up are compared."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from random import Random
from typing import TypeVar

import torch
from transformers import LlamaForCausalLM

from localopt.demo.progress import Progress
from localopt.demo.tiny.exam import Scores, examine
from localopt.demo.tiny.language import as_batch, as_probes, learn_words, tiny_llama, word_tokenizer
from localopt.demo.tiny.methods import METHODS, Traces, adamw
from localopt.demo.tiny.training import Data, Effort, step_count, train
from localopt.demo.tiny.world import World, make_world
from localopt.pretraining.evaluate import evaluate
from localopt.pretraining.probes import encode
from localopt.tracing.trace import trace_layers

T = TypeVar("T")
# Matrices this small hardly gain from a second thread, and on a busy machine two threads wait for each other: there a
# step took twice to six times as long.
THREADS = 1
WAY = (0.25, 0.5, 0.75)  # stops on the straight way from the weights before the news to those after


@dataclass(frozen=True)
class Size:
    """How big the experiment is; the default fits into a minute.

    The epochs and the learning rate for the news were chosen with AdamW alone, on a world twice as large, as the
    mildest of those tried that have it answer nine in ten questions about updated facts (it does here too); every
    method gets the same.
    """

    world: float = 0.5
    hidden: int = 64
    blocks: int = 4
    epochs: int = 26
    rate: float = 5e-3
    news_epochs: int = 10
    news_rate: float = 7e-4
    batch: int = 32
    traced: int = 256


@dataclass(frozen=True)
class Result:
    """How one method ended.

    ``way``: the scores of the model :data:`WAY` of the way from its old weights to its new ones.
    """

    method: str
    scores: Scores
    effort: Effort
    way: tuple[Scores, ...]


@dataclass(frozen=True)
class Outcome:
    """Everything that came out. ``known``: share of the old world's facts that the model knew before the news."""

    seed: int
    size: Size
    world: World
    parameters: int
    known: float
    before: Scores
    traces: Traces
    results: list[Result]


def experiment(seed: int, size: Size) -> Outcome:
    """Run it, with progress on standard error. The caller's random state and thread count come back as they were."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        with torch.random.fork_rng(devices=[]), Progress() as progress:
            torch.manual_seed(seed)
            return _experiment(seed, size, progress)
    finally:
        torch.set_num_threads(threads)


def _experiment(seed: int, size: Size, progress: Progress) -> Outcome:
    world = make_world(seed, size.world)
    old_tokenizer, tokenizer = word_tokenizer(world.history()), word_tokenizer(world.history() + world.news())
    history, news = as_batch(world.history(), tokenizer), as_batch(world.news(), tokenizer)
    # Of the facts that stay, one half is what a trace may know of as "facts to keep"; the exam asks about the other.
    keep, others = world.unchanged[::2], world.unchanged[1::2]
    asked = {"updated": world.updated, "new": world.new, "unchanged": others}
    questions = {name: as_probes(facts, held_out=True) for name, facts in asked.items()}
    probe = _some(encode(as_probes(world.updated, held_out=False), tokenizer), size.traced)
    text = _some(_rows(history), size.traced)
    kept = _some(encode(as_probes(keep, held_out=False), tokenizer), size.traced)

    def learn(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, data: Data, epochs: int) -> Effort:
        return train(model, optimizer, data, epochs=epochs, batch=size.batch, seed=seed, on_step=progress.advance)

    training = step_count(history, size.epochs, size.batch)
    training += len(METHODS) * step_count(news, size.news_epochs, size.batch)
    progress.expect(training + 2 * len(probe) + len(text) + len(kept))
    progress.stage("learning the old world")
    old = tiny_llama(old_tokenizer, size.hidden, size.blocks)
    learn(old, adamw(old, size.rate), history, size.epochs)
    learn_words(old, len(tokenizer))
    known = evaluate(old, tokenizer, as_probes(world.outdated + world.unchanged, held_out=True), batch_size=256)
    before = examine(old, tokenizer, questions)

    progress.stage("tracing")
    against_text = trace_layers(old, progress.over(probe), progress.over(text))
    against_keep = trace_layers(old, progress.over(probe), progress.over(kept))
    traces = Traces(against_text, against_keep)

    results = []
    for name, make_optimizer in METHODS.items():
        progress.stage(f"reading the news: {name}")
        model = copy.deepcopy(old)
        effort = learn(model, make_optimizer(model, traces, size.news_rate), news, size.news_epochs)
        scores = examine(model, tokenizer, questions)
        way = tuple(examine(_between(old, model, share), tokenizer, questions) for share in WAY)
        results.append(Result(name, scores, effort, way))
    parameters = sum(parameter.numel() for parameter in old.parameters())
    return Outcome(seed, size, world, parameters, known.ranked_first or 0.0, before, traces, results)


def _some(items: list[T], count: int) -> list[T]:
    """At most ``count`` of the items, drawn at random but always the same."""
    return Random(0).sample(items, min(count, len(items)))


def _rows(data: Data) -> list[Data]:
    return [{name: tensor[row] for name, tensor in data.items()} for row in range(len(data["input_ids"]))]


@torch.no_grad()
def _between(old: LlamaForCausalLM, new: LlamaForCausalLM, share: float) -> LlamaForCausalLM:
    """The model whose weights lie ``share`` of the straight way from ``old`` to ``new``."""
    between = copy.deepcopy(old)
    for weight, target in zip(between.parameters(), new.parameters(), strict=True):
        weight.lerp_(target, share)
    return between
