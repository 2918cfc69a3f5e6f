"""Models: loaded from a folder or a GGUF file, saved whole or not at all."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, LlamaForCausalLM, PreTrainedTokenizerFast

from localopt.errors import InputError
from localopt.pretraining.models import load_model, load_skeleton, save_model
from tests.tiny_lm import SENTENCES, tiny_model, tiny_tokenizer, write_gguf

TOKENIZER = tiny_tokenizer()


def logits(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**tokenizer(SENTENCES[1], return_tensors="pt")).logits


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_comes_back_bit_for_bit(tmp_path: Path, tied: bool) -> None:
    model = tiny_model(TOKENIZER, tied=tied)
    save_model(model, TOKENIZER, tmp_path / "model")
    again, tokenizer = load_model(str(tmp_path / "model"))
    assert torch.equal(logits(again, tokenizer), logits(model, TOKENIZER))
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied
    assert not again.training
    assert {path.suffix for path in (tmp_path / "model").iterdir()} <= {".json", ".safetensors", ".jinja"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "nothing is left beside it"


@pytest.mark.parametrize("tied", [True, False])
def test_a_skeleton_has_names_and_shapes_but_no_weights(tmp_path: Path, tied: bool) -> None:
    model = tiny_model(TOKENIZER, tied=tied)
    save_model(model, TOKENIZER, tmp_path / "model")
    skeleton = load_skeleton(str(tmp_path / "model"))
    assert {p.device.type for p in skeleton.parameters()} == {"meta"}
    assert {name: p.shape for name, p in skeleton.named_parameters()} == {
        n: p.shape for n, p in model.named_parameters()
    }


def test_the_skeleton_of_a_gguf_file_has_its_names(tmp_path: Path) -> None:
    model = tiny_model(TOKENIZER)
    write_gguf(model, TOKENIZER, tmp_path / "tiny.gguf")
    names = [name for name, _ in load_skeleton(str(tmp_path / "tiny.gguf")).named_parameters()]
    assert names == [name for name, _ in model.named_parameters()]


def test_what_has_no_skeleton_is_named(tmp_path: Path) -> None:
    for name, message in (("missing", "no such file"), ("file", "neither a model folder"), ("folder", "config.json")):
        (tmp_path / "file").write_text("")
        (tmp_path / "folder").mkdir(exist_ok=True)
        with pytest.raises(InputError, match=message):
            load_skeleton(str(tmp_path / name))


def test_weights_come_in_the_dtype_asked_for_whatever_they_were_saved_in(tmp_path: Path) -> None:
    save_model(tiny_model(TOKENIZER).bfloat16(), TOKENIZER, tmp_path / "model")
    assert {p.dtype for p in load_model(str(tmp_path / "model"))[0].parameters()} == {torch.float32}
    half, _ = load_model(str(tmp_path / "model"), dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_a_gguf_file_becomes_a_plain_model_that_can_be_trained_and_saved(tmp_path: Path) -> None:
    model = tiny_model(TOKENIZER)
    write_gguf(model, TOKENIZER, tmp_path / "tiny.gguf")
    plain, tokenizer = load_model(str(tmp_path / "tiny.gguf"))
    assert tokenizer(SENTENCES[0])["input_ids"] == TOKENIZER(SENTENCES[0])["input_ids"]
    assert torch.allclose(logits(plain, tokenizer), logits(model, TOKENIZER), atol=1e-5)
    assert plain.lm_head.weight is plain.model.embed_tokens.weight, "tied weights stay tied"
    assert all(p.dtype == torch.float32 and p.requires_grad for p in plain.parameters())
    assert not hasattr(plain.config, "quantization_config")
    save_model(plain, tokenizer, tmp_path / "saved")
    again, _ = load_model(str(tmp_path / "saved"))
    assert torch.equal(logits(again, tokenizer), logits(plain, tokenizer))


def test_a_gguf_file_without_the_gguf_package_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r"tiny\.gguf: .*pip install gguf"):
        load_model(str(tmp_path / "tiny.gguf"))


def test_a_tokenizer_without_padding_token_pads_with_its_end_token(tmp_path: Path) -> None:
    save_model(tiny_model(TOKENIZER), TOKENIZER, tmp_path / "model")
    assert TOKENIZER.pad_token is None
    assert load_model(str(tmp_path / "model"))[1].pad_token == "</s>"


def test_a_name_that_leads_nowhere_says_what_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "note.txt").write_text("not a model")
    (tmp_path / "bad.gguf").write_bytes(b"not a GGUF file")
    for name, because in {
        "nobody/nothing": "not in the local cache, and the hub cannot be reached",
        "not/a/hub/id": "no hub id",
        str(tmp_path / "none.gguf"): "no such GGUF file",
        str(tmp_path / "bad.gguf"): "cannot be loaded as a causal language model",
        str(tmp_path / "note.txt"): "neither a model folder nor a .gguf file",
        str(tmp_path): "has no config.json",
    }.items():
        with pytest.raises(InputError) as caught:
            load_model(name)
        assert str(caught.value).startswith(f"{name}: ")
        assert because in str(caught.value)


def test_pickled_weights_are_refused_unopened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (os.system, (f"touch {tmp_path / 'sprung'}",))

    folder = tmp_path / "model"
    save_model(tiny_model(TOKENIZER), TOKENIZER, folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="the weights are missing"):
        load_model(str(folder))
    torch.save({"a": Trap()}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickled, and opening them would run code"):
        load_model(str(folder))
    assert not (tmp_path / "sprung").exists()


def test_damaged_or_foreign_weights_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    save_model(tiny_model(TOKENIZER), TOKENIZER, folder)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"damaged/model\.safetensors: cannot be loaded"):
        load_model(str(folder))
    bert = BertModel(BertConfig(vocab_size=300, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    bert.save_pretrained(tmp_path / "bert")
    TOKENIZER.save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match="weights are missing"):
        load_model(str(tmp_path / "bert"))


def test_a_folder_with_something_in_it_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="full: exists and is not empty"):
        save_model(tiny_model(TOKENIZER), TOKENIZER, tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]
    (tmp_path / "empty").mkdir()
    save_model(tiny_model(TOKENIZER), TOKENIZER, tmp_path / "empty")
    assert (tmp_path / "empty" / "model.safetensors").is_file()


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", full)
    with pytest.raises(InputError, match=r"the model cannot be saved there: .*No space left"):
        save_model(tiny_model(TOKENIZER), TOKENIZER, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
