"""Continued pretraining: each method, its scores, its files, and going on after a kill."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from localopt import LocalizedOptimizer
from localopt.errors import InputError
from localopt.layers import partition
from localopt.policies import AboveMean, Fixed
from localopt.policies.compose import RelativeTo
from localopt.pretraining import trainer
from localopt.pretraining.checkpoints import last_whole, newest, seal
from localopt.pretraining.history import History
from localopt.pretraining.lock import LOCK
from localopt.pretraining.notes import NOTES, load_notes
from localopt.pretraining.optimizers import make_optimizer
from localopt.pretraining.probes import read_corpus
from localopt.pretraining.scoring import as_numbers, read_sets, score_sets
from localopt.pretraining.settings import METHODS, Settings
from localopt.pretraining.train import train
from localopt.tracing.layer_trace import LayerTrace
from tests.tiny_files import contents, full_disk, write_inputs
from tests.tiny_lm import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
SETTINGS = Settings("full", lr=3e-3, epochs=2, batch_size=8, seq_len=16)
STEPS = 5  # an epoch, with these settings on this corpus
LAYERS = tuple(dict.fromkeys(partition(name for name, _ in tiny_model(TOKENIZER).named_parameters()).values()))
TRACE = LayerTrace(LAYERS, torch.arange(1.0, 1.0 + len(LAYERS)), torch.ones(len(LAYERS)))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order, in this process and in others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(inputs: Path, out: Path, settings: Settings = SETTINGS, **more: Any) -> tuple[LlamaForCausalLM, History]:
    model = AutoModelForCausalLM.from_pretrained(inputs / "model")
    corpus = more.pop("corpus", None) or read_corpus(inputs / "corpus.txt")
    sets = more.pop("sets", None) or read_sets([f"news={inputs / 'facts.jsonl'}"], inputs / "corpus.txt")
    more = {"keep_checkpoints": True, **more}
    return model, train(model, TOKENIZER, corpus, out, settings, sets=sets, **more)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    layer_of = partition(before)
    return {layer_of[name] for name in before if not torch.equal(before[name], after[name])}


@pytest.fixture(scope="module")
def runs(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[LlamaForCausalLM, History, Path]]:
    """One run of each method."""
    folder, done = tmp_path_factory.mktemp("runs"), {}
    for method in METHODS:
        trace = None if method == "full" else TRACE
        done[method] = *run(inputs, folder / method, replace(SETTINGS, method=method), trace=trace), folder / method
    return done


Runs = dict[str, tuple[LlamaForCausalLM, History, Path]]


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_on_the_corpus_falls(method: str, runs: Runs) -> None:
    history = runs[method][1]
    losses = [entry["sets"]["reference"]["nll"] for entry in history.scores]
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_scored_before_training_and_after_every_epoch(method: str, runs: Runs) -> None:
    history = runs[method][1]
    assert [(entry["epoch"], entry["step"]) for entry in history.scores] == [(0, 0), (1, STEPS), (2, 2 * STEPS)]
    assert [list(entry["sets"]) for entry in history.scores] == [["news", "reference"]] * 3


@pytest.mark.parametrize("method", METHODS)
def test_the_saved_model_is_the_trained_one_and_transformers_loads_it(method: str, runs: Runs) -> None:
    model, _, out = runs[method]
    saved = AutoModelForCausalLM.from_pretrained(out / "model")
    assert not moved(weights(model), weights(saved))
    assert saved.dtype == torch.float32
    assert AutoTokenizer.from_pretrained(out / "model").get_vocab() == TOKENIZER.get_vocab()


@pytest.mark.parametrize("method", METHODS)
def test_history_json_is_what_train_returns(method: str, runs: Runs) -> None:
    _, history, out = runs[method]
    assert History.load(out / "history.json") == history
    assert sorted(path.name for path in out.iterdir()) == ["checkpoints", "history.json", "model"]


def test_full_trains_every_layer(inputs: Path, runs: Runs) -> None:
    model, history, _ = runs["full"]
    assert moved(weights(AutoModelForCausalLM.from_pretrained(inputs / "model")), weights(model)) == set(LAYERS)
    assert history.trained_parameters == history.all_parameters == sum(p.numel() for p in model.parameters())


def test_freeze_does_not_change_a_bit_outside_the_traced_layers(inputs: Path, runs: Runs) -> None:
    model, history, _ = runs["freeze"]
    chosen = {layer for layer, scale in TRACE.frozen_parameters().scales.items() if scale > 0}
    assert 0 < len(chosen) < len(LAYERS)
    assert moved(weights(AutoModelForCausalLM.from_pretrained(inputs / "model")), weights(model)) == chosen
    assert history.trained_parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert 0 < history.trained_parameters < history.all_parameters


def test_rescale_steps_each_layer_at_its_own_rate(inputs: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(inputs / "model")
    optimizer = make_optimizer(model, Settings("rescale", lr=1e-3), TRACE)
    assert isinstance(optimizer, LocalizedOptimizer)
    assert optimizer.policy == Fixed(TRACE.adaptive_learning_rates().scales)
    before = weights(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    layer_of, after = partition(before), weights(model)
    for name in before:
        if before[name].dim() == 1:  # no weight decay: Adam's first step is the rate itself
            change = (before[name] - after[name]).mean().item()
            assert change == pytest.approx(1e-3 * TRACE.adaptive_learning_rates().scales[layer_of[name]], rel=1e-3)


def test_rescale_trains_every_layer(inputs: Path, runs: Runs) -> None:
    model, history, _ = runs["rescale"]
    assert moved(weights(AutoModelForCausalLM.from_pretrained(inputs / "model")), weights(model)) == set(LAYERS)
    assert history.scores[-1]["updated_layers"] == list(LAYERS)


def test_online_says_which_layers_the_last_step_of_an_epoch_changed(runs: Runs) -> None:
    history = runs["online"][1]
    assert "updated_layers" not in history.scores[0]
    for entry in history.scores[1:]:
        assert set(entry["updated_layers"]) < set(LAYERS)
        assert 0 < entry["share_updated"] < 1


def test_online_looks_at_the_norms_relative_to_a_trace_if_there_is_one() -> None:
    model = tiny_model(TOKENIZER)
    plain = make_optimizer(model, Settings("online"), None)
    relative = make_optimizer(model, Settings("online"), TRACE)
    assert isinstance(plain, LocalizedOptimizer)
    assert plain.policy == AboveMean()
    assert isinstance(relative, LocalizedOptimizer)
    assert isinstance(relative.policy, RelativeTo)
    assert relative.policy.trace is TRACE


def test_weight_decay_is_on_matrices_only() -> None:
    optimizer = make_optimizer(tiny_model(TOKENIZER), SETTINGS, None)
    decay = {p.dim() > 1: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay[True] > 0
    assert decay[False] == 0


def test_a_trace_of_whole_blocks_is_used_as_such() -> None:
    model = tiny_model(TOKENIZER)
    blocks = tuple(dict.fromkeys(partition((name for name, _ in model.named_parameters()), "block").values()))
    norms = torch.arange(1.0, 1.0 + len(blocks))
    trace = LayerTrace(blocks, norms, torch.ones(len(blocks)), {"partition": "block"})
    for method in ("rescale", "online"):
        optimizer = make_optimizer(model, Settings(method), trace)
        assert isinstance(optimizer, LocalizedOptimizer)
        assert optimizer.layers == "block"


def test_the_same_seed_gives_the_same_model_and_another_seed_another(inputs: Path, runs: Runs, tmp_path: Path) -> None:
    torch.manual_seed(123)  # whatever happened before
    random.seed(123)
    again, history = run(inputs, tmp_path / "again")
    assert not moved(weights(runs["full"][0]), weights(again))
    assert history == runs["full"][1]
    other, _ = run(inputs, tmp_path / "other", replace(SETTINGS, seed=1))
    assert moved(weights(other), weights(again)) == set(LAYERS)


def test_bf16_keeps_the_weights_in_float32(inputs: Path, runs: Runs, tmp_path: Path) -> None:
    model, history = run(inputs, tmp_path / "out", replace(SETTINGS, bf16=True))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert moved(weights(model), weights(runs["full"][0])) == set(LAYERS)
    assert history.scores[-1]["sets"]["reference"]["nll"] < history.scores[0]["sets"]["reference"]["nll"]


def test_under_bf16_the_scores_before_training_are_taken_as_those_after(inputs: Path, tmp_path: Path) -> None:
    _, history = run(inputs, tmp_path / "out", replace(SETTINGS, bf16=True, lr=1e-30, epochs=1))
    before, after = (entry["sets"]["news"]["nll"] for entry in history.scores)
    assert before == after


def test_a_run_without_sets_trains_all_the_same(inputs: Path, runs: Runs, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(inputs / "model")
    history = train(model, TOKENIZER, read_corpus(inputs / "corpus.txt"), tmp_path / "out", SETTINGS)
    assert not moved(weights(model), weights(runs["full"][0]))
    assert [entry["sets"] for entry in history.scores] == [{}, {}, {}]


def test_a_run_that_diverges_leaves_a_history_that_any_json_reader_reads(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the run has diverged"):
        run(inputs, tmp_path / "out", replace(SETTINGS, lr=1e30, epochs=3))
    text = (tmp_path / "out" / "history.json").read_text()
    scores = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))["scores"]
    assert all(score["nll"] > 0 for entry in scores for score in entry["sets"].values())


def test_a_model_that_gives_no_numbers_is_scored_as_none(inputs: Path) -> None:
    model = tiny_model(TOKENIZER)
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    scores = as_numbers(score_sets(model, TOKENIZER, read_sets([f"news={inputs / 'facts.jsonl'}"], None)))
    assert scores["news"]["nll"] is None
    json.dumps(scores, allow_nan=False)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"method": "lora"}, "one of auto, full, freeze, rescale, online, not 'lora'"),
        ({"lr": 0.0}, "above 0, not 0.0"),
        ({"lr": -1e-4}, "above 0, not -0.0001"),
        ({"lr": float("nan")}, "above 0, not nan"),
        ({"lr": float("inf")}, "above 0, not inf"),
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"seq_len": 1}, "seq_len must be at least 2, not 1"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
    ],
)
def test_bad_settings_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Settings(**bad)


@pytest.mark.parametrize(
    ("method", "trace", "message"),
    [
        ("freeze", None, '"freeze" needs a trace'),
        ("rescale", None, '"rescale" needs a trace'),
        ("full", TRACE, '"full" trains every layer and has no use for a trace'),
        ("freeze", LayerTrace(LAYERS[1:], torch.ones(len(LAYERS) - 1), torch.ones(len(LAYERS) - 1)), LAYERS[0]),
        ("rescale", LayerTrace(("h.0.mlp",), torch.ones(1), torch.ones(1)), "h.0.mlp"),
        ("online", LayerTrace(("h.0.mlp",), torch.ones(1), torch.ones(1)), "h.0.mlp"),
    ],
)
def test_a_trace_that_does_not_fit_is_refused(
    method: str, trace: LayerTrace | None, message: str, inputs: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run(inputs, tmp_path / "out", replace(SETTINGS, method=method), trace=trace)
    assert not (tmp_path / "out").exists()


def test_sequences_longer_than_the_model_reads_are_refused(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="reads at most 128 tokens at once, not 129: set --seq-len 128"):
        run(inputs, tmp_path / "out", replace(SETTINGS, seq_len=129))
    assert not (tmp_path / "out").exists()


def test_a_probe_that_cannot_be_scored_is_refused_before_anything_is_written(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": "The", "answer": "Westhaven " * 200}))
    with pytest.raises(InputError, match=r"long\.jsonl:1: the span and the token before it take"):
        run(inputs, tmp_path / "out", sets=read_sets([str(tmp_path / "long.jsonl")], None))
    assert not (tmp_path / "out").exists()


def test_a_folder_with_anything_in_it_is_refused_and_left_alone(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for resume, remedy in ((False, "add --resume"), (True, "name a new folder")):
        with pytest.raises(InputError, match=f"exists and is not empty: .*{remedy}"):
            run(inputs, tmp_path, resume=resume)
    assert contents(tmp_path) == {"thesis.txt": b"mine"}


def test_an_empty_folder_will_do(inputs: Path, tmp_path: Path) -> None:
    run(inputs, tmp_path, replace(SETTINGS, epochs=1))
    assert (tmp_path / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("room", [20_000, 150_000], ids=["the model", "the optimizer"])
def test_a_disk_that_fills_up_is_one_message_and_leaves_no_half_checkpoint(
    room: int, inputs: Path, tmp_path: Path
) -> None:
    sizes = {path.name: path.stat().st_size for path in (inputs / "model").iterdir()}
    assert 20_000 < sizes["model.safetensors"] < 150_000
    with full_disk(room), pytest.raises(InputError, match="checkpoints: no checkpoint can be written there") as error:
        run(inputs, tmp_path / "out", replace(SETTINGS, method="online"))
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out" / "checkpoints").iterdir())
    resumed, _ = run(inputs, tmp_path / "out", replace(SETTINGS, method="online"), resume=True)
    assert not moved(weights(resumed), weights(AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")))


# -- going on ----------------------------------------------------------------------------------------------------------


KILLED = Settings("online", lr=3e-3, epochs=15, batch_size=8, seq_len=16)
SCRIPT = """
import sys, torch
torch.set_num_threads(1)
import localopt.pretraining.trainer
localopt.pretraining.trainer.SAVE_EVERY = 3
from localopt.cli import main
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def killed(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was ended by kill -9 while it trained, some epochs after it began."""
    out = tmp_path_factory.mktemp("killed") / "out"
    options = {"--corpus": inputs / "corpus.txt", "--out": out, "--probe": f"news={inputs / 'facts.jsonl'}"}
    options |= {"--reference": inputs / "corpus.txt", "--method": KILLED.method, "--lr": KILLED.lr}
    options |= {"--epochs": KILLED.epochs, "--batch-size": KILLED.batch_size, "--seq-len": KILLED.seq_len}
    arguments = [str(word) for pair in options.items() for word in pair]
    command = [sys.executable, "-c", SCRIPT, "train", str(inputs / "model"), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        checkpoint = out / "checkpoints" / "checkpoint-18" / "trainer_state.json"
        if checkpoint.exists():
            break
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()
    assert not (out / "model").exists()
    return out


def copy_of(killed: Path, folder: Path) -> Path:
    subprocess.run(["cp", "-r", killed, folder / "out"], check=True)
    return folder / "out"


def but_lock(killed: Path) -> dict[str, bytes]:
    """What a killed run left, without its lock, which the next one takes over."""
    return {name: data for name, data in contents(killed).items() if name != LOCK}


def test_a_killed_run_goes_on_bit_for_bit(
    killed: Path, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "SAVE_EVERY", 50)  # how often a run saves changes nothing
    uninterrupted, expected = run(inputs, tmp_path / "uninterrupted", KILLED)
    out = copy_of(killed, tmp_path)
    before = History.load(out / "history.json").scores
    resumed, history = run(inputs, out, KILLED, resume=True)
    assert 1 < len(before) < len(history.scores) == KILLED.epochs + 1
    assert history == expected
    assert not moved(weights(resumed), weights(uninterrupted))
    assert not moved(weights(resumed), weights(AutoModelForCausalLM.from_pretrained(out / "model")))


def test_a_finished_run_is_not_resumed(inputs: Path, runs: Runs) -> None:
    _, _, out = runs["full"]
    before = contents(out)
    with pytest.raises(InputError, match="this run is finished, its model is in"):
        run(inputs, out, resume=True)
    assert contents(out) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 1e-3, "seed": 7}, r"started with lr 0\.003, not 0\.001; seed 0, not 7: resume it as it was"),
        ({"method": "full"}, "started with method online, not full"),
    ],
)
def test_a_run_is_not_resumed_with_other_settings(
    change: dict[str, Any], message: str, killed: Path, inputs: Path
) -> None:
    before = but_lock(killed)
    with pytest.raises(InputError, match=message):
        run(inputs, killed, replace(KILLED, **change), resume=True)
    assert but_lock(killed) == before


def test_a_run_is_not_resumed_on_other_input(killed: Path, inputs: Path) -> None:
    before = but_lock(killed)
    with pytest.raises(InputError, match="started with another corpus"):
        run(inputs, killed, KILLED, resume=True, corpus=["Something else entirely."])
    with pytest.raises(InputError, match="trace on one side only"):
        run(inputs, killed, KILLED, resume=True, trace=TRACE)
    with pytest.raises(InputError, match="set reference on one side only"):
        run(inputs, killed, KILLED, resume=True, sets=read_sets([f"news={inputs / 'facts.jsonl'}"], None))
    assert but_lock(killed) == before


def test_a_run_is_not_resumed_with_another_model(killed: Path, inputs: Path) -> None:
    with pytest.raises(InputError, match="started with another model"):
        train(
            tiny_model(TOKENIZER, seed=1),
            TOKENIZER,
            read_corpus(inputs / "corpus.txt"),
            killed,
            KILLED,
            sets=read_sets([f"news={inputs / 'facts.jsonl'}"], inputs / "corpus.txt"),
            resume=True,
        )


def test_resume_without_a_run_begins_one(inputs: Path, runs: Runs, tmp_path: Path) -> None:
    model, history = run(inputs, tmp_path / "out", resume=True)
    assert history == runs["full"][1]
    assert not moved(weights(model), weights(runs["full"][0]))


def test_a_run_killed_before_its_first_checkpoint_begins_again(inputs: Path, runs: Runs, tmp_path: Path) -> None:
    started = History(runs["full"][1].settings, runs["full"][1].inputs, runs["full"][1].scores[:1])
    started.save(tmp_path / "out" / "history.json")
    model, history = run(inputs, tmp_path / "out", resume=True)
    assert history == runs["full"][1]
    assert not moved(weights(model), weights(runs["full"][0]))


def test_a_run_killed_between_its_last_checkpoint_and_its_model_only_saves_it(
    inputs: Path, runs: Runs, tmp_path: Path
) -> None:
    out = copy_of(runs["online"][2], tmp_path)
    subprocess.run(["mv", out / "model", out / ".model.partial"], check=True)
    _, history = run(inputs, out, replace(SETTINGS, method="online"), trace=TRACE, resume=True)
    assert history == runs["online"][1]
    assert contents(out / "model") == contents(runs["online"][2] / "model")
    assert not (out / ".model.partial").exists()


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_the_last_two_checkpoints_are_kept(killed: Path, runs: Runs) -> None:
    kept = sorted(path.name for path in (runs["full"][2] / "checkpoints").iterdir())
    assert kept == ["checkpoint-10", "checkpoint-5"]


def test_a_checkpoint_that_was_not_written_to_its_end_is_removed_and_an_older_one_taken(tmp_path: Path) -> None:
    for step in (90, 100, 110, 120):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
        if step <= 100:
            seal(folder, processes=1)
    (tmp_path / "checkpoint-120" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-best").mkdir()  # not Trainer's: none of our business
    assert last_whole(tmp_path).path == tmp_path / "checkpoint-100"
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-90", "checkpoint-100", "checkpoint-best"}


def test_there_may_be_no_checkpoint(tmp_path: Path) -> None:
    assert last_whole(tmp_path / "none").path is None


def test_a_half_written_checkpoint_does_not_change_the_result(inputs: Path, runs: Runs, tmp_path: Path) -> None:
    out = copy_of(runs["online"][2], tmp_path)
    subprocess.run(
        ["rm", "-r", out / "model", out / "checkpoints" / "checkpoint-10" / "trainer_state.json"], check=True
    )
    model, history = run(inputs, out, replace(SETTINGS, method="online"), trace=TRACE, resume=True)
    assert history == runs["online"][1]
    assert not moved(weights(model), weights(runs["online"][0]))
    last, whole = (newest(folder / "checkpoints") for folder in (out, runs["online"][2]))
    assert last is not None
    assert whole is not None
    assert contents(last)[NOTES] == contents(whole)[NOTES]


def test_a_checkpoint_holds_what_every_step_did_to_every_layer(runs: Runs, tmp_path: Path) -> None:
    last = newest(runs["online"][2] / "checkpoints")
    assert last is not None
    assert last.name == "checkpoint-10"
    noted = load_notes(last)
    assert noted is not None
    assert noted.names == LAYERS
    assert noted.steps == list(range(1, 11))
    updated = [name for name, scale in zip(noted.names, noted.scales[-1].tolist(), strict=True) if scale > 0]
    assert updated == runs["online"][1].scores[-1]["updated_layers"]
    assert (noted.norms > 0).all()
    full = newest(runs["full"][2] / "checkpoints")  # the bare optimizer notes nothing
    assert full is not None
    assert load_notes(full) is None
    (tmp_path / NOTES).write_bytes((last / NOTES).read_bytes()[:-9])
    with pytest.raises(InputError, match=r"is not what a run notes of its layers \(.*\): remove the checkpoint"):
        load_notes(tmp_path)
