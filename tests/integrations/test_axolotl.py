"""The axolotl plugin: called as axolotl calls its plugins, it localizes the trainer by what the configuration says."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from localopt import Fixed, LayerTrace, LocalizedOptimizer, partition
from localopt.errors import InputError
from localopt.integrations.axolotl import LocalizePlugin, settings
from tests.integrations.test_transformers import arguments, localized, tokens
from tests.tiny_models import llama

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory")

# The hooks of axolotl's BasePlugin (axolotl-ai-cloud/axolotl, src/axolotl/integrations/base.py) that a run calls.
HOOKS = ("register", "get_input_args", "post_trainer_create")


def trace(folder: Path) -> Path:
    names = tuple(dict.fromkeys(partition(name for name, _ in llama().named_parameters()).values()))
    norms = torch.arange(1.0, len(names) + 1)
    LayerTrace(names, norms, torch.ones(len(names)), {"partition": "sublayer"}).save(folder / "trace.safetensors")
    return folder / "trace.safetensors"


def trained(folder: Path, config: dict[str, Any]) -> LocalizedOptimizer:
    module, _, name = "localopt.integrations.axolotl.LocalizePlugin".rpartition(".")
    plugin = getattr(importlib.import_module(module), name)()  # as axolotl loads what stands under `plugins:`
    plugin.register(config)
    run = Trainer(llama(), arguments(folder), train_dataset=tokens())
    plugin.post_trainer_create(config, run)
    run.train()
    return localized(run)


def test_it_has_the_hooks_that_axolotl_calls() -> None:
    assert all(callable(getattr(LocalizePlugin(), hook)) for hook in HOOKS)


def test_without_a_trace_every_layer_trains_and_decays_selectively(tmp_path: Path) -> None:
    optimizer = trained(tmp_path, {"localopt": None})
    assert optimizer.report().share_updated == 1
    assert any(optimizer.report().anchor_shares or ())


def test_a_trace_and_an_anchor_decay_come_from_the_configuration(tmp_path: Path) -> None:
    path = trace(tmp_path)
    optimizer = trained(tmp_path, {"localopt": {"trace": str(path), "anchor_decay": 100}})
    assert isinstance(optimizer.policy, Fixed)
    assert set(optimizer.report().updated) == {n for n, s in optimizer.policy.scales.items() if s}
    assert optimizer.anchor_decay.strength == 100


def test_rates_scale_with_the_trace(tmp_path: Path) -> None:
    policy, options = settings({"trace": str(trace(tmp_path)), "rates": True, "layers": "sublayer"})
    assert isinstance(policy, Fixed)
    assert len(set(policy.scales.values())) > 2
    assert options == {"layers": "sublayer"}


def test_a_run_of_adapters_takes_a_trace_of_the_whole_model_when_it_says_so(tmp_path: Path) -> None:
    policy, _ = settings({"trace": str(trace(tmp_path)), "partial": True})
    assert isinstance(policy, Fixed)
    policy.bind(["model.layers.0.mlp"], torch.device("cpu"))
    policy, _ = settings({"trace": str(trace(tmp_path))})
    with pytest.raises(ValueError, match="partial=True"):
        policy.bind(["model.layers.0.mlp"], torch.device("cpu"))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"anchor": 1}, "does not know anchor; it takes trace"),
        ({"rates": True}, "rates is about a trace: give localopt.trace too"),
    ],
)
def test_a_configuration_that_cannot_be_meant_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings(given)


def test_the_schema_that_axolotl_merges_takes_the_plugins_part() -> None:
    module, _, name = LocalizePlugin().get_input_args().rpartition(".")
    schema = getattr(importlib.import_module(module), name)
    assert schema(localopt={"anchor_decay": 100}).localopt == {"anchor_decay": 100}
    assert schema().localopt is None
