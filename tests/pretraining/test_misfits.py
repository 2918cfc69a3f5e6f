"""Configuration, weights, tokenizer that do not belong together: one clear line, and nothing is trained or saved."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from localopt.errors import InputError
from localopt.pretraining.evaluate import evaluate_text
from localopt.pretraining.models import load_model
from localopt.pretraining.probes import encode, encode_text, read_probes
from localopt.pretraining.settings import Settings
from localopt.pretraining.train import train
from tests.planted import TOKENIZER, change, write_model
from tests.tiny_files import FACTS, write_lines
from tests.tiny_lm import SENTENCES, tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_model(str(folder))
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_a_configuration_with_fewer_layers_than_the_weights_is_refused(folder: Path) -> None:
    change(folder / "config.json", num_hidden_layers=1)
    assert "weights (model.layers.1." in refusal(folder)


@pytest.mark.parametrize(("layers", "because"), [(50, "only 20 tensors"), (10**6, "more than the"), (10**15, "more")])
def test_a_configuration_with_far_more_layers_than_the_weights_is_refused_at_once(
    folder: Path, layers: int, because: str
) -> None:
    change(folder / "config.json", num_hidden_layers=layers)
    assert because in refusal(folder)


def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows_is_refused(folder: Path) -> None:
    small = tiny_model(TOKENIZER)
    small.resize_token_embeddings(100)
    small.save_pretrained(folder)
    assert "go up to 372, but the model's embedding has 100 rows" in refusal(folder)


def test_a_special_token_beyond_the_embedding_is_refused_where_the_text_has_it(folder: Path, tmp_path: Path) -> None:
    more = PreTrainedTokenizerFast.from_pretrained(folder)
    more.add_special_tokens({"additional_special_tokens": ["<|more|>"]})
    more.save_pretrained(folder)
    model, tokenizer = load_model(str(folder))
    assert evaluate_text(model, tokenizer, SENTENCES).tokens > 0
    for use in (
        lambda: evaluate_text(model, tokenizer, ["one <|more|> two"]),
        lambda: train(model, tokenizer, ["one <|more|> two"], tmp_path / "out", Settings("full", seq_len=16)),
    ):
        with pytest.raises(InputError, match="a token with number 373, but the model's embedding has 373 rows"):
            use()
    assert not (tmp_path / "out").exists()


def test_an_adapter_is_not_loaded_as_if_it_were_the_model(folder: Path) -> None:
    adapted = peft.get_peft_model(tiny_model(TOKENIZER), peft.LoraConfig(target_modules=["q_proj"]))
    adapted.save_pretrained(folder)
    assert "holds a peft adapter (adapter_config.json), not a whole model: merge it" in refusal(folder)


def test_weights_without_a_place_that_are_no_block_are_said_and_left_out(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "value_head.weight": torch.ones(1, 4)}, folder / "model.safetensors", {"format": "pt"})
    load_model(str(folder))
    assert f"{folder}: not used, and not saved again: value_head.weight\n" in capsys.readouterr().err


def knowing_nothing(model: models.Model) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def test_a_tokenizer_that_drops_everything_is_no_way_to_train_on_nothing(tmp_path: Path) -> None:
    facts = read_probes(write_lines(tmp_path / "facts.jsonl", *FACTS))
    drops = knowing_nothing(models.BPE({"</s>": 0}, []))
    with pytest.raises(InputError, match="no token of the text but special ones"):
        encode_text(SENTENCES, drops, 16)
    with pytest.raises(InputError, match=r"facts\.jsonl:1: no token of .* can be predicted"):
        encode(facts, drops)


def test_a_tokenizer_that_raises_for_an_unknown_word_is_a_clear_error(tmp_path: Path) -> None:
    facts = read_probes(write_lines(tmp_path / "facts.jsonl", *FACTS))
    raises = knowing_nothing(models.WordLevel({"</s>": 0, "unheard": 1}))
    with pytest.raises(InputError, match=r"the text: .* cannot read this text: .*Missing"):
        encode_text(SENTENCES, raises, 16)
    with pytest.raises(InputError, match=r"facts\.jsonl:1: .* cannot read this text"):
        encode(facts, raises)


@pytest.mark.parametrize("text", ["", "[]", "7", "{", "[" * 100_000, '{"a": ' * 100_000, "\x00", '"\\ud800"', "NaN"])
def test_a_configuration_that_is_none_is_named(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert "config.json: " in refusal(folder)


@pytest.mark.parametrize("weight_map", [None, [], {}, 7, {"a": None}, {"a": ["model.safetensors"]}])
def test_an_index_that_is_none_is_named(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert "model.safetensors.index.json: " in refusal(folder)
