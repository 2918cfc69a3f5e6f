"""A trace on disk: one safetensors file, two tensors and a JSON header; and what makes a trace one, on disk or not.

A trace decides what is trained, and people pass traces on, so a file is read with a bound on time and memory, and every
value is checked: a norm that is negative or not a number would choose the wrong layers without a word.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from localopt import __version__
from localopt.errors import InputError
from localopt.layers import Mode
from localopt.outside import plain

FORMAT = 1
"""Version of the file format; a reader refuses others."""

_KEY = "localopt.tracing.trace"
_TENSORS = ("probe_norms", "reference_norms")
_LARGEST = 16 << 20  # bytes of a file; a trace of 1,000 layers has 50,000
_MOST_LAYERS = 200_000
_LONGEST_NAME = 1_000
_KNOWN = {
    "partition": (*get_args(Mode), "custom"),
    "average": ("norms", "gradients"),
    "score": ("norms", "gains"),
}
_COUNTS = ("probe_examples", "reference_examples")


def check(layers: object, probe: object, reference: object, metadata: object) -> None:
    """Raise InputError unless these make a trace.

    Args:
        layers: a tuple of L >= 1 names, all different, of characters that can be printed.
        probe, reference: float32 CPU tensors of shape (L,), finite and >= 0.
        metadata: a mapping from names to what JSON can hold; what it says of the partition, the score, the average and
            the counts is one of the values those can have.
    """
    if not isinstance(layers, tuple) or not layers or not all(isinstance(name, str) for name in layers):
        raise InputError(f"the layers of a trace are a tuple of one name or more, not {_short(layers)}")
    if len(layers) > _MOST_LAYERS:
        raise InputError(f"{len(layers)} layers are more than the {_MOST_LAYERS} that a trace may have")
    for name in layers:
        if not name or len(name) > _LONGEST_NAME or plain(name) != name:
            raise InputError(
                f"{_short(name)} is no name of a layer: it takes 1 to {_LONGEST_NAME} characters, all of them printable"
            )
    if len(set(layers)) < len(layers):
        counted = Counter(layers)
        raise InputError(f"the layer {max(counted, key=counted.__getitem__)} comes several times")
    for of, norms in (("probe", probe), ("reference", reference)):
        _check_norms(of, norms, layers)
    if not isinstance(metadata, Mapping) or not all(isinstance(key, str) for key in metadata):
        raise InputError(f"the metadata of a trace is a mapping of names to values, not {_short(metadata)}")
    for key, values in _KNOWN.items():
        if key in metadata and not (isinstance(metadata[key], str) and metadata[key] in values):
            raise InputError(f"the {key} of a trace is one of {', '.join(values)}, not {_short(metadata[key])}")
    for key in _COUNTS:
        if key in metadata and not (type(metadata[key]) is int and metadata[key] >= 0):
            raise InputError(f"{key} of a trace is a number of examples, not {_short(metadata[key])}")
    if not isinstance(metadata.get("model", ""), str):
        raise InputError(f"the model of a trace is named by a string, not {_short(metadata['model'])}")


def write(path: str | os.PathLike[str], layers: tuple[str, ...], norms: tuple[Tensor, Tensor], metadata: Any) -> None:
    """Write a trace, whole or not at all, with the mode that new files of this user have."""
    header = json.dumps({"format": FORMAT, "layers": layers, "metadata": dict(metadata)}, allow_nan=False)
    data = save({name: values.clone() for name, values in zip(_TENSORS, norms, strict=True)}, {_KEY: header})
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def read(path: str | os.PathLike[str]) -> tuple[tuple[str, ...], Tensor, Tensor, dict[str, Any]]:
    """Return layers, both norms and metadata; InputError for a file that is missing, damaged, newer, or another."""
    try:
        data = _bytes(path)
        header, tensors = _header(path, data), load(data)
        if type(header.get("format")) is int and header["format"] > FORMAT:
            raise InputError(
                f"{path} is a trace of format {header['format']}, and localopt {__version__} reads formats up to "
                f"{FORMAT}: upgrade localopt"
            )
        if set(header) != {"format", "layers", "metadata"} or type(header["format"]) is not int or header["format"] < 1:
            raise InputError(f"its header is not one of format {FORMAT}")
        if set(tensors) != set(_TENSORS):
            raise InputError(f"it has the tensors {_short(sorted(tensors))}, not {', '.join(_TENSORS)}")
        if not isinstance(header["layers"], list):
            raise InputError(f"its layers are {_short(header['layers'])}, not a list of names")
        found = tuple(header["layers"]), tensors["probe_norms"], tensors["reference_norms"], header["metadata"]
        check(*found)
        return found
    except InputError as error:
        if str(error).startswith(str(path)):
            raise
        raise InputError(f"{path} is not a trace, or a damaged one ({error}): trace again") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError, MemoryError, OverflowError) as error:
        raise InputError(f"{path} is not a trace, or a damaged one ({_short(str(error))}): trace again") from error


def _bytes(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a regular file that is not too long, read once: what is checked is what is used."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # before it is opened: a pipe would wait for its other end
        raise InputError(f"{path} cannot be read: it is a folder, a pipe or a device, not a file")
    with open(path, "rb") as file:
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise InputError(f"{path} is not a trace: it has more than {_LARGEST >> 20} MiB")
    return data


def _header(path: str | os.PathLike[str], data: bytes) -> dict[str, Any]:
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise ValueError("it is too short for its header")
    outer = json.loads(data[8 : 8 + length])
    about = outer.get("__metadata__") if isinstance(outer, dict) else None
    if not isinstance(about, dict) or not isinstance(about.get(_KEY), str):
        names = _short(sorted(key for key in outer if key != "__metadata__")) if isinstance(outer, dict) else "nothing"
        raise InputError(f"{path} is a safetensors file but not a trace: it holds {names}")
    header = json.loads(about[_KEY], parse_constant=_refuse_constant)
    if not isinstance(header, dict):
        raise ValueError(f"its header is {_short(header)}")
    return header


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} in its header")


def _check_norms(of: str, norms: object, layers: tuple[str, ...]) -> None:
    what = f"{of}_norms"
    if not isinstance(norms, Tensor) or norms.dtype != torch.float32 or norms.device.type != "cpu":
        got = f"{norms.dtype} on {norms.device}" if isinstance(norms, Tensor) else type(norms).__name__
        raise InputError(f"{what} has to be a float32 tensor on the CPU, not {got}")
    if norms.shape != (len(layers),):
        raise InputError(f"{len(layers)} layers need norms of that length, not {what} of shape {tuple(norms.shape)}")
    bad = [(name, norm) for name, norm in zip(layers, norms.tolist(), strict=True) if not 0 <= norm < math.inf]
    if bad:
        raise InputError(f"{what} of {bad[0][0]} is {bad[0][1]}; it has to be a finite number >= 0")


def _short(value: object) -> str:
    """A value in a message; its text is cut before it is made, as it may be endless."""
    text = repr(value[:100]) if isinstance(value, (str, list, tuple)) else repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
