"""A trace of a module serves a model that holds it, and the other way round, where one prefix tells which is which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from localopt import Fixed, GainOverDamage, LayerTrace, LocalizedOptimizer, RelativeTo, partition
from localopt.policies import AboveMean
from localopt.policies.matching import matched
from tests import tiny_models


class Task(nn.Module):
    """What users of Lightning and the like write: the model is an attribute, and the task is what is trained."""

    def __init__(self, net: nn.Module, head: bool = False) -> None:
        super().__init__()
        self.net = net
        if head:
            self.head = nn.Linear(2, 2)

    def forward(self, *arguments: Any, **options: Any) -> Any:
        return self.net(*arguments, **options)


def layers_of(model: nn.Module) -> tuple[str, ...]:
    return tuple(dict.fromkeys(partition(name for name, _ in model.named_parameters()).values()))


def trace_of(model: nn.Module, **metadata: Any) -> LayerTrace:
    names = layers_of(model)
    return LayerTrace(
        names, torch.arange(1.0, len(names) + 1), torch.ones(len(names)), {"partition": "sublayer"} | metadata
    )


def step(model: nn.Module, policy: Any, parameters: Any = None) -> LocalizedOptimizer:
    optimizer = LocalizedOptimizer(AdamW(parameters or model.parameters(), lr=0.01), model, policy)
    tokens = torch.randint(tiny_models.VOCABULARY, (2, 6), generator=torch.Generator().manual_seed(0))
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    return optimizer


def llama() -> nn.Module:
    torch.manual_seed(0)
    return tiny_models.llama()


POLICIES = {
    "frozen": lambda trace: trace.frozen_parameters(),
    "rates": lambda trace: trace.adaptive_learning_rates(),
    "relative": lambda trace: RelativeTo(trace, AboveMean()),
}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_trace_of_a_part_trains_the_whole_as_it_trains_the_part(policy: str) -> None:
    part, task = llama(), Task(llama())
    trace = trace_of(part)
    alone, inside = step(part, POLICIES[policy](trace)), step(task, POLICIES[policy](trace))
    assert inside.report().names == tuple(f"net.{name}" for name in alone.report().names)
    assert inside.report().scales == alone.report().scales
    assert all(map(torch.equal, part.parameters(), task.parameters()))


def test_damages_are_found_under_the_prefix_too() -> None:
    task = Task(llama())
    optimizer = step(task, GainOverDamage(trace_of(task.net, score="gains")))
    assert 0 < len(optimizer.report().updated) < len(optimizer.report().names)


def test_a_trace_of_the_whole_trains_a_part_of_it() -> None:
    task = Task(llama())
    trace = trace_of(task)
    report = step(task.net, trace.frozen_parameters()).report()
    assert {f"net.{name}" for name in report.updated} == {n for n, s in trace.frozen_parameters().scales.items() if s}


def test_a_trace_of_a_part_freezes_groups_and_exports_the_whole_by_its_own_names(tmp_path: Path) -> None:
    task = Task(llama())
    trace = trace_of(task.net)
    names = {f"net.{name}" for name in trace.freeze(llama())}
    patterns = trace.export(tmp_path / "train.yaml", task)["unfrozen_parameters"]
    assert {pattern.strip("^$") for pattern in patterns} == names
    parameters = dict(task.named_parameters())
    grouped = {id(p) for group in trace.param_groups(task, lr=0.1) for p in group["params"]}
    assert grouped == {id(parameters[name]) for name in names}
    assert set(trace.freeze(task)) == names


# -- adapters, and optimizers of some layers --------------------------------------------------------------------------


def adapted(where: str) -> tuple[nn.Module, list[Tensor]]:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = peft.get_peft_model(tiny_models.llama(), config)
    model = Task(model) if where == "inside" else model
    return model, [p for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("where", ["alone", "inside"])
def test_a_trace_of_the_bare_model_trains_its_adapters_when_asked(where: str) -> None:
    trace = trace_of(tiny_models.llama())
    chosen = {name for name, scale in trace.frozen_parameters().scales.items() if scale}
    model, parameters = adapted(where)
    report = step(model, trace.frozen_parameters(partial=True), parameters).report()
    known = matched(trace.layers, report.names).known_as
    assert {known[name] for name in report.updated} == chosen & set(known.values())
    assert 0 < len(report.updated) < len(report.names)
    rates = trace.adaptive_learning_rates().scales
    model, parameters = adapted(where)
    report = step(model, trace.adaptive_learning_rates(partial=True), parameters).report()
    assert report.scales == pytest.approx([rates[known[name]] for name in report.names])


def test_an_optimizer_of_some_layers_is_served_only_when_asked() -> None:
    trace = trace_of(llama())
    model, parameters = adapted("alone")
    with pytest.raises(ValueError, match=r"Scales without a layer: .*lm_head.*ask with partial=True"):
        LocalizedOptimizer(AdamW(parameters), model, trace.frozen_parameters())
    with pytest.raises(ValueError, match=r"Layers without a scale: \['lm_head'\]"):
        Fixed({"a": 1.0}, partial=True).bind(["a", "lm_head"], torch.device("cpu"))


# -- where it is not certain ------------------------------------------------------------------------------------------


def test_layers_beside_the_part_are_named_with_the_module_to_pass() -> None:
    task = Task(llama(), head=True)
    trace = trace_of(task.net)
    with pytest.raises(ValueError, match=r"without a scale: \['head'\].*lie in the module net: pass that one"):
        LocalizedOptimizer(AdamW(task.parameters()), task, trace.frozen_parameters())
    with pytest.raises(ValueError, match=r"trace has no layers \['head'\].*lie in the module net: pass that one"):
        LocalizedOptimizer(AdamW(task.parameters()), task, RelativeTo(trace, AboveMean()))
    for refused in (trace.freeze, lambda model: trace.param_groups(model, lr=0.1)):
        with pytest.raises(ValueError, match=r"Only in the model: head\. The part net of the Task has them: pass that"):
            refused(task)
    assert all(parameter.requires_grad for parameter in task.parameters())
    trace.freeze(task.net)


def test_a_part_of_another_shape_in_the_whole_is_named() -> None:
    several = nn.Module()
    several.nets = nn.ModuleList([llama()])  # so that its blocks are the elements of this list
    with pytest.raises(ValueError, match=r"The part nets\.0 of the Module has them: pass that one as the model"):
        trace_of(llama()).freeze(several)


def test_two_parts_alike_are_not_guessed_between() -> None:
    both = nn.Module()
    both.teacher, both.student = llama(), llama()
    trace = trace_of(both)
    with pytest.raises(ValueError, match=r"any of student, teacher: pass the module that is meant"):
        LocalizedOptimizer(AdamW(both.student.parameters()), both.student, trace.frozen_parameters(partial=True))
    report = LocalizedOptimizer(AdamW(both.student.parameters()), both, trace.frozen_parameters(partial=True))
    assert "student" in repr(report._layout.names)


def test_parameters_that_a_module_itself_owns_match_under_its_name() -> None:
    linear, task = nn.Linear(2, 2), Task(nn.Linear(2, 2))
    assert layers_of(linear) == ("model",)
    assert matched(layers_of(linear), layers_of(task)).known_as == {"net": "model"}
    assert matched(layers_of(task), layers_of(linear)).known_as == {"model": "net"}


def test_the_same_names_are_the_same_layers_whatever_else_would_fit() -> None:
    assert matched(["a", "b.a"], ["a", "b.a"]).known_as == {"a": "a", "b.a": "b.a"}
    assert matched(["x.a", "a"], ["a"]).known_as == {"a": "a"}
    assert matched(["a"], ["b"]).known_as == {}
