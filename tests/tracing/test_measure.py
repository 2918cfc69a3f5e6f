"""Measuring: one gradient alive at a time, and a model that comes back as it was lent."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from localopt.tracing.trace import trace_layers
from tests import tiny_models


class Interrupted(Exception):
    pass


def interrupted(data: list[Any]) -> Iterator[Any]:
    yield from data
    raise Interrupted


def state_of(model: nn.Module) -> dict[str, Any]:
    return {
        "modes": {name: module.training for name, module in model.named_modules()},
        "required": {name: p.requires_grad for name, p in model.named_parameters()},
        "gradients": {name: id(p.grad) if p.grad is not None else None for name, p in model.named_parameters()},
        "hooks": {name: list((p._post_accumulate_grad_hooks or {}).values()) for name, p in model.named_parameters()},
        "module hooks": {name: (dict(m._forward_hooks), dict(m._backward_hooks)) for name, m in model.named_modules()},
        "checkpointing": {
            name: (m.gradient_checkpointing, getattr(m, "_gradient_checkpointing_func", None))
            for name, m in model.named_modules()
            if hasattr(m, "gradient_checkpointing")
        },
        "random": torch.get_rng_state().tolist(),
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
    }


def busy_model() -> Any:
    """A model in the middle of something: part in training mode, part frozen, with gradients and a hook."""
    model = tiny_models.gpt2().train()
    model.transformer.h[1].eval()
    model.transformer.wpe.requires_grad_(False)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    for p in list(model.parameters())[::2]:
        p.grad = torch.randn_like(p)
    model.transformer.ln_f.weight.register_post_accumulate_grad_hook(lambda p: p.data.zero_())
    return model


def untouched(data: list[Any]) -> list[Any]:
    return data


@pytest.mark.parametrize(
    ("probe", "reference", "raised"),
    [
        (untouched, untouched, None),
        (interrupted, untouched, Interrupted),
        (untouched, interrupted, Interrupted),
        (lambda data: [*data, {"input_ids": [1]}], untouched, ValueError),
    ],
    ids=["all went well", "the probe raised", "the reference raised", "an example has no labels"],
)
@pytest.mark.parametrize("average", ["norms", "gradients"])
def test_the_model_comes_back_as_it_was(
    probe: Callable[..., Any], reference: Callable[..., Any], raised: type[Exception] | None, average: Any
) -> None:
    model, data = busy_model(), tiny_models.examples(2)
    values = copy.deepcopy(model.state_dict())
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    before = state_of(model)
    if raised:
        with pytest.raises(raised):
            trace_layers(model, probe(data), reference(data), average=average)
    else:
        trace_layers(model, data, data, average=average)
    assert state_of(model) == before
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        assert gradient is None or torch.equal(p.grad, gradient)


def test_a_model_that_raises_comes_back_as_it_was() -> None:
    model, data = busy_model(), tiny_models.examples(2)

    def fail(gradient: Tensor) -> None:
        raise Interrupted

    model.transformer.h[0].mlp.c_fc.weight.register_hook(fail)
    before = state_of(model)
    with pytest.raises(Interrupted):
        trace_layers(model, data, data)
    assert state_of(model) == before


def test_random_numbers_drawn_while_tracing_are_given_back() -> None:
    model, data = tiny_models.llama(), tiny_models.examples(2)
    before = torch.get_rng_state()
    trace_layers(model, ({**example} for example in data if torch.rand(()) >= 0), data)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_is_off() -> None:
    model, data = tiny_models.gpt2().train(), tiny_models.examples(2)
    first, second = (trace_layers(model, data, data).probe_norms for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(trace_layers(model.eval(), data, data).probe_norms, first)


def test_the_caller_may_have_switched_gradients_off() -> None:
    model, data = tiny_models.llama(), tiny_models.examples(1)
    expected = trace_layers(model, data, data).probe_norms
    with torch.no_grad():
        assert torch.equal(trace_layers(model, data, data).probe_norms, expected)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        assert torch.equal(trace_layers(model, data, data).probe_norms.clone(), expected)


def gradients_found_at_each_arrival(model: nn.Module, run: Callable[[], Any]) -> list[int]:
    parameters, found = list(model.parameters()), []
    handles = [p.register_hook(lambda _: found.append(sum(q.grad is not None for q in parameters))) for p in parameters]
    run()
    for handle in handles:
        handle.remove()
    return found


def test_no_gradient_is_alive_when_the_next_one_arrives() -> None:
    model, data = tiny_models.llama(), tiny_models.examples(3)
    rows = {key: value[None] for key, value in data[0].items()}
    plain = gradients_found_at_each_arrival(model, lambda: model(**rows).loss.backward())
    assert max(plain) == len(plain) - 1  # what an ordinary backward pass does
    model.zero_grad()
    streamed = gradients_found_at_each_arrival(model, lambda: trace_layers(model, data, data))
    assert len(streamed) == 6 * len(plain)
    assert max(streamed) == 0


def test_gradients_of_the_caller_do_not_mix_with_those_measured() -> None:
    model, data = tiny_models.llama(), tiny_models.examples(1)
    expected = trace_layers(model, data, data).probe_norms
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0)
    assert torch.equal(trace_layers(model, data, data).probe_norms, expected)


def test_an_optimizer_in_the_backward_pass_does_not_step_while_tracing() -> None:
    model, data = tiny_models.llama(), tiny_models.examples(1)
    weight = model.lm_head.weight
    optimizer = torch.optim.SGD([weight], lr=1.0)
    weight.register_post_accumulate_grad_hook(lambda _: optimizer.step())
    before = weight.detach().clone()
    trace_layers(model, data, data)
    assert torch.equal(weight, before)
    model(**{key: value[None] for key, value in data[0].items()}).loss.backward()
    assert not torch.equal(weight, before)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("build", [tiny_models.llama, tiny_models.gpt2, tiny_models.t5])
def test_gradient_checkpointing_of_a_hugging_face_model_changes_nothing(
    build: Callable[[], Any], reentrant: bool
) -> None:
    model, data = build().train(), tiny_models.examples(2)
    expected = trace_layers(model, data, data)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    found = trace_layers(model, data, data)
    assert torch.equal(found.probe_norms, expected.probe_norms)


class Looped(nn.Module):
    """One weight in several checkpointed segments, whatever the mode."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.first, self.shared, self.reentrant = nn.Linear(3, 3), nn.Linear(3, 3), reentrant

    def forward(self, values: Tensor) -> Tensor:
        values = self.first(values)
        for _ in range(3):
            if self.reentrant is None:
                values = self.shared(values).tanh()
            else:
                values = checkpoint(lambda v: self.shared(v).tanh(), values, use_reentrant=self.reentrant)
        return values


