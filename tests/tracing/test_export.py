"""A trace's choice, written for other trainers, selects there exactly the parameters it selects here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml  # type: ignore[import-untyped]
from torch import nn

from localopt import LayerTrace, partition
from localopt.errors import InputError
from localopt.tracing.export import Format
from tests.tiny_models import gpt2, llama, lora, t5

MODELS: dict[str, Callable[[], Any]] = {"llama": lambda: llama(12), "gpt2": gpt2, "t5": t5, "lora": lora}
each_model = pytest.mark.parametrize("model", MODELS)


def traced(model: nn.Module) -> LayerTrace:
    """A trace with norms made up: what is exported does not depend on where they come from."""
    layer_of = partition(name for name, _ in model.named_parameters())
    layers = tuple(dict.fromkeys(layer_of[name] for name, p in model.named_parameters() if p.requires_grad))
    probe = torch.rand(len(layers), generator=torch.Generator().manual_seed(0)) + 0.1
    return LayerTrace(layers, probe, torch.ones(len(layers)), {"partition": "sublayer"})


def axolotl_pattern(pattern: str) -> re.Pattern[str]:
    """What axolotl compiles a pattern to: periods are literal."""
    return re.compile(re.sub(r"\.(?!\+)", "\\.", pattern))


@each_model
@pytest.mark.parametrize("read", [re.compile, axolotl_pattern])
def test_the_patterns_select_exactly_the_parameters_freeze_leaves(
    model: str, read: Callable[[str], re.Pattern[str]], tmp_path: Path
) -> None:
    built = MODELS[model]()
    trace = traced(built)
    trace.export(tmp_path / "train.yaml", built)
    patterns = [
        read(pattern) for pattern in yaml.safe_load((tmp_path / "train.yaml").read_text())["unfrozen_parameters"]
    ]
    selected = [name for name, _ in built.named_parameters() if any(pattern.match(name) for pattern in patterns)]
    assert selected == trace.freeze(built)
    assert 0 < len(selected) < len(list(built.named_parameters()))


@each_model
def test_every_parameter_has_one_multiplier_that_of_its_layer(model: str, tmp_path: Path) -> None:
    built = MODELS[model]()
    trace = traced(built)
    trace.export(tmp_path / "rates.json", built, "multipliers")
    written = json.loads((tmp_path / "rates.json").read_text())["multipliers"]
    scales = trace.adaptive_learning_rates().scales
    layer_of = partition(name for name, _ in built.named_parameters())
    for name, parameter in built.named_parameters():
        expected = [scales[layer_of[name]]] if parameter.requires_grad else []
        assert [factor for pattern, factor in written.items() if re.match(pattern, name)] == expected


@pytest.mark.parametrize("model", ["llama", "gpt2", "t5"])
def test_axolotl_gives_every_matrix_the_rate_of_its_layer(model: str, tmp_path: Path) -> None:
    built = MODELS[model]()
    trace = traced(built)
    trace.export(tmp_path / "rates.yaml", built, "lr_groups", lr=1e-4)
    written = yaml.safe_load((tmp_path / "rates.yaml").read_text())
    scales = trace.adaptive_learning_rates().scales
    layer_of = partition(name for name, _ in built.named_parameters())
    assert written["learning_rate"] == 1e-4
    groups = {module: group["lr"] for group in written["lr_groups"] for module in group["modules"]}
    for name, parameter in built.named_parameters():
        if parameter.dim() > 1 and "embed_tokens" not in name and "lm_head" not in name:
            first = next(module for module in groups if module in name)  # axolotl takes the first found in the name
            assert groups[first] == 1e-4 * scales[layer_of[name]]
    if model == "llama":
        slower = min(scales["model.embed_tokens"], scales["lm_head"])
        assert written["embedding_lr"] == 1e-4 * slower
        assert not any("embed" in module or "lm_head" in module for module in groups)


def test_an_embedding_at_rate_zero_cannot_be_said_to_axolotl(tmp_path: Path) -> None:
    built = llama()
    trace = traced(built)
    norms = torch.where(torch.arange(len(trace.layers)) == 0, 0.0, trace.probe_norms)
    silent = LayerTrace(trace.layers, norms, trace.reference_norms, trace.metadata)
    assert trace.layers[0] == "model.embed_tokens"
    with pytest.raises(InputError, match=r"embed_tokens\.weight.* rate 0.*unfrozen_parameters"):
        silent.export(tmp_path / "rates.yaml", built, "lr_groups", lr=1e-4)
    assert not (tmp_path / "rates.yaml").exists()


@pytest.mark.parametrize("model", ["llama", "gpt2", "t5"])
def test_peft_puts_adapters_into_exactly_the_chosen_matrices(model: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    built = MODELS[model]()
    trace = traced(built)
    trace.export(tmp_path / "lora.json", built, "peft", rank=4)
    written = json.loads((tmp_path / "lora.json").read_text())
    chosen, rates = trace.frozen_parameters().scales, trace.adaptive_learning_rates().scales
    layer_of = partition(name for name, _ in built.named_parameters())
    matrices = {
        name.removesuffix(".weight"): layer_of[name]
        for name, parameter in built.named_parameters()
        if parameter.dim() > 1 and chosen[layer_of[name]]
    }
    full = {name: min(built.get_parameter(f"{name}.weight").shape) for name in matrices}
    adapted = peft.get_peft_model(built, peft.LoraConfig(**{k: v for k, v in written.items() if k != "peft_type"}))
    found = {
        name.removeprefix("base_model.model."): (module.r["default"], module.scaling["default"])
        for name, module in adapted.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }
    assert set(found) == set(matrices)
    assert {scaling for _, scaling in found.values()} == {1.0}
    by_rate = sorted((name for name in matrices if found[name][0] < full[name]), key=lambda name: rates[matrices[name]])
    assert [found[name][0] for name in by_rate] == sorted(found[name][0] for name in by_rate)
    assert len(by_rate) > len(matrices) / 2
    assert min(rank for rank, _ in found.values()) >= 1
    assert abs(sum(rank for rank, _ in found.values()) / len(found) - 4) < 0.5


def test_what_lora_cannot_adapt_is_named(tmp_path: Path) -> None:
    vector = nn.Sequential(nn.LayerNorm(4), nn.LayerNorm(4))
    with pytest.raises(InputError, match=r"no matrix is chosen.*unfrozen_parameters"):
        traced(vector).export(tmp_path / "lora.json", vector, "peft")
    filters = nn.Sequential(nn.Conv2d(1, 1, 3))
    with pytest.raises(InputError, match=r"no adapter for 0\.weight"):
        traced(filters).export(tmp_path / "lora.json", filters, "peft")
    adapted = lora()
    with pytest.raises(InputError, match="has adapters already"):
        traced(adapted).export(tmp_path / "lora.json", adapted, "peft")
    assert list(tmp_path.iterdir()) == []


def test_only_names_are_needed_of_the_model(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = llama()
    built = llama()
    for format in get_args(Format):
        lr = 1e-4 if format == "lr_groups" else None
        whole = traced(built).export(tmp_path / "whole.yaml", built, format, lr=lr)
        assert traced(shapes).export(tmp_path / "names.yaml", shapes, format, lr=lr) == whole
        assert yaml.safe_load((tmp_path / "names.yaml").read_text()) == whole


def test_what_cannot_be_exported_is_named(tmp_path: Path) -> None:
    built, path = llama(), tmp_path / "out.yaml"
    trace = traced(built)
    with pytest.raises(InputError, match="not 'toml'"):
        trace.export(path, built, "toml")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="lr is needed by lr_groups"):
        trace.export(path, built, "lr_groups")
    with pytest.raises(InputError, match="by no other format"):
        trace.export(path, built, lr=1e-4)
    with pytest.raises(InputError, match="peft alone knows it"):
        trace.export(path, built, rank=4)
    with pytest.raises(InputError, match="rank is at least 1"):
        trace.export(path, built, "peft", rank=0)
    with pytest.raises(ValueError, match="do not have the same layers"):
        trace.export(path, gpt2())
    with pytest.raises(InputError, match=r"no/such/out\.yaml: cannot be written"):
        trace.export(tmp_path / "no" / "such" / "out.yaml", built)
    assert not path.exists()
