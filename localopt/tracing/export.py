"""LayerTrace -> settings files of other trainers, so that what a trace chose can be trained where localopt is not.

- ``unfrozen_parameters`` (TGL + FP): the parameters to train, one pattern each, as axolotl and Spectrum write them.
- ``lr_groups`` (TGL + ALR): axolotl's learning rate for each group of parameters.
- ``multipliers`` (TGL + ALR): a pattern for every parameter and what to multiply its learning rate with.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import yaml  # type: ignore[import-untyped]  # with transformers
from torch import nn

from localopt.errors import InputError, writing
from localopt.layers import Layers, partition

if TYPE_CHECKING:
    from localopt.tracing.layer_trace import LayerTrace

Format = Literal["unfrozen_parameters", "lr_groups", "multipliers"]

_EMBEDDINGS = ("embed_tokens", "lm_head")  # what axolotl gives its `embedding_lr` instead of a group's rate


def export(
    trace: LayerTrace,
    model: nn.Module,
    path: str | os.PathLike[str],
    format: Format,
    *,
    lr: float | None = None,
    layers: Layers | None = None,
) -> dict[str, Any]:
    """Write settings as YAML (or JSON, where the path ends so) and return them.

    Args:
        trace: says which layers to train, or how fast.
        model: gives the names of the parameters; those that require no gradient are left out.
        path: the file to write.
        format: ``"unfrozen_parameters"``, ``"lr_groups"`` or ``"multipliers"``, see the module.
        lr: the base learning rate; ``"lr_groups"`` alone needs it, since axolotl takes rates, not factors.
        layers: the function that named the layers, if the trace was taken with one.

    Raises:
        InputError: an unknown format, a missing ``lr``, settings axolotl cannot express, or the file cannot be written.
        ValueError: the model's layers are not those of the trace.
    """
    if format not in get_args(Format):
        raise InputError(f"format must be one of {', '.join(get_args(Format))}, not {format!r}")
    if (format == "lr_groups") != (lr is not None):
        raise InputError(f"format {format!r} with lr={lr}: lr is needed by lr_groups and by no other format")
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    layer_of = partition((name for name, _ in model.named_parameters()), trace.partition(layers))
    layer_of = {name: layer_of[name] for name in names}
    trace.check(layer_of.values())
    settings: dict[str, Any]
    if format == "unfrozen_parameters":
        settings = {format: unfrozen_parameters(trace.frozen_parameters().scales, layer_of)}
    elif format == "multipliers":
        settings = {format: multipliers(trace.adaptive_learning_rates().scales, layer_of)}
    else:
        assert lr is not None
        matrices = {name: layer_of[name] for name in names if model.get_parameter(name).dim() > 1}
        settings = lr_groups(trace.adaptive_learning_rates().scales, matrices, lr)
    json_wanted = Path(path).suffix == ".json"
    text = json.dumps(settings, indent=2) if json_wanted else yaml.safe_dump(settings, sort_keys=False, width=200)
    with writing(path):
        Path(path).write_text(text, encoding="utf-8")
    return settings


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
