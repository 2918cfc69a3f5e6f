"""A corpus and nothing else: layers are chosen, held near their start, and what was forgotten is measured."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from localopt import LocalizedOptimizer
from localopt.errors import InputError
from localopt.pretraining import auto
from localopt.pretraining.auto import OWN_TEXT, TRACE, own_samples
from localopt.pretraining.history import History
from localopt.pretraining.optimizers import RATE_TO_WEIGHTS, make_optimizer, rate, rate_by_rule
from localopt.pretraining.probes import encode_text, read_corpus
from localopt.pretraining.scoring import read_sets
from localopt.pretraining.settings import Settings
from localopt.pretraining.train import train
from localopt.tracing.layer_trace import LayerTrace
from localopt.tracing.samples import sample
from tests.pretraining.test_train import LAYERS, moved, weights
from tests.pretraining.test_train import TRACE as GIVEN
from tests.tiny_files import contents, write_inputs
from tests.tiny_lm import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
SETTINGS = Settings(epochs=2, batch_size=8, seq_len=16)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def run(inputs: Path, out: Path, settings: Settings = SETTINGS, **more: Any) -> tuple[LlamaForCausalLM, History]:
    model = AutoModelForCausalLM.from_pretrained(inputs / "model")
    corpus = more.pop("corpus", None) or read_corpus(inputs / "corpus.txt")
    return model, train(model, TOKENIZER, corpus, out, settings, keep_checkpoints=True, **more)


@pytest.fixture(scope="module")
def alone(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[LlamaForCausalLM, History, Path]:
    """A run on a corpus and nothing else."""
    out = tmp_path_factory.mktemp("alone") / "out"
    return *run(inputs, out), out


Alone = tuple[LlamaForCausalLM, History, Path]


def test_it_trains_the_layers_the_trace_chose_and_no_other(alone: Alone, inputs: Path) -> None:
    model, history, out = alone
    trace = LayerTrace.load(out / TRACE)
    chosen = {layer for layer, scale in trace.frozen_parameters().scales.items() if scale > 0}
    assert trace.holds_gains
    assert 0 < len(chosen) < len(LAYERS)
    assert set(history.trained_layers) == chosen
    assert moved(weights(AutoModelForCausalLM.from_pretrained(inputs / "model")), weights(model)) == chosen
    assert history.trained_parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_the_corpus_is_learned_and_the_models_own_text_scored(alone: Alone) -> None:
    history = alone[1]
    assert [list(entry["sets"]) for entry in history.scores] == [["corpus", "reference"]] * 3
    losses = [entry["sets"]["corpus"]["nll"] for entry in history.scores]
    assert losses[0] > losses[1] > losses[2]


def test_forgetting_is_measured_on_text_that_the_layers_were_not_chosen_by(alone: Alone, inputs: Path) -> None:
    _, _, out = alone
    start = AutoModelForCausalLM.from_pretrained(inputs / "model")
    samples = own_samples(start, SETTINGS.seed)
    assert LayerTrace.load(out / TRACE).metadata["samples"] == samples.metadata()
    traced, scored = sample(start, samples), sample(start, samples.held_out())
    lines = [json.loads(line) for line in (out / OWN_TEXT).read_text().splitlines()]
    assert [line["input_ids"] for line in lines] == [example["input_ids"].tolist() for example in scored]
    assert not {tuple(line["input_ids"]) for line in lines} & {tuple(e["input_ids"].tolist()) for e in traced}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_seed_scores_what_another_traces(seed: int) -> None:
    model = tiny_model(TOKENIZER)
    used = [own_samples(model, number) for number in range(3)]
    assert used[seed].held_out().seed not in {samples.seed for samples in used}


def test_a_reference_that_is_given_is_split_between_choosing_and_scoring(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    traced = auto.trace_layers

    def noted(model: Any, probe: Any, reference: Any, **more: Any) -> LayerTrace:
        seen["reference"] = [example["input_ids"].tolist() for example in reference]
        return traced(model, probe, reference, **more)

    monkeypatch.setattr(auto, "trace_layers", noted)
    text = inputs / "reference.txt"
    text.write_text("\n\n".join(f"The river runs through town number {n}, and on." for n in range(200)))
    sets = read_sets([f"news={inputs / 'facts.jsonl'}"], text)
    model = AutoModelForCausalLM.from_pretrained(inputs / "model")
    pieces = [e["input_ids"].tolist() for e in encode_text(read_corpus(text), TOKENIZER, 128)]
    history = train(
        model, TOKENIZER, read_corpus(inputs / "corpus.txt"), tmp_path / "out", replace(SETTINGS, epochs=1), sets=sets
    )
    assert len(pieces) > 4
    assert seen["reference"] == pieces[1::2]
    assert history.scores[0]["sets"]["reference"]["tokens"] == sum(len(piece) - 1 for piece in pieces[0::2])
    assert list(history.scores[0]["sets"]) == ["news", "reference"]
    assert not (tmp_path / "out" / OWN_TEXT).exists()


def test_a_trace_that_is_given_is_used(inputs: Path, tmp_path: Path) -> None:
    _, history = run(inputs, tmp_path / "out", replace(SETTINGS, epochs=1), trace=GIVEN)
    chosen = [layer for layer, scale in GIVEN.frozen_parameters().scales.items() if scale > 0]
    assert history.trained_layers == chosen
    assert not (tmp_path / "out" / TRACE).exists()


@pytest.mark.parametrize("left", ["history", "own text", "trace", "first epoch", "last epoch"])
def test_a_run_that_was_killed_goes_on_to_the_same_bits_and_traces_once(
    left: str, alone: Alone, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As kills at these moments leave the folder: the trace and the own text are read again, not made again."""
    model, history, whole = alone
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    shutil.rmtree(out / "model")
    moment = ["history", "own text", "trace", "first epoch", "last epoch"].index(left)
    if moment < 3:
        shutil.rmtree(out / "checkpoints")
        replace(history, scores=[], rate=0.0, trained_layers=[]).save(out / "history.json")
    if moment < 2:
        (out / TRACE).unlink()
    if moment < 1:
        (out / OWN_TEXT).unlink()
    if moment == 3:
        shutil.rmtree(out / "checkpoints" / "checkpoint-10")
    if moment >= 2:
        monkeypatch.setattr(auto, "trace_layers", lambda *_, **__: pytest.fail("traced once more"))
    if moment >= 1:
        monkeypatch.setattr(auto, "sample", lambda *_, **__: pytest.fail("written once more"))
    resumed, again = run(inputs, out, resume=True)
    assert not moved(weights(resumed), weights(model))
    assert again == history
    for name in (OWN_TEXT, "model/model.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_it_holds_weights_near_their_start(inputs: Path, tmp_path: Path) -> None:
    """Without the decay the same steps go farther, where they overshoot."""
    start = weights(AutoModelForCausalLM.from_pretrained(inputs / "model"))
    settings = replace(SETTINGS, lr=5e-2)
    held, _ = run(inputs, tmp_path / "held", settings, trace=GIVEN)
    loose, _ = run(inputs, tmp_path / "loose", replace(settings, anchor_decay=0.0), trace=GIVEN)
    near, far = (
        sum((weight - start[name]).norm().item() for name, weight in weights(model).items()) for model in (held, loose)
    )
    assert 0 < near < 0.95 * far


def test_the_optimizer_is_adamw_and_the_selective_decay() -> None:
    held = make_optimizer(tiny_model(TOKENIZER), SETTINGS, GIVEN)
    assert isinstance(held, LocalizedOptimizer)
    assert (held.anchor_decay.strength, held.anchor_decay.rule) == (1.0, "selective")
    assert not isinstance(
        make_optimizer(tiny_model(TOKENIZER), replace(SETTINGS, anchor_decay=0), GIVEN), LocalizedOptimizer
    )
    full = make_optimizer(tiny_model(TOKENIZER), Settings("full", anchor_decay=0.5), None)
    assert isinstance(full, LocalizedOptimizer)
    assert full.anchor_decay.strength == 0.5


# -- the rate ----------------------------------------------------------------------------------------------------------


def test_the_rate_is_a_share_of_the_weights_that_train() -> None:
    model = tiny_model(TOKENIZER)
    GIVEN.freeze(model)
    trained = torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad and p.dim() > 1])
    found = rate(model, SETTINGS)
    assert found == pytest.approx(RATE_TO_WEIGHTS * trained.square().mean().sqrt().item(), rel=0.05)
    assert rate(model, replace(SETTINGS, lr=1e-6)) == 1e-6
    assert rate(model, Settings("full")) == 5e-5


