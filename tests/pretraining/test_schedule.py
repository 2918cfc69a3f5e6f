"""How long a run is, and at which rate its steps are: short ones too."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from localopt.pretraining import trainer
from localopt.pretraining.announce import plan
from localopt.pretraining.probes import read_corpus
from localopt.pretraining.settings import METHODS, Settings, rate_share
from localopt.pretraining.train import train
from tests.pretraining.test_train import TRACE, moved, weights
from tests.tiny_files import write_inputs
from tests.tiny_lm import SENTENCES, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_one_step_trains(method: str, inputs: Path, tmp_path: Path) -> None:
    before = AutoModelForCausalLM.from_pretrained(inputs / "model")
    model = AutoModelForCausalLM.from_pretrained(inputs / "model")
    settings = Settings(method, lr=1e-3, epochs=1, seq_len=64)
    trace = TRACE if method in ("freeze", "rescale") else None
    history = train(model, TOKENIZER, SENTENCES, tmp_path / "out", settings, trace=trace)
    assert history.scores[-1]["step"] == 1
    assert moved(weights(before), weights(AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")))


@pytest.mark.parametrize("epochs", [1, 3, 6])
def test_every_step_of_a_run_is_at_a_rate_above_zero_and_one_at_the_peak(
    epochs: int, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []

    class Noted(TrainerCallback):
        def on_pre_optimizer_step(self, args: object, state: object, control: object, **more: object) -> None:
            optimizer = more["optimizer"]
            assert isinstance(optimizer, torch.optim.Optimizer)
            rates.append(optimizer.param_groups[0]["lr"])

    made = trainer._Trainer.__init__
    monkeypatch.setattr(
        trainer._Trainer,
        "__init__",
        lambda self, *given, callbacks, **more: made(self, *given, callbacks=[*callbacks, Noted()], **more),
    )
    model = AutoModelForCausalLM.from_pretrained(inputs / "model")
    settings = Settings("full", lr=2.0**-10, epochs=epochs, seq_len=16)
    train(model, TOKENIZER, read_corpus(inputs / "corpus.txt"), tmp_path / "out", settings)
    assert len(rates) == epochs * 5
    assert min(rates) > 0
    assert max(rates) == 2.0**-10
    assert rates == sorted(rates, reverse=True) or epochs * 5 >= 20


@pytest.mark.parametrize("steps", [1, 2, 19, 20, 39, 40, 100, 1000])
def test_the_rate_climbs_over_a_twentieth_of_the_steps_and_falls_after_that(steps: int) -> None:
    rates = [rate_share(step, steps) for step in range(steps)]
    peak = rates.index(1.0)
    assert peak == steps // 20
    assert all(before < after for before, after in pairwise(rates[: peak + 1]))
    assert all(before > after for before, after in pairwise(rates[peak:]))
    assert rates[-1] > 0
    assert rate_share(steps, steps) == 0


def test_the_plan_counts_and_warns_where_there_is_little() -> None:
    few = plan(Settings(epochs=1, batch_size=8), 3, 700)
    assert few.splitlines()[0] == "corpus: 700 tokens in 3 sequences; 1 epoch of 1 step, 1 in all"
    assert few.splitlines()[1].startswith("few steps: under 20 little is learned")
    many = plan(Settings(epochs=2, batch_size=8), 81, 20_000)
    assert many == "corpus: 20,000 tokens in 81 sequences; 2 epochs of 11 steps, 22 in all"


@pytest.mark.parametrize("shown", [True, False])
def test_a_run_says_at_the_start_how_long_it_is(
    shown: bool, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(inputs / "model")
    train(model, TOKENIZER, SENTENCES, tmp_path / "out", Settings("full", epochs=1, seq_len=64), progress=shown)
    out, err = capsys.readouterr()
    assert out == ""
    assert ("corpus: " in err) == shown
    assert ("1 epoch of 1 step, 1 in all\nfew steps: " in err) == shown
