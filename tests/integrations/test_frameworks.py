"""Training frameworks take a localized optimizer as they take any other: torch's own parts, accelerate, Trainer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from localopt import AboveMean, LocalizedOptimizer
from localopt.policies import Every, Policy, RandomLayers, Smoothed
from tests.laws import assert_same_bits

POLICIES: dict[str, Callable[[], Policy]] = {
    "AboveMean": AboveMean,
    "Smoothed": lambda: Smoothed(AboveMean(), 0.9),
    "RandomLayers": lambda: RandomLayers(2, every=2),
    "Every": lambda: Every(AboveMean(), 3),
}
each_policy = pytest.mark.parametrize("policy", POLICIES)
each_kernel = pytest.mark.parametrize("kernel", ["fused", "foreach"])


def mlp() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))


def halving(optimizer: Optimizer) -> LambdaLR:
    return LambdaLR(optimizer, lambda step: 0.5**step)


# -- GradScaler -------------------------------------------------------------------------------------------------------


def scaled_step(model: nn.Module, optimizer: Optimizer, scaler: Any, *, overflow: bool = False) -> None:
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.float16):
        loss = model(torch.ones(8, 4)).float().square().mean()
    scaler.scale(loss * (1e38 if overflow else 1.0)).backward()
    scaler.step(optimizer)
    scaler.update()


@each_kernel
def test_mixed_precision_with_a_grad_scaler_steps_as_the_bare_optimizer(kernel: str) -> None:
    model, twin = mlp(), mlp()
    bare = AdamW(twin.parameters(), lr=0.1, **{kernel: True})
    inner = AdamW(model.parameters(), lr=0.1, **{kernel: True})
    optimizer = LocalizedOptimizer(inner, model, torch.ones_like)
    scalers = [torch.amp.GradScaler("cpu", init_scale=1024.0) for _ in range(2)]
    for step in range(4):
        scaled_step(model, optimizer, scalers[0], overflow=step == 1)
        scaled_step(twin, bare, scalers[1], overflow=step == 1)
    assert scalers[0].get_scale() == scalers[1].get_scale() == 512.0
    assert_same_bits(model, twin, kernel)


@each_kernel
def test_a_step_that_overflows_is_skipped_once_and_forgotten(kernel: str) -> None:
    model = mlp()
    inner = AdamW(model.parameters(), lr=0.1, **{kernel: True})
    optimizer = LocalizedOptimizer(inner, model, Smoothed(AboveMean(), 0.9))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaled_step(model, optimizer, scaler)
    before, state = copy.deepcopy(model), copy.deepcopy(optimizer.state_dict())
    scaled_step(model, optimizer, scaler, overflow=True)
    assert_same_bits(model, before, "after the overflow")
    torch.testing.assert_close(optimizer.state_dict()["state"], state["state"], rtol=0, atol=0)
    assert optimizer.state_dict()["param_groups"] == state["param_groups"]
    scaled_step(model, optimizer, scaler)
    assert optimizer.report().updated
    assert scaler.get_scale() == 512.0


@each_kernel
def test_norms_are_taken_of_unscaled_gradients(kernel: str) -> None:
    model = mlp()
    inner = AdamW(model.parameters(), lr=0.1, **{kernel: True})
    optimizer = LocalizedOptimizer(inner, model)
    scaled_step(model, optimizer, torch.amp.GradScaler("cpu", init_scale=2.0**14))
    norms = optimizer.report().norms
    model = mlp()
    scaled_step(model, LocalizedOptimizer(AdamW(model.parameters()), model), torch.amp.GradScaler(enabled=False))
    expected = [torch.cat([p.grad.flatten() for p in model[i].parameters()]).norm().item() for i in (0, 2)]
    assert norms == pytest.approx(expected, rel=1e-2)


# -- averaged weights and compilation ---------------------------------------------------------------------------------


def plain_step(model: nn.Module, step: Callable[[], object], number: int) -> None:
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(number))
    model.zero_grad()
    model(inputs).square().mean().backward()
    step()


def test_averaged_weights_are_the_mean_over_the_steps_frozen_layers_included() -> None:
    model = mlp()
    averaged = AveragedModel(model)
    optimizer = LocalizedOptimizer(AdamW(model.parameters(), lr=0.1), model, AboveMean())
    seen = []
    for number in range(4):
        plain_step(model, optimizer.step, number)
        averaged.update_parameters(model)
        seen.append([parameter.detach().clone() for parameter in model.parameters()])
    assert optimizer.report().share_updated < 1
    for mean, *values in zip(averaged.module.parameters(), *seen, strict=True):
        torch.testing.assert_close(mean.detach(), torch.stack(values).mean(0))


def test_a_compiled_model_is_trained_as_the_model_itself() -> None:
    model, twin = mlp(), mlp()
    compiled = torch.compile(model, backend="aot_eager")
    assert isinstance(compiled, nn.Module)
    optimizer = LocalizedOptimizer(AdamW(compiled.parameters(), lr=0.1), compiled)
    other = LocalizedOptimizer(AdamW(twin.parameters(), lr=0.1), twin)
    for number in range(3):
        plain_step(compiled, optimizer.step, number)
        plain_step(twin, other.step, number)
    assert optimizer.report() == other.report()
    assert_same_bits(model, twin, "compiled")


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_step_does_what_the_step_does() -> None:
    model, twin = mlp(), mlp()
    optimizer = LocalizedOptimizer(AdamW(model.parameters(), lr=0.1, fused=True), model)
    other = LocalizedOptimizer(AdamW(twin.parameters(), lr=0.1, fused=True), twin)
    step = torch.compile(optimizer.step, backend="eager")
    for number in range(2):
        plain_step(model, step, number)
        plain_step(twin, other.step, number)
    assert optimizer.report() == other.report()
    assert_same_bits(model, twin, "compiled step")


# -- accelerate -------------------------------------------------------------------------------------------------------


def prepared(policy: str) -> tuple[Accelerator, Any, Any, Any, LocalizedOptimizer]:
    accelerator = Accelerator(cpu=True)
    model = mlp()
    localized = LocalizedOptimizer(AdamW(model.parameters(), lr=0.1), model, POLICIES[policy]())
    return accelerator, *accelerator.prepare(model, localized, halving(localized)), localized


def accelerated_steps(accelerator: Accelerator, model: Any, optimizer: Any, scheduler: Any, steps: range) -> None:
    for step in steps:
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        accelerator.backward(model(inputs).square().mean())
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


@each_policy
def test_accelerate_saves_and_resumes_bit_for_bit(policy: str, tmp_path: Path) -> None:
    *whole, _ = prepared(policy)
    accelerated_steps(*whole, range(6))
    *stopped, _ = prepared(policy)
    accelerated_steps(*stopped, range(3))
    stopped[0].save_state(str(tmp_path))
    *resumed, _ = prepared(policy)
    resumed[0].load_state(str(tmp_path))
    accelerated_steps(*resumed, range(3, 6))
    assert_same_bits(resumed[1], whole[1], policy)
    assert resumed[2].param_groups[0]["lr"] == whole[2].param_groups[0]["lr"] == 0.1 * 0.5**6
    torch.testing.assert_close(resumed[2].state_dict()["state"], whole[2].state_dict()["state"], rtol=0, atol=0)
    assert resumed[2].state_dict()["param_groups"] == whole[2].state_dict()["param_groups"]


@pytest.fixture
def _own_mixed_precision() -> Iterator[None]:
    """Accelerate keeps one precision a process, so the test that changes it puts things back."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("_own_mixed_precision")
