"""What a model's files ask for, looked at before transformers opens them; the border where models come in.

Only JSON and the headers of safetensors files are read here. Refused is what would run code or open a pickle (an index
or a configuration that names one, attention fetched as code), and what would load something else than it looks like (an
adapter) or never end (a configuration of a million layers).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from safetensors import SafetensorError, safe_open

from localopt.errors import InputError

CONFIG = "config.json"
ADAPTER = "adapter_config.json"
INDEX = "model.safetensors.index.json"
SMALL_FILES = (CONFIG, ADAPTER, INDEX)

PICKLED = "its weights are pickled, and opening them would run code: save it again with model.save_pretrained(folder)"
OWN_CODE = (
    "this model needs code of its own (auto_map in its JSON files), and localopt does not run code that comes with a "
    "model: use a model whose architecture transformers has."
)

_LARGEST = 64 << 20  # bytes of a JSON file; an index of the largest models has 10 MB
_MOST = 100_000  # layers, experts or heads; the largest models have 1,000


def check_folder(folder: Path) -> None:
    """Raise InputError unless a folder holds a whole model in safetensors files, and nothing that runs code."""
    if (folder / ADAPTER).exists():
        raise InputError(f"{folder}: {_adapter()}")
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: has no config.json, so it is not a model saved by transformers: check the path.")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
            raise InputError(f"{folder}: {PICKLED}.")
        raise InputError(f"{folder}: has no *.safetensors file: the weights are missing.")
    config = check_config(folder / CONFIG)
    for index in sorted(folder.glob("*.index.json")):
        check_index(index)
    most = max(_counts(config), default=("", 0), key=lambda named: named[1] if "layer" in named[0] else 0)
    if "layer" in most[0] and most[1] > (held := _tensors(weights)):
        raise InputError(
            f"{folder / CONFIG}: {most[0]} is {most[1]}, but the weights are only {held} tensors: the configuration is "
            "that of another model."
        )


def check_beside(gguf: Path) -> None:
    """Raise InputError if what lies beside a GGUF file would be loaded in its place."""
    if (gguf.parent / ADAPTER).exists():
        raise InputError(f"{gguf}: {gguf.parent / ADAPTER} lies beside it; {_adapter()}")


def check_small_files(name: str, found: dict[str, Path]) -> None:
    """Raise InputError as :func:`check_folder` does, for those of ``SMALL_FILES`` that a hub id has."""
    if ADAPTER in found:
        raise InputError(f"{name}: {_adapter()}")
    if CONFIG in found:
        check_config(found[CONFIG])
    if INDEX in found:
        check_index(found[INDEX])


def check_config(path: Path) -> dict[str, Any]:
    """Return a model's configuration; InputError if it names code or pickled weights, or a size that cannot be."""
    config = _read(path)
    for key, value in _walk(config):
        if key.endswith("attn_implementation") and "/" in str(value):
            raise InputError(f"{path}: {key} is {str(value)[:100]!r}, code from elsewhere; localopt does not run it.")
        if key == "transformers_weights":
            _check_weights(path, value)
    for key, value in _counts(config):
        if value > _MOST:
            raise InputError(
                f"{path}: {key} is {value}, more than the {_MOST} that any model has: the file is damaged."
            )
    return config


def check_index(path: Path) -> None:
    """Raise InputError unless every file an index names is a safetensors file in the same folder."""
    named = _read(path).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise InputError(f'{path}: has no "weight_map" from weights to files: the index is damaged.')
    for name in {str(value): value for value in named.values()}.values():
        _check_weights(path, name)


def _check_weights(path: Path, name: object) -> None:
    """An index or a configuration may name safetensors files in its own folder, and nothing else."""
    shown = repr(name)[:100]
    if not isinstance(name, str) or not name.endswith(".safetensors"):
        raise InputError(
            f"{path}: names {shown} as weights, which is not a .safetensors file; localopt opens no other."
        )
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(name).is_absolute() or kind(name).drive or ".." in kind(name).parts:
            raise InputError(f"{path}: names {shown} as weights, which lies outside its folder; localopt stays inside.")


def _counts(config: dict[str, Any]) -> list[tuple[str, int]]:
    """The numbers of layers, blocks, experts and heads in a configuration, by name."""
    return [
        (key, value)
        for key, value in _walk(config)
        if type(value) is int
        and key.startswith(("n_", "num_", "encoder_layers", "decoder_layers"))
        and key.rstrip("s").endswith(("layer", "block", "expert", "head"))
    ]


def _tensors(weights: list[Path]) -> int:
    held = 0
    for path in weights:
        try:
            with safe_open(str(path), framework="pt") as file:
                held += len(list(file.keys()))
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: cannot be loaded ({error}): the file is damaged.") from error
    return held


def _read(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():
            raise InputError(f"{path}: is not a regular file: check the folder.")
        if path.stat().st_size > _LARGEST:
            raise InputError(f"{path}: {path.stat().st_size} bytes are too many for this file: it is damaged.")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read as JSON ({error}): the file is damaged.") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds no JSON object: the file is damaged.")
    return value


def _walk(value: object) -> Iterator[tuple[str, Any]]:
    """Every field of an object and of those within it."""
    waiting = [value]
    while waiting:
        at = waiting.pop()
        if isinstance(at, dict):
            yield from at.items()
            waiting += at.values()
        elif isinstance(at, list):
            waiting += at


def _adapter() -> str:
    return (
        f"it holds a peft adapter ({ADAPTER}), not a whole model: merge it (model.merge_and_unload()), and save that "
        "in a folder of its own."
    )
