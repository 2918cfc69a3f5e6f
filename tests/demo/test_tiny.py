"""The demo: a world that drifts as it says, and an experiment that runs from end to end."""

from __future__ import annotations

import io
import json
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from localopt.demo.tiny import Result, Size, run_demo
from localopt.demo.tiny.exam import examine
from localopt.demo.tiny.experiment import Outcome, experiment
from localopt.demo.tiny.language import as_batch, as_probes, learn_words, tiny_llama, word_tokenizer
from localopt.demo.tiny.memory import PeakMemory
from localopt.demo.tiny.methods import METHODS, adamw
from localopt.demo.tiny.output import write
from localopt.demo.tiny.training import train
from localopt.demo.tiny.world import RELATIONS, make_world
from localopt.errors import InputError
from localopt.tracing.layer_trace import LayerTrace

Quick = tuple[Path, str, list[Result]]
QUICK = Size(world=0.3, hidden=32, blocks=2, epochs=2, news_epochs=2, traced=16)
FILES = [
    "learning-forgetting.png",
    "results.json",
    "trace-keep.png",
    "trace-keep.safetensors",
    "trace-text.png",
    "trace-text.safetensors",
]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As the demo itself computes: matrices this small wait for a second thread more than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# -- the world --------------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_world_and_another_seed_another_one() -> None:
    assert make_world(seed=3) == make_world(seed=3)
    assert make_world(seed=3) != make_world(seed=4)


@pytest.mark.parametrize("seed", range(5))
def test_updated_facts_have_another_object_and_unchanged_ones_are_neither_updated_nor_new(seed: int) -> None:
    world = make_world(seed)
    for was, now in zip(world.outdated, world.updated, strict=True):
        assert (was.subject, was.relation) == (now.subject, now.relation)
        assert was.object != now.object
    asked_once = [(f.subject, f.relation.name) for f in world.updated + world.new + world.unchanged]
    assert len(asked_once) == len(set(asked_once)), "the new world says one thing about each subject and relation"


def test_new_facts_are_about_subjects_that_the_old_world_never_names() -> None:
    world = make_world(0)
    old_words = set(" ".join(world.history()).split())
    assert world.new
    assert not old_words & {fact.subject for fact in world.new}


def test_the_news_repeats_no_unchanged_fact() -> None:
    world = make_world(0)
    repeated = {sentence for fact in world.unchanged for sentence in fact.sentences()} & set(world.news())
    assert not repeated


def test_no_wording_of_a_question_occurs_in_a_training_text() -> None:
    world = make_world(0)
    text = "\n".join(world.history() + world.news())
    facts = world.outdated + world.updated + world.new + world.unchanged
    found = [prompt for fact in facts for prompt in fact.prompts(held_out=True) if prompt in text]
    assert not found


def test_every_word_of_a_question_is_learned_from_training_texts() -> None:
    world = make_world(0)
    words = set(" ".join(world.history()).split())
    questions = {p for f in world.outdated + world.unchanged for p in f.prompts(held_out=True)}
    assert not set(" ".join(questions).split()) - words


def test_no_two_relations_of_one_subject_share_a_phrasing() -> None:
    for subject in {relation.subject for relation in RELATIONS}:
        phrasings = [p for r in RELATIONS if r.subject == subject for p in r.trained + r.held_out]
        assert len(phrasings) == len(set(phrasings))


# -- the parts --------------------------------------------------------------------------------------------------------


def test_new_words_leave_the_known_embeddings_alone_and_are_spread_like_them() -> None:
    old, both = word_tokenizer(["a b c d e f g h"]), word_tokenizer(["a b c d e f g h", *"ijklmnopqrstuvwxyz"])
    torch.manual_seed(0)
    model = tiny_llama(old, hidden=32, blocks=1)
    known = model.model.embed_tokens.weight.detach().clone()
    learn_words(model, len(both))
    embeddings = model.model.embed_tokens.weight.detach()
    assert len(embeddings) == len(both)
    assert torch.equal(embeddings[: len(known)], known)
    assert embeddings[len(known) :].std().item() == pytest.approx(known.std().item(), rel=0.3)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_peak_memory_counts_a_storage_once_and_until_it_is_released() -> None:
    held = torch.zeros(100)
    with PeakMemory(alive=[held, held.view(10, 10)]) as memory:
        assert memory.peak == 400
        views = [torch.ones(50).view(5, 10)[:2] for _ in range(2)]  # two storages of 200 bytes, alive through views
        del views
        torch.ones(25)
    assert memory.peak == 800


def test_peak_memory_sees_gradients_and_optimizer_state_of_a_real_step() -> None:
    weight = torch.nn.Parameter(torch.ones(1000))
    optimizer = torch.optim.AdamW([weight], fused=True)
    with PeakMemory(alive=[weight]) as memory:
        weight.sum().backward()
        optimizer.step()
    assert 4 * 4000 <= memory.peak < 5 * 4000, "weight, gradient and two moments"


