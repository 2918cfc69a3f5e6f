"""Model folders in which someone has put code, and files that point to a pickle: all of it leaves a mark if it runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import torch

from tests.tiny_lm import tiny_model, tiny_tokenizer, write_gguf

TOKENIZER = tiny_tokenizer()


class Trap:
    """A pickle that makes a file when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, (f"touch {self.mark}",))


def write_model(folder: Path) -> Path:
    tiny_model(TOKENIZER).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def change(path: Path, **fields: object) -> None:
    """Set fields of a JSON file."""
    value = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**value, **fields}))


def _code(folder: Path, mark: Path, name: str, classes: str) -> None:
    (folder / f"{name}.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n{classes}")


def in_the_configuration(folder: Path, mark: Path) -> Path:
    write_model(folder)
    _code(
        folder, mark, "evil", "from transformers import LlamaConfig\nclass Evil(LlamaConfig):\n    model_type='evil'\n"
    )
    change(folder / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Evil"})
    return folder


def in_the_model(folder: Path, mark: Path) -> Path:
    write_model(folder)
    _code(
        folder, mark, "evil", "from transformers import LlamaConfig, LlamaForCausalLM as Model\nConfig = LlamaConfig\n"
    )
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    change(folder / "config.json", model_type="evil", auto_map=auto_map)
    return folder


def in_the_tokenizer(folder: Path, mark: Path) -> Path:
    write_model(folder)
    _plant_tokenizer(folder, mark)
    return folder


def beside_a_gguf_file(folder: Path, mark: Path) -> Path:
    folder.mkdir()
    write_gguf(tiny_model(TOKENIZER), TOKENIZER, folder / "tiny.gguf")
    _plant_tokenizer(folder, mark)
    return folder / "tiny.gguf"


def in_generate(folder: Path, mark: Path) -> Path:
    write_model(folder)
    (folder / "custom_generate").mkdir()
    _code(folder / "custom_generate", mark, "generate", "def generate(model, **_): ...\n")
    return folder


def _plant_tokenizer(folder: Path, mark: Path) -> None:
    base = "from transformers import PreTrainedTokenizerFast\nclass Evil(PreTrainedTokenizerFast):\n    pass\n"
    _code(folder, mark, "evil", base)
    fields = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    change(folder / "tokenizer_config.json", **fields)


def _pickled(folder: Path, mark: Path, name: str) -> None:
    """Weights that are complete, and a trap among them, under this name; no other weights are left."""
    state = {key: value.clone() for key, value in tiny_model(TOKENIZER).state_dict().items()}
    torch.save({**state, "trap": Trap(mark)}, folder / name)
    weight_map = dict.fromkeys(state, name)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map})
    )
    (folder / "model.safetensors").rename(folder / "unused.safetensors")


def named_by_the_index(folder: Path, mark: Path) -> Path:
    _pickled(write_model(folder), mark, "evil.bin")
    return folder


def named_outside_by_the_index(folder: Path, mark: Path) -> Path:
    _pickled(write_model(folder), mark, "../evil.bin")
    return folder


def named_by_the_configuration(folder: Path, mark: Path) -> Path:
    _pickled(write_model(folder), mark, "adapter_model.bin")
    change(folder / "config.json", transformers_weights="adapter_model.bin")
    return folder


CODE: dict[str, Callable[[Path, Path], Path]] = {
    plant.__name__: plant for plant in (in_the_configuration, in_the_model, in_the_tokenizer, beside_a_gguf_file)
}
PICKLES: dict[str, Callable[[Path, Path], Path]] = {
    plant.__name__: plant for plant in (named_by_the_index, named_outside_by_the_index, named_by_the_configuration)
}
