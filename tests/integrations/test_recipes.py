"""The recipes of docs/guides/other-trainers.md, run as they stand there against stand-ins for the packages.

Each stand-in has the module, the names and the order of calls of the package's source (named beside it), and nothing
else: what is shown is that the recipe fits these, not that the package trains.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import AdamW, Optimizer
from transformers import Trainer

from localopt import LocalizedOptimizer
from tests.integrations.test_transformers import arguments, localized, tokens
from tests.test_docs import NOT_RUN, blocks
from tests.tiny_models import VOCABULARY, llama

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "other-trainers.md"
pytestmark = [pytest.mark.filterwarnings("ignore:.*pin_memory")]


def recipe(needs: str) -> str:
    [code] = [b.code for b in blocks(PAGE) if (found := NOT_RUN.search(b.options)) and found[1] == f"needs {needs}"]
    return code


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a stand-in where an import finds it."""

    def put(name: str, **contents: Any) -> None:
        parts = name.split(".")
        for i in range(1, len(parts)):
            monkeypatch.setitem(sys.modules, ".".join(parts[:i]), ModuleType(".".join(parts[:i])))
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)

    return put


def run(code: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), namespace)
    return namespace


def step(model: nn.Module, optimizer: Any) -> None:
    rows = torch.randint(VOCABULARY, (2, 6), generator=torch.Generator().manual_seed(0))
    model(input_ids=rows, labels=rows).loss.backward()
    optimizer.step()


def assert_decays(optimizer: LocalizedOptimizer) -> None:
    """It does what one does that was given nothing but an optimizer and a model."""
    assert optimizer.report().share_updated == 1
    assert optimizer.report().anchor_shares is not None


def test_llamafactory_by_callback(modules: Any, tmp_path: Path) -> None:
    made: list[Trainer] = []

    # hiyouga/LlamaFactory, src/llamafactory/train/tuner.py; its trainers are transformers'
    def run_exp(args: dict[str, Any] | None = None, callbacks: list[Any] | None = None) -> None:
        made.append(Trainer(llama(), arguments(tmp_path), train_dataset=tokens(), callbacks=callbacks))
        made[0].train()

    modules("llamafactory.train.tuner", run_exp=run_exp)
    run(recipe("LlamaFactory"))
    assert_decays(localized(made[0]))


def test_llamafactory_v1_by_optimizer_plugin(modules: Any) -> None:
    known: dict[str, Any] = {}

    # src/llamafactory/v1/plugins/trainer_plugins/optimizers/optimizer.py, and BaseTrainer._init_optimizer
    class OptimizerPlugin:
        def __init__(self, name: str) -> None:
            self.name = name

        def register(self) -> Any:
            def keep(function: Any) -> Any:
                known[self.name] = function
                return function

            return keep

        def __call__(self, model: nn.Module, config: Any) -> Any:
            return known[self.name](model, config)

    modules("llamafactory.v1.plugins.trainer_plugins.optimizers.optimizer", OptimizerPlugin=OptimizerPlugin)
    run(recipe("LlamaFactory v1"))
    model = llama()
    optimizer = OptimizerPlugin("localopt")(model, {"name": "localopt", "lr": 1e-3})
    assert isinstance(optimizer, LocalizedOptimizer)
    assert optimizer.param_groups[0]["lr"] == 1e-3
    step(model, optimizer)
    assert_decays(optimizer)


def test_ms_swift_by_a_class_of_its_map(modules: Any, tmp_path: Path) -> None:
    # modelscope/ms-swift, swift/optimizers/base.py
    class OptimizerCallback:
        def __init__(self, args: Any, trainer: Trainer) -> None:
            self.args, self.trainer = args, trainer

        def create_optimizer(self, model: Any = None) -> Optimizer:
            return Trainer.create_optimizer(self.trainer, **({} if model is None else {"model": model}))

    optimizers: dict[str, Any] = {}
    modules("swift.optimizers", OptimizerCallback=OptimizerCallback, optimizers_map=optimizers)
    run(recipe("ms-swift 4.1"))

    class SwiftTrainer(Trainer):
        def create_optimizer(self, model: Any = None) -> Any:
            return self.optimizer or optimizers["localopt"](self.args, self).create_optimizer(model)

    trainer = SwiftTrainer(llama(), arguments(tmp_path), train_dataset=tokens())
    trainer.train()
    assert_decays(localized(trainer))


def test_ms_swift_by_a_function_of_its_map(modules: Any, tmp_path: Path) -> None:
    optimizers: dict[str, Any] = {}
    modules("swift.plugin", optimizers_map=optimizers)  # swift/plugin/optimizer.py of version 3
    run(recipe("ms-swift 3"))
    model, args = llama(), arguments(tmp_path)
    pair = optimizers["localopt"](args, model, tokens())
    trainer = Trainer(model, args, train_dataset=tokens(), optimizers=pair)
    trainer.train()
    assert_decays(localized(trainer))


def test_torchtitan_by_a_container(modules: Any) -> None:
    # pytorch/torchtitan, torchtitan/components/optimizer.py
    class OptimizersContainer(Optimizer):
        def __init__(self, model_parts: list[nn.Module], optimizer_cls: Any, optimizer_kwargs: dict[str, Any]) -> None:
            self.model_parts = model_parts
            self.optimizers = [optimizer_cls(list(part.parameters()), **optimizer_kwargs) for part in model_parts]
            Optimizer.__init__(self, [p for part in model_parts for p in part.parameters()], optimizer_kwargs)

        def step(self, *args: Any, **kwargs: Any) -> None:
            for optimizer in self.optimizers:
                optimizer.step(*args, **kwargs)

        def state_dict(self) -> dict[str, Any]:
            options = StateDictOptions(flatten_optimizer_state_dict=True)
            pairs = zip(self.model_parts, self.optimizers, strict=True)
            states = [get_optimizer_state_dict(part, one, options=options) for part, one in pairs]
            return {key: value for state in states for key, value in state.items()}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            options = StateDictOptions(flatten_optimizer_state_dict=True)
            for part, optimizer in zip(self.model_parts, self.optimizers, strict=True):
                set_optimizer_state_dict(part, optimizer, state_dict, options=options)

    modules("torchtitan.components.optimizer", OptimizersContainer=OptimizersContainer)
    container = run(recipe("torchtitan"))["LocalizedContainer"]
    torch.manual_seed(0)
    model = llama()
    whole = container([model], AdamW, {"lr": 1e-2})
    step(model, whole)
    [inner] = whole.optimizers
    assert_decays(inner)
    saved = whole.state_dict()
    trained = [name for name, parameter in model.named_parameters() if inner.state.get(parameter)]
    assert {key.removeprefix("state.").removesuffix(".exp_avg") for key in saved if key.endswith(".exp_avg")} == set(
        trained
    )