def test_weights_twice_as_large_train_at_twice_the_rate() -> None:
    matrix, vector = torch.randn(64, 64), torch.ones(64)
    assert rate_by_rule([2 * matrix, vector]) == pytest.approx(2 * rate_by_rule([matrix, 5 * vector]), rel=0.06)


def test_on_the_layers_chosen_for_the_real_model_it_is_the_rate_found_there() -> None:
    """0.193 is the root mean square of the MLPs of blocks 1, 3 to 8 and 23 to 27 of SmolLM2-135M."""
    assert rate_by_rule([torch.full((4, 4), 0.193)]) == 2.4e-3


def test_where_only_vectors_train_their_size_decides() -> None:
    assert rate_by_rule([torch.full((8,), 0.5)]) == pytest.approx(RATE_TO_WEIGHTS * 0.5)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_weights_that_give_no_rate_are_refused(value: float) -> None:
    with pytest.raises(InputError, match="which gives no rate: set --lr"):
        rate_by_rule([torch.full((2, 2), value)])


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_model_without_a_begin_token_needs_a_reference(inputs: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(inputs / "model")
    model.config.bos_token_id = model.generation_config.bos_token_id = None
    corpus = read_corpus(inputs / "corpus.txt")
    for settings in (SETTINGS, Settings("full", budget=0.1, seq_len=16)):
        with pytest.raises(InputError, match=r"no beginning-of-text token.*: --reference FILE"):
            train(model, TOKENIZER, corpus, tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()
    sets = read_sets([], inputs / "corpus.txt")
    train(model, TOKENIZER, corpus, tmp_path / "out", replace(SETTINGS, epochs=1), sets=sets)


def test_a_corpus_too_short_for_one_sequence_is_refused(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fewer than 2 tokens"):
        run(inputs, tmp_path / "out", corpus=[""])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"anchor_decay": -0.1}, r"a strength from 0 \(none\) to 1, not -0.1"),
        ({"anchor_decay": 1.5}, r"a strength from 0 \(none\) to 1, not 1.5"),
        ({"budget": 0.0}, "budget must be a number of nats a token above 0, not 0.0: leave it out"),
        ({"budget": -0.05}, "above 0, not -0.05"),
        ({"budget": float("nan")}, "above 0, not nan"),
    ],
)
def test_settings_that_cannot_be_are_refused(bad: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Settings(**bad)  # type: ignore[arg-type]


# -- the forgetting budget ---------------------------------------------------------------------------------------------

FULL = Settings("full", lr=2e-2, epochs=2, batch_size=8, seq_len=16)


@pytest.fixture(scope="module")
def ended(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[LlamaForCausalLM, History, Path]:
    """A run that forgets much more than its budget."""
    out = tmp_path_factory.mktemp("ended") / "out"
    return *run(inputs, out, replace(FULL, budget=0.1)), out


def test_a_budget_ends_within_it_and_keeps_both_ends(ended: Alone, inputs: Path, tmp_path: Path) -> None:
    model, history, out = ended
    assert history.budget is not None
    share, path = history.budget["share"], history.budget["path"]
    rises = {e["share"]: e["sets"]["reference"]["nll"] - path[0]["sets"]["reference"]["nll"] for e in path}
    assert 0 < share < 1
    assert rises[share] <= 0.1 < rises[1.0]
    assert list(rises) == sorted(rises)
    unbound, _ = run(inputs, tmp_path / "unbound", replace(FULL))
    end, kept = (AutoModelForCausalLM.from_pretrained(out / name) for name in ("model-end", "model"))
    assert not moved(weights(end), weights(unbound))  # a budget changes nothing of the training itself
    assert not moved(weights(kept), weights(model))
    start = weights(AutoModelForCausalLM.from_pretrained(inputs / "model"))
    for name, weight in weights(kept).items():
        torch.testing.assert_close(weight, torch.lerp(start[name], weights(end)[name], share))


def test_a_run_killed_before_its_model_was_saved_ends_within_the_budget_too(
    ended: Alone, inputs: Path, tmp_path: Path
) -> None:
    model, history, whole = ended
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    shutil.rmtree(out / "model")
    resumed, again = run(inputs, out, replace(FULL, budget=0.1), resume=True)
    assert again == history
    assert not moved(weights(resumed), weights(model))
    assert contents(out / "model") == contents(whole / "model")


def test_a_budget_the_end_keeps_to_leaves_one_model(inputs: Path, tmp_path: Path) -> None:
    _, history = run(inputs, tmp_path / "out", replace(FULL, epochs=1, budget=1e6))
    assert history.budget is not None
    assert history.budget["share"] == 1
    assert not (tmp_path / "out" / "model-end").exists()


def test_a_budget_that_nothing_holds_ends_at_the_start(inputs: Path, tmp_path: Path) -> None:
    model, history = run(inputs, tmp_path / "out", replace(FULL, epochs=1, budget=1e-7))
    assert history.budget is not None
    assert history.budget["share"] == 0
    assert not moved(weights(model), weights(AutoModelForCausalLM.from_pretrained(inputs / "model")))
    assert (tmp_path / "out" / "model-end").exists()