def test_a_tiny_llama_learns_facts_so_that_it_can_answer_in_other_words() -> None:
    world = make_world(seed=0, size=0.1)
    tokenizer = word_tokenizer(world.history() + world.news())
    torch.manual_seed(0)
    model = tiny_llama(tokenizer, hidden=48, blocks=2)
    questions = {"unchanged": as_probes(world.unchanged, True), "updated": as_probes(world.outdated, True)}
    questions["new"] = as_probes(world.new, True)
    before = examine(model, tokenizer, questions)
    data = as_batch(world.history(), tokenizer)
    effort = train(model, adamw(model, 5e-3), data, epochs=40, batch=16, seed=0, on_step=lambda: None)
    after = examine(model, tokenizer, questions)
    assert before.unchanged < 0.2
    assert after.unchanged > 0.8
    assert after.new < 0.5, "nobody told it"
    assert effort.share_updated == 1
    assert effort.steps == 40 * -(-len(world.history()) // 16)


# -- the whole --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Quick:
    """One small run: its folder, what it printed, and what it returned."""
    out = tmp_path_factory.mktemp("demo") / "out"
    printed = io.StringIO()
    state = torch.get_rng_state()
    results = run_demo(out, seed=1, console=Console(file=printed, width=80), size=QUICK)
    assert torch.equal(state, torch.get_rng_state()), "the demo leaves the caller's random numbers alone"
    return out, printed.getvalue(), results


def test_the_demo_ends_with_a_table_that_has_every_method_and_fits_80_columns(quick: Quick) -> None:
    _, printed, results = quick
    assert [result.method for result in results] == list(METHODS)
    for name in (*METHODS, "updated", "new", "unchanged", "loss", "peak"):
        assert name in printed
    assert "…" not in printed, "nothing is cut off"


def test_the_demo_writes_pictures_traces_and_the_numbers_of_the_table(quick: Quick) -> None:
    out, _, results = quick
    assert sorted(path.name for path in out.iterdir()) == FILES
    numbers = json.loads((out / "results.json").read_text())
    assert numbers["results"] == json.loads(json.dumps([asdict(result) for result in results]))
    for name in FILES:
        if name.endswith(".png"):
            assert (out / name).read_bytes().startswith(b"\x89PNG")
    trace = LayerTrace.load(out / "trace-text.safetensors")
    assert numbers["traces"]["text"]["relative_norms"] == pytest.approx(
        dict(zip(trace.layers, trace.relative_norms.tolist(), strict=True))
    )
    assert [path.name for path in out.parent.iterdir()] == ["out"], "no partial folder is left behind"


def test_frozen_layers_cost_less_memory_and_the_share_updated_is_that_of_the_trace(quick: Quick) -> None:
    out, _, results = quick
    effort = {result.method: result.effort for result in results}
    trained = set(json.loads((out / "results.json").read_text())["traces"]["text"]["trained"])
    assert effort["AdamW"].share_updated == effort["TGL+ALR (text)"].share_updated == 1
    assert 0 < effort["online"].share_updated < 1
    assert 0 < effort["TGL+FP (text)"].share_updated < 1
    assert trained
    assert effort["TGL+FP (text)"].peak_bytes < effort["AdamW"].peak_bytes


@pytest.fixture(scope="module")
def again() -> Outcome:
    return experiment(seed=1, size=QUICK)


def test_a_seed_gives_the_same_scores_again(quick: Quick, again: Outcome) -> None:
    _, _, results = quick
    assert [result.scores for result in again.results] == [result.scores for result in results]


@pytest.mark.parametrize("made", ["a file", "a folder with a file", "a folder in a folder that is not there"])
def test_an_unusable_folder_is_refused_before_any_work(tmp_path: Path, made: str) -> None:
    out = tmp_path / "out"
    if made == "a file":
        out.write_text("mine")
    elif made == "a folder with a file":
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    else:
        out = tmp_path / "no" / "out"
    before = sorted(tmp_path.rglob("*"))
    started = time.perf_counter()
    with pytest.raises(InputError, match="out"):
        run_demo(out, console=Console(file=io.StringIO()))
    assert time.perf_counter() - started < 2
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a POSIX timer")
def test_an_interrupted_demo_leaves_nothing_behind(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 1)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_demo(tmp_path / "out", console=Console(file=io.StringIO()))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not list(tmp_path.iterdir())


def test_results_that_cannot_be_written_whole_are_not_written_at_all(again: Outcome, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no runs"):  # found after the traces are written
        write(replace(again, results=[]), tmp_path / "out")
    assert not list(tmp_path.iterdir())
