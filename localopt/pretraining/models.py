"""A model's name -> a plain causal language model and its tokenizer, and back to a folder.

Weights are read from safetensors or GGUF files alone; pickled ones (`pytorch_model.bin`) run code when opened and are
refused. Code that comes with a model is never run (`modelfiles.py`).
"""

from __future__ import annotations

import copy
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils.hub import cached_file

from localopt.errors import InputError
from localopt.pretraining.modelfiles import (
    OWN_CODE,
    PICKLED,
    SMALL_FILES,
    check_beside,
    check_folder,
    check_small_files,
)
from localopt.pretraining.modes import give_usual_mode
from localopt.pretraining.processes import say
from localopt.pretraining.vocabulary import check_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_model(name: str, dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model by hub id, local folder, or GGUF file (its weights are expanded to `dtype`).

    The model is in eval mode, on the CPU, with every weight in `dtype`. A tokenizer without a padding token pads with
    its end-of-sequence token.

    Raises:
        InputError: no such file, folder or model; no network and not in the cache; only pickled weights; weights
            missing or damaged; not a causal language model; a GGUF file without the `gguf` package; code of its own;
            a configuration, weights and a tokenizer that do not belong together; an adapter.
    """
    path = Path(name)
    if path.is_dir():
        check_folder(path)
        model, tokenizer = _load(name, dtype=dtype)
    elif path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"{name}: no such GGUF file: check the path.")
        if find_spec("gguf") is None:
            raise InputError(f"{name}: reading GGUF files needs the gguf package: pip install gguf.")
        check_beside(path)
        model, tokenizer = _load(str(path.parent), dtype=dtype, gguf_file=path.name)
        model = _without_quantization(model)
        model.config._name_or_path = name  # the file, not its folder: titles and traces are named after it
    elif path.exists():
        raise InputError(f"{name}: is neither a model folder nor a .gguf file: name the folder that has config.json.")
    else:
        offline = not _on_hub(name)
        found = {file: _cached(name, file, offline) for file in SMALL_FILES}
        check_small_files(name, {file: path for file, path in found.items() if path is not None})
        model, tokenizer = _load(name, dtype=dtype, local_files_only=offline)
    check_vocabulary(name, model, tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.train(False), tokenizer


def load_skeleton(name: str) -> nn.Module:
    """Build a causal language model as :func:`load_model` names it, but without weights: names and shapes, no memory.

    Raises:
        InputError: as `load_model` does for what is wrong with anything but the weights.
    """
    path = Path(name)
    if path.suffix == ".gguf":  # which has no configuration apart from its weights
        return load_model(name, torch.bfloat16)[0]
    if path.is_dir():
        check_folder(path)
        offline = True
    elif path.exists():
        raise InputError(f"{name}: is neither a model folder nor a .gguf file: name the folder that has config.json.")
    else:
        offline = not _on_hub(name)
        found = _cached(name, "config.json", offline)
        check_small_files(name, {} if found is None else {"config.json": found})
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, local_files_only=offline)
        with torch.device("meta"):
            model: nn.Module = cast(Any, AutoModelForCausalLM).from_config(config, trust_remote_code=False)
    except Exception as error:
        why = OWN_CODE if "trust_remote_code" in str(error) else f"is no causal language model: {error}"
        raise InputError(f"{name}: {why}") from error
    return model


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Save both to `folder` (safetensors), whole or not at all: written next to it, then renamed.

    Raises:
        InputError: `folder` exists and is not empty; it cannot be written (no space left, no permission).
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: exists and is not empty: name a new folder, or remove this one.")
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        give_usual_mode(partial)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder}: the model cannot be saved there: {error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _load(source: str, **options: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Ask transformers for both; whatever goes wrong with files from outside is about the input."""
    weights: dict[str, Any] = {} if "gguf_file" in options else {"use_safetensors": True}
    shown = f"{source}/{options['gguf_file']}" if "gguf_file" in options else source
    try:
        # Unset, transformers asks on standard input whether to run code that comes with the model.
        model, report = cast(Any, AutoModelForCausalLM).from_pretrained(
            source, output_loading_info=True, trust_remote_code=False, **weights, **options
        )
        tokenizer_options = {k: v for k, v in options.items() if k != "dtype"}
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **tokenizer_options)
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise InputError(f"{shown}: {OWN_CODE}") from error
        raise InputError(f"{shown}: cannot be loaded as a causal language model: {error}") from error
    if report["missing_keys"]:
        some = ", ".join(sorted(report["missing_keys"])[:3])
        raise InputError(
            f"{shown}: {len(report['missing_keys'])} weights are missing ({some}, ...): the files are not those of a "
            f"{type(model).__name__}, or incomplete."
        )
    _check_unused(shown, model, sorted(report["unexpected_keys"]))
    return model, tokenizer


def _check_unused(shown: str, model: PreTrainedModel, unused: list[str]) -> None:
    """Refuse weights of blocks that the model lacks: training would go on with a shortened model, and save that."""
    blocks = [name for name in unused if re.search(r"\.\d+\.", name)]
    if blocks:
        raise InputError(
            f"{shown}: {len(blocks)} weights ({blocks[0]}, ...) have no place in the {type(model).__name__} that "
            "config.json describes, and would be lost: the configuration is that of a smaller model."
        )
    if unused:
        say(f"{shown}: not used, and not saved again: {', '.join(unused[:3])}{', ...' if len(unused) > 3 else ''}")


def _without_quantization(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that does not know it came from a quantized file, so that it can be saved."""
    config = copy.deepcopy(model.config)
    del config.quantization_config
    plain: PreTrainedModel = cast(Any, AutoModelForCausalLM).from_config(
        config, dtype=model.dtype, trust_remote_code=False
    )
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    return plain


def _on_hub(name: str) -> bool:
    """Whether the hub can be asked for this model; False where only the local cache can answer.

    Asking once beforehand tells an unknown model from a missing network, without transformers' minute of retries.
    """
    try:
        info = HfApi().model_info(name, timeout=10)
    except HFValidationError:
        raise InputError(f"{name}: no such file or folder, and no hub id (owner/model) either: check it.") from None
    except RepositoryNotFoundError:
        raise InputError(
            f"{name}: no such file or folder, and no such model on the hub (or it is private or gated: log in with "
            "`hf auth login`)."
        ) from None
    except Exception as error:
        if _is_cached(name):
            return False
        raise InputError(
            f"{name}: no such file or folder, not in the local cache, and the hub cannot be reached "
            f"({type(error).__name__}): check the name and the network, or give a folder or a GGUF file."
        ) from error
    files = [sibling.rfilename for sibling in info.siblings or []]
    if not any(file.endswith(".safetensors") for file in files):
        raise InputError(f"{name}: has no safetensors weights on the hub; if there are others, {PICKLED}.")
    return True


def _is_cached(name: str) -> bool:
    return isinstance(try_to_load_from_cache(name, "config.json"), str)


def _cached(name: str, file: str, offline: bool) -> Path | None:
    """Where a small file of a hub id is, or None where the hub id has none."""
    try:
        found = cached_file(name, file, local_files_only=offline, _raise_exceptions_for_missing_entries=False)
    except Exception as error:
        raise InputError(f"{name}: {file} cannot be fetched: {error}") from error
    return None if found is None else Path(found)
