"""What a model writes itself, and traces that have nothing else to compare with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from localopt import LayerTrace, Samples, trace_layers
from localopt.errors import InputError
from localopt.pretraining.probes import encode_text
from localopt.tracing import samples as module
from localopt.tracing.samples import readable, sample
from tests import tiny_models
from tests.tiny_lm import SENTENCES, tiny_model, tiny_tokenizer

TINY = {"vocab_size": 23, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "bos_token_id": 1}
NEVER = {"eos_token_id": None}


def causal(name: str = "Llama", **changes: Any) -> Any:
    config = getattr(transformers, f"{name}Config")(**({"intermediate_size": 8} | TINY | changes))
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def tokens(model: nn.Module, **settings: Any) -> list[list[int]]:
    return [example["input_ids"].tolist() for example in sample(model, Samples(**settings))]


def test_samples_begin_with_the_token_of_the_model_and_carry_the_loss_on_every_token() -> None:
    written = sample(causal(**NEVER), Samples(count=3, length=5))
    assert [len(example["input_ids"]) for example in written] == [6, 6, 6]
    assert {int(example["input_ids"][0]) for example in written} == {1}
    assert all(torch.equal(example["labels"], example["input_ids"]) for example in written)
    assert {row[0] for row in tokens(causal(**NEVER), count=3, length=2, start=7)} == {7}


def test_a_sample_ends_with_the_end_of_text() -> None:
    rows = tokens(causal(eos_token_id=[4, 5, 6, 7, 8]), count=40, length=12)
    assert all(token not in (4, 5, 6, 7, 8) for row in rows for token in row[1:-1])
    assert {len(row) for row in rows} > {2, 3, 4}
    assert all(len(row) == 13 or row[-1] in (4, 5, 6, 7, 8) for row in rows)
    same = tokens(causal(bos_token_id=4, eos_token_id=4), count=20, length=6)  # GPT-2: one token for both
    assert max(map(len, same)) > 2


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_tokens_come_as_often_as_the_model_says(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 4000)
    torch.manual_seed(0)
    model = causal(initializer_range=1.0, **NEVER)
    with torch.no_grad():
        expected = (model(torch.tensor([[1]])).logits[0, 0] / temperature).softmax(-1)
    rows = tokens(model, count=4000, length=1, temperature=temperature)
    found = torch.bincount(torch.tensor(rows)[:, 1], minlength=23) / 4000
    assert expected.max() > 2 / 23
    torch.testing.assert_close(found, expected, rtol=0, atol=0.03)


@pytest.mark.parametrize("name", ["Llama", "GPT2", "Mamba", "Gemma2", "Mixtral", "GPTNeoX"])
def test_the_cache_changes_nothing(name: str) -> None:
    torch.manual_seed(0)
    shape = {"head_dim": 8, "num_key_value_heads": 1} if name in ("Gemma2", "Mixtral") else {}
    model = causal(name, initializer_range=0.5, pad_token_id=0, **NEVER, **shape)
    settings = Samples(count=4, length=6)
    written = sample(model, settings)
    uniform = torch.rand(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for example, numbers in zip(written, uniform, strict=True):
        row = example["input_ids"]
        with torch.no_grad():
            cumulated = model(row[None], use_cache=False).logits[0, :-1].double().softmax(-1).cumsum(-1)
        assert torch.searchsorted(cumulated, numbers[:, None])[:, 0].tolist() == row[1:].tolist()


def test_the_seed_decides_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = causal()
    first = tokens(model, count=9, length=8)
    torch.manual_seed(1)
    monkeypatch.setattr(module, "AT_ONCE", 2)
    assert tokens(model, count=9, length=8) == first
    assert tokens(model, count=9, length=8, seed=1) != first
    assert tokens(model, count=9, length=8, seed=Samples().held_out().seed) == tokens(model, count=9, length=8, seed=1)


def test_how_the_model_would_generate_otherwise_does_not_matter() -> None:
    model = causal(**NEVER)
    plain = tokens(model, count=5, length=8)
    model.generation_config.update(do_sample=True, top_k=1, repetition_penalty=9.0, min_length=30, max_length=2)
    kept = model.generation_config
    model.config.use_cache = False
    assert tokens(model, count=5, length=8) == plain
    assert model.generation_config is kept


def test_a_model_with_adapters_writes_with_them() -> None:
    model = tiny_models.lora()
    written = tokens(model, count=4, length=6)
    with model.disable_adapter():
        assert tokens(model, count=4, length=6) != written
    merged = model.merge_and_unload()
    assert tokens(merged, count=4, length=6) == written


def test_the_model_and_the_random_state_are_given_back_as_they_were(capfd: pytest.CaptureFixture[str]) -> None:
    model = causal(attention_dropout=0.5)
    model.train()
    model(torch.tensor([[1, 2]]), labels=torch.tensor([[1, 2]])).loss.backward()
    before = {name: (p.clone(), p.grad) for name, p in model.named_parameters()}
    probe, state = news(), torch.get_rng_state()
    sample(model, Samples(count=2, length=4))
    trace_layers(model, probe, Samples(count=2, length=4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter.grad is before[name][1]
    assert capfd.readouterr() == ("", "")


def news() -> list[dict[str, Tensor]]:
    rows = torch.randint(23, (3, 8))
    return [{"input_ids": row, "labels": row} for row in rows]


@pytest.mark.parametrize("score", ["norms", "gains"])
def test_a_trace_without_a_reference_is_one_against_the_models_own_text(score: Any, tmp_path: Path) -> None:
    model, probe, settings = causal(), news(), Samples(count=3, length=5, seed=5)
    trace = trace_layers(model, probe, settings, score=score)
    own = sample(model, settings)
    expected = trace_layers(model, probe, own, score=score)
    assert torch.equal(trace.relative_norms, expected.relative_norms)
    assert "samples" not in expected.metadata
    trace.save(tmp_path / "trace.safetensors")
    kept = LayerTrace.load(tmp_path / "trace.safetensors").metadata
    assert kept["samples"] == {"count": 3, "length": 5, "temperature": 1.0, "seed": 5, "start": None}
    assert (kept["score"], kept["reference_examples"]) == (score, 3)


def test_the_settings_need_not_be_given() -> None:
    trace = trace_layers(causal(), news())
    assert trace.metadata["samples"] == {"count": 64, "length": 64, "temperature": 1.0, "seed": 0, "start": None}
    assert trace.metadata["reference_examples"] == 64


def test_a_raw_corpus_is_a_probe_and_needs_nothing_beside_it() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    corpus = encode_text(SENTENCES, tokenizer, 16)
    assert all(torch.equal(piece["labels"], piece["input_ids"]) for piece in corpus)
    trace = trace_layers(model, corpus, Samples(count=8, length=15), score="gains")
    assert trace.metadata["probe_examples"] == len(corpus)
    chosen = [layer for layer, scale in trace.frozen_parameters().scales.items() if scale]
    assert 0 < len(chosen) < len(trace.layers)


def test_samples_can_be_read() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer("Mira Osk plays the violin.")["input_ids"]
    assert readable([{"input_ids": torch.tensor([0, *ids, 1])}], tokenizer) == ["Mira Osk plays the violin."]
    texts = readable(sample(tiny_model(tokenizer), Samples(count=3, length=20)), tokenizer)
    assert len(texts) == 3
    assert not any("<s>" in text for text in texts)


def test_progress_is_shown_on_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    trace_layers(causal(), news(), Samples(count=5, length=4), progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "samples" in err
    assert "5/5" in err


def bert() -> nn.Module:
    return transformers.AutoModelForMaskedLM.from_config(transformers.BertConfig(**TINY, intermediate_size=8))


@pytest.mark.parametrize(
    ("build", "settings", "message"),
    [
        (bert, None, "BertForMaskedLM cannot generate text.*reference="),
        (tiny_models.t5, None, "T5ForConditionalGeneration is an encoder-decoder.*reference="),
        (lambda: nn.Sequential(nn.Linear(2, 2)), None, "Sequential cannot generate text.*reference="),
        (lambda: causal(bos_token_id=None), None, r"no beginning-of-text token.*reference=.*Samples\(start="),
        (causal, Samples(start=23), "begin with token 23, and LlamaForCausalLM has tokens up to 22"),
        (lambda: causal(max_position_embeddings=8), Samples(length=8), "longer than the 8 positions"),
    ],
)
def test_a_model_that_cannot_write_is_told_before_it_runs(
    build: Callable[[], nn.Module], settings: Samples | None, message: str
) -> None:
    model = build()
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model was run"))
    with pytest.raises(InputError, match=message):
        trace_layers(model, news(), settings)
    with pytest.raises(InputError, match=message):
        sample(model, settings)


def test_an_empty_probe_is_noticed_before_anything_is_written() -> None:
    model = causal()
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model was run"))
    with pytest.raises(InputError, match="the probe is empty"):
        trace_layers(model, [])


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": 0},
        {"length": 2.0},
        {"length": True},
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"seed": -1},
        {"start": -1},
        {"count": None},
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(InputError, match=rf"Samples\({name}={value}"):
        Samples(**wrong)