def test_accelerate_in_bfloat16_steps_as_with_the_bare_optimizer() -> None:
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    model, twin = mlp(), mlp()
    localized = LocalizedOptimizer(AdamW(model.parameters(), lr=0.1), model, torch.ones_like)
    bare = AdamW(twin.parameters(), lr=0.1)
    for trained, optimizer in ((model, localized), (twin, bare)):
        accelerated_steps(accelerator, *accelerator.prepare(trained, optimizer, halving(optimizer)), range(3))
    assert_same_bits(model, twin, "bf16")


@each_kernel
@pytest.mark.usefixtures("_own_mixed_precision")
def test_accelerate_skips_the_step_its_scaler_finds_overflown(kernel: str) -> None:
    Accelerator(cpu=True)  # its fp16 needs a GPU; the optimizer and scaler it would use run here too
    model = mlp()
    policy = RandomLayers(1, every=1)
    localized = LocalizedOptimizer(AdamW(model.parameters(), lr=0.1, **{kernel: True}), model, policy)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = AcceleratedOptimizer(localized, scaler=scaler)
    skipped, untouched = [], []
    for step in range(3):
        before = copy.deepcopy(model)
        optimizer.zero_grad()
        loss = model(torch.ones(8, 4)).square().mean() * (1e38 if step == 1 else 1.0)
        scaler.scale(loss).backward()
        optimizer.step()
        skipped.append(optimizer.step_was_skipped)
        same = zip(model.parameters(), before.parameters(), strict=True)
        untouched.append(all(torch.equal(now, then) for now, then in same))
    assert skipped == untouched == [False, True, False]
    assert policy.state_dict()["steps"].item() == 2
    assert scaler.get_scale() == 512.0


def test_accelerate_accumulates_gradients_over_several_batches_into_one_step() -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = mlp()
    policy = RandomLayers(1, every=1)
    localized = LocalizedOptimizer(AdamW(model.parameters(), lr=0.1), model, policy)
    batches = DataLoader([torch.ones(4)] * 8, batch_size=2)
    prepared_model, optimizer, loader = accelerator.prepare(model, localized, batches)
    for inputs in loader:
        with accelerator.accumulate(prepared_model):
            accelerator.backward(prepared_model(inputs).square().mean())
            optimizer.step()
            optimizer.zero_grad()
    assert policy.state_dict()["steps"].item() == 2


# -- transformers.Trainer ---------------------------------------------------------------------------------------------


def trainer(folder: Path, policy: str, seed: int) -> Trainer:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    tokens = torch.randint(16, (8, 6), generator=torch.Generator().manual_seed(0))
    optimizer = LocalizedOptimizer(AdamW(model.parameters(), lr=0.05), model, POLICIES[policy]())
    return Trainer(
        model,
        TrainingArguments(
            str(folder),
            max_steps=4,
            save_steps=2,
            per_device_train_batch_size=2,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            logging_steps=100,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in tokens],
        optimizers=(optimizer, halving(optimizer)),
    )


@pytest.mark.filterwarnings("ignore:.*pin_memory")
@pytest.mark.parametrize("policy", ["AboveMean", "Smoothed", "RandomLayers"])
def test_a_trainer_resumed_from_a_checkpoint_equals_an_uninterrupted_one(policy: str, tmp_path: Path) -> None:
    whole = trainer(tmp_path, policy, seed=0)
    whole.train()
    resumed = trainer(tmp_path, policy, seed=1)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 4
    assert_same_bits(resumed.model, whole.model, policy)
    optimizers = [run.optimizer.optimizer for run in (resumed, whole)]
    states = [optimizer.state_dict() for optimizer in optimizers]
    torch.testing.assert_close(states[0]["state"], states[1]["state"], rtol=0, atol=0)
    assert states[0]["param_groups"] == states[1]["param_groups"]
    assert 0 < optimizers[1].report().share_updated < 1
