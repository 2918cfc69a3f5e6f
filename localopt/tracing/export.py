"""Layers chosen, or scales for them -> settings of other trainers, so that they can be trained where localopt is not.

- ``unfrozen_parameters`` (TGL + FP): the parameters to train, one pattern each, as axolotl and Spectrum write them.
- ``lr_groups`` (TGL + ALR): axolotl's learning rate for each group of parameters.
- ``multipliers`` (TGL + ALR): a pattern for every parameter and what to multiply its learning rate with.
- ``peft``: LoRA on the matrices of the chosen layers, with a rank for each layer by its share.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import yaml  # type: ignore[import-untyped]  # with transformers
from torch import nn

from localopt.errors import InputError, writing

Format = Literal["unfrozen_parameters", "lr_groups", "multipliers", "peft"]

_EMBEDDINGS = ("embed_tokens", "lm_head")  # what axolotl gives its `embedding_lr` instead of a group's rate
_RANK = 8  # as in peft


def check_arguments(format: Format, lr: float | None, rank: int | None) -> None:
    """Raise InputError for an unknown format, or an argument that it needs, or does not know."""
    if format not in get_args(Format):
        raise InputError(f"format must be one of {', '.join(get_args(Format))}, not {format!r}")
    if (format == "lr_groups") != (lr is not None):
        raise InputError(f"format {format!r} with lr={lr}: lr is needed by lr_groups and by no other format")
    if rank is not None and (format != "peft" or rank < 1):
        raise InputError(f"format {format!r} with rank={rank}: rank is at least 1, and peft alone knows it")


def settings(
    format: Format,
    model: nn.Module,
    layer_of: Mapping[str, str],
    chosen: Mapping[str, float],
    rates: Mapping[str, float],
    *,
    lr: float | None = None,
    rank: int | None = None,
) -> dict[str, Any]:
    """Return the settings of another trainer, ready to be written.

    Args:
        format: see the module.
        model: whose parameters they are; weights are not looked at.
        layer_of: the layer of every parameter to speak of, by name.
        chosen: layer -> scale, above 0 for the layers to train.
        rates: layer -> factor on the learning rate, >= 0.
        lr: the base learning rate, for ``"lr_groups"``: axolotl takes rates, not factors.
        rank: of adapters, on average, for ``"peft"``; None for 8.

    Raises:
        InputError: an unknown format, ``lr`` missing or not known to it, or settings it cannot express.
    """
    check_arguments(format, lr, rank)
    if format == "unfrozen_parameters":
        return {format: unfrozen_parameters(chosen, layer_of)}
    if format == "multipliers":
        return {format: multipliers(rates, layer_of)}
    if format == "peft":
        return adapters(model, {name: rates[layer] for name, layer in layer_of.items() if chosen[layer] > 0}, rank)
    assert lr is not None
    return lr_groups(rates, {name: layer_of[name] for name in layer_of if model.get_parameter(name).dim() > 1}, lr)


def write(path: str | os.PathLike[str], what: Mapping[str, Any]) -> None:
    """Write settings as YAML, or as JSON where the path ends so. InputError if that cannot be done."""
    json_wanted = Path(path).suffix == ".json"
    text = json.dumps(what, indent=2) if json_wanted else yaml.safe_dump(what, sort_keys=False, width=200)
    with writing(path):
        Path(path).write_text(text, encoding="utf-8")


def unfrozen_parameters(scales: Mapping[str, float], layer_of: Mapping[str, str]) -> list[str]:
    """Return a pattern for every parameter whose layer has a scale above 0.

    Dots stand unescaped, as Spectrum writes them: axolotl escapes them itself, and would escape a backslash too.

    >>> layer_of = {"h.0.mlp.weight": "h.0.mlp", "h.1.mlp.weight": "h.1.mlp"}
    >>> unfrozen_parameters({"h.0.mlp": 1.0, "h.1.mlp": 0.0}, layer_of)
    ['^h.0.mlp.weight$']
    """
    return [f"^{name}$" for name, layer in layer_of.items() if scales[layer] > 0]


def multipliers(scales: Mapping[str, float], layer_of: Mapping[str, str]) -> dict[str, float]:
    """Return the scale of every parameter's layer, by a regular expression that matches its name alone.

    >>> multipliers({"h.0.mlp": 0.5}, {"h.0.mlp.weight": "h.0.mlp"})
    {'^h\\\\.0\\\\.mlp\\\\.weight$': 0.5}
    """
    return {f"^{re.escape(name)}$": scales[layer] for name, layer in layer_of.items()}


def lr_groups(scales: Mapping[str, float], layer_of: Mapping[str, str], lr: float) -> dict[str, Any]:
    """Return axolotl's ``learning_rate``, ``embedding_lr`` and ``lr_groups``: one group a layer, at lr * scale.

    Axolotl looks for each of a group's ``modules`` within the names of the parameters, and applies a group's rate to
    matrices only: norms and biases train at the base rate. Embedding and untied head share the one ``embedding_lr``,
    here that of the slower of the two.

    Args:
        scales: one scale >= 0 a layer.
        layer_of: the layer of every matrix.
        lr: the base learning rate.

    Raises:
        InputError: ``embedding_lr`` would be 0, which axolotl takes for "not given".

    >>> lr_groups({"h.0.mlp": 0.5}, {"h.0.mlp.weight": "h.0.mlp"}, 0.5)
    {'learning_rate': 0.5, 'lr_groups': [{'name': 'h.0.mlp', 'modules': ['h.0.mlp.weight'], 'lr': 0.25}]}
    """
    settings: dict[str, Any] = {"learning_rate": lr}
    embeddings = [name for name in layer_of if any(part in name for part in _EMBEDDINGS)]
    if embeddings:
        settings["embedding_lr"] = lr * min(scales[layer_of[name]] for name in embeddings)
        if settings["embedding_lr"] == 0:
            raise InputError(
                f"{', '.join(embeddings)} would train at rate 0, which axolotl takes for no rate given: freeze them "
                'with format="unfrozen_parameters"'
            )
    groups: dict[str, list[str]] = {}
    for name, layer in layer_of.items():
        if name not in embeddings:
            groups.setdefault(layer, []).append(name)
    settings["lr_groups"] = [
        {"name": layer, "modules": modules, "lr": lr * scales[layer]} for layer, modules in groups.items()
    ]
    return settings


def adapters(model: nn.Module, shares: Mapping[str, float], rank: int | None = None) -> dict[str, Any]:
    """Return arguments of peft's ``LoraConfig``: which modules get adapters, and of which rank.

    The rank of a matrix is in proportion to its share, ``rank`` on average, at least 1 and at most what the matrix can
    have. ``alpha`` equals the rank everywhere, so every adapter acts at scale 1. Vectors (norms, biases) stay frozen:
    LoRA has no adapters for them.

    Args:
        model: the plain model, without adapters.
        shares: parameter name -> share > 0, for the parameters to train.
        rank: the average; None for 8.

    Raises:
        InputError: the model has adapters already, no matrix is chosen, or one is not in a module LoRA can adapt.

    Examples:
        >>> model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
        >>> chosen = adapters(model, {"0.weight": 1.0, "0.bias": 1.0, "1.weight": 3.0}, 4)
        >>> chosen["target_modules"], chosen["rank_pattern"]
        (['0', '1'], {'0': 2, '1': 6})
    """
    if hasattr(model, "peft_config"):
        raise InputError("the model has adapters already: export for the plain model they are to be put into")
    modules, shapes = dict(model.named_modules()), {name: model.get_parameter(name).shape for name in shares}
    matrices = {name: share for name, share in shares.items() if len(shapes[name]) > 1}
    strange = [name for name in matrices if not _adaptable(modules, name)]
    if strange or not matrices:
        what = f"LoRA has no adapter for {', '.join(strange)}" if strange else "no matrix is chosen"
        raise InputError(f'{what}: train the chosen layers themselves, with format="unfrozen_parameters"')
    base = rank or _RANK
    unit = base * len(matrices) / sum(matrices.values())
    ranks = {
        name.removesuffix(".weight"): max(1, min(round(unit * share), *shapes[name]))
        for name, share in matrices.items()
    }
    return {
        "peft_type": "LORA",
        "r": base,
        "lora_alpha": base,
        "target_modules": list(ranks),
        "rank_pattern": ranks,
        "alpha_pattern": dict(ranks),
    }


def _adaptable(modules: Mapping[str, nn.Module], name: str) -> bool:
    owner, _, own = name.rpartition(".")
    kinds = {kind.__name__ for kind in type(modules[owner]).__mro__}
    return own == "weight" and bool(kinds & {"Linear", "Embedding", "Conv1D"})