def test_a_weight_shared_across_checkpointed_segments_is_whole_or_refused() -> None:
    plain, data = Looped(None), [torch.randn(2, 3)]

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).sum()

    expected = trace_layers(plain, data, data, loss=loss).probe_norms
    for reentrant in (False, True):
        model = Looped(reentrant)
        model.load_state_dict(plain.state_dict())
        if reentrant:
            with pytest.raises(ValueError, match=r"gradient of shared\.bias, shared\.weight came in parts.*Reentrant"):
                trace_layers(model, data, data, loss=loss)
            assert all(p.grad is None and not p._post_accumulate_grad_hooks for p in model.parameters())
        else:
            torch.testing.assert_close(trace_layers(model, data, data, loss=loss).probe_norms, expected)


@pytest.fixture
def process_group(tmp_path: Any) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_wrapped_models_are_refused() -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    data = [torch.ones(1, 2)]
    wrapped = nn.parallel.DistributedDataParallel(nn.Linear(2, 2))
    sharded = nn.Sequential(nn.Linear(2, 2))
    fully_shard(sharded[0], mesh=torch.distributed.init_device_mesh("cpu", (1,)))
    assert isinstance(sharded[0].weight, DTensor)
    for model, kind in ((wrapped, "the model is a DistributedDataParallel"), (sharded, "0 is a")):
        with pytest.raises(ValueError, match=f"cannot trace a model that is already wrapped .{kind}.*afterwards"):
            trace_layers(model, data, data)
