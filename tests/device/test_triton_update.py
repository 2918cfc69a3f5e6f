"""The kernels that update all layers at once, in Triton's interpreter on a CPU, against one fused call a layer."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer

from localopt import AnchorDecay, LocalizedOptimizer
from localopt.steps import triton as kernels
from localopt.steps.triton.chunks import CHUNK
from tests.laws import INFOS, LAYERS, Scripted, assert_same_bits, fresh, give_gradients, option_sets, twins

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") != "1" or not kernels.available(), reason="needs triton, interpreted"
    ),
    pytest.mark.filterwarnings("ignore:.*freezes every layer"),
]
SCALES = [[1.0, 0.5, 0.0, 2.0], [0.3, 0.0, 1.0, 0.0], [0.3, 0.5, 1.0, 1.5]]
DECAYS = {
    "no decay": 0.0,
    "plain": 2.0,
    "cautious": AnchorDecay(2.0, "cautious"),
    "selective": AnchorDecay(0.7, "selective"),
}
Compare = Callable[..., tuple[LocalizedOptimizer, LocalizedOptimizer]]


@pytest.fixture(autouse=True)
def _device_route_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localopt.steps.fused._is_plain", lambda parameter: True)
    monkeypatch.setattr(kernels, "_said", set())


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was launched: the names of kernels' callers, in turn."""
    from localopt.steps.triton import update

    found: list[str] = []
    for name in ("triton_step", "triton_pull"):
        original = getattr(update, name)
        monkeypatch.setattr(update, name, lambda *a, n=name, f=original, **k: (found.append(n), f(*a, **k))[1])
    return found


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch, launched: list[str]) -> Compare:
    """Train one model with the kernels and an equal one by a fused call a layer; their weights and state agree."""

    def run(
        make: Callable[[Any], Optimizer],
        models: tuple[nn.Module, nn.Module],
        script: list[list[float]] = SCALES,
        rtol: float = 1e-5,
        **options: Any,
    ) -> tuple[LocalizedOptimizer, LocalizedOptimizer]:
        ours, theirs = (
            LocalizedOptimizer(make(m.parameters()), m, Scripted(script, False), layers=lambda n: n[0], **options)
            for m in models
        )
        for step in range(len(script)):
            give_gradients(*models)
            for optimizer, on in ((ours, "1"), (theirs, "0")):
                with monkeypatch.context() as patched:
                    patched.setenv("LOCALOPT_TRITON", on)
                    optimizer.step()
            for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
                torch.testing.assert_close(a, b, rtol=rtol, atol=rtol, msg=lambda m, s=step: f"step {s}: {m}")
        assert launched.count("triton_step") == len(script) * len(ours.param_groups)
        states = (ours.inner.state, theirs.inner.state)
        for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
            torch.testing.assert_close(dict(states[0][a]), dict(states[1][b]), rtol=rtol, atol=rtol)
        launched.clear()
        return ours, theirs

    return run


def pair(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    return model, copy.deepcopy(model)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD"])
def test_every_option_set_of_torch_steps_as_its_fused_kernels_do(name: str, compare: Compare) -> None:
    tried = 0
    for options in option_sets(INFOS[name], torch.float32):
        if not options.get("fused") or (options.get("momentum") and options.get("dampening")):
            continue  # dampening takes the other route
        model, _, twin, _ = twins(INFOS[name], options, torch.float32)
        make = INFOS[name].optim_cls
        compare(lambda p, m=make, o=options: m(p, **fresh(o)), (model, twin), max_grad_norm=0.5)
        tried += 1
    assert tried >= 5


@pytest.mark.parametrize(
    ("name", "decay"), [*(("AdamW", decay) for decay in DECAYS), ("SGD", "plain"), ("SGD", "cautious")]
)
def test_decay_toward_the_start_comes_with_the_step_or_by_one_call_after_it(
    name: str, decay: str, compare: Compare
) -> None:
    options = {"AdamW": {"lr": 0.1}, "SGD": {"lr": 0.1, "momentum": 0.9, "nesterov": True}}[name]
    model, _, twin, _ = twins(INFOS[name], {**options, "fused": True}, torch.float32)
    compare(
        lambda p: INFOS[name].optim_cls(p, fused=True, **options),
        (model, twin),
        anchor_decay=DECAYS[decay],
    )


class Odd(nn.Module):
    """Four layers whose tensors are empty, long, transposed and of sizes that are multiples of nothing."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        shapes: list[list[tuple[int, ...]]] = [[(CHUNK + 3,), (0, 5)], [(7, 11, 13)], [(), (1,)], [(129, 131)]]
        for layer, tensors in enumerate(shapes):
            module = nn.Module()
            for i, shape in enumerate(tensors):
                module.register_parameter(f"w{i}", nn.Parameter(torch.randn(shape).to(dtype)))
            self.add_module(str(layer), module)
        transposed = nn.Parameter(torch.randn(37, 41).to(dtype).t())
        self.get_submodule("1").register_parameter("t", transposed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("decay", ["plain", "selective"])
def test_tensors_of_any_size_and_layout(dtype: torch.dtype, decay: str, compare: Compare) -> None:
    rtol = 1e-5 if dtype is torch.float32 else 2**-6  # a bit of bfloat16's, which differs where a sum was near a tie
    make = lambda p: AdamW(p, lr=0.01, fused=True)  # noqa: E731
    models = pair(Odd(dtype))
    assert not models[1].get_parameter("1.t").is_contiguous()
    compare(make, models, SCALES[:2], rtol, anchor_decay=DECAYS[decay], max_grad_norm=1.0)


def test_gradients_laid_out_otherwise_are_brought_into_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALOPT_TRITON", "1")
    model, twin = pair(Odd(torch.float32))
    inner, bare = SGD(model.parameters(), lr=0.1, fused=True), SGD(twin.parameters(), lr=0.1, foreach=False)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        a.grad = b.grad = torch.randn(a.shape)
    localized(model, inner, [[1.0] * LAYERS]).step()
    bare.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_an_idle_layer_and_its_state_stay_as_they_are_to_the_bit(
    momentum: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCALOPT_TRITON", "1")
    for make in (lambda p: AdamW(p, lr=0.1, fused=True), lambda p: SGD(p, lr=0.1, momentum=momentum, fused=True)):
        model = pair(Odd(torch.float32))[0]
        optimizer = localized(
            model, make(model.parameters()), [[1.0] * 4, [1.0, 0.0, 1.0, 1.0]], anchor_decay=AnchorDecay(1.0)
        )
        give_gradients(model)
        optimizer.step()
        before, state = copy.deepcopy(model), copy.deepcopy(optimizer.inner.state_dict()["state"])
        give_gradients(model)
        optimizer.step()
        idle = [i for i, (name, _) in enumerate(model.named_parameters()) if name[0] == "1"]
        for i, (a, b) in enumerate(zip(model.parameters(), before.parameters(), strict=True)):
            assert torch.equal(a, b) == (i in idle or a.numel() == 0)
        for i in idle:
            now = optimizer.inner.state_dict()["state"]
            torch.testing.assert_close(now.get(i, {}), state.get(i, {}), rtol=0, atol=0)


def test_a_nan_changes_nothing_and_steps_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALOPT_TRITON", "1")
    model, inner, _, _ = twins(INFOS["AdamW"], {"lr": 0.1, "fused": True}, torch.float32)
    optimizer = localized(model, inner, [[1.0] * LAYERS] * 2)
    give_gradients(model)
    optimizer.step()
    before, state = copy.deepcopy(model), copy.deepcopy(inner.state_dict()["state"])
    model.layer(2)[0].grad[0, 0] = float("nan")  # type: ignore[index]
    optimizer.step()
    assert_same_bits(model, before, "after the NaN")
    torch.testing.assert_close(inner.state_dict()["state"], state, rtol=0, atol=0)
    assert optimizer.report().skipped_steps == 1


def test_a_tracked_layer_keeps_its_weights_to_the_bit_while_its_moments_move_on(compare: Compare) -> None:
    model, _, twin, _ = twins(INFOS["AdamW"], {"lr": 0.1, "fused": True}, torch.float32)
    before = [parameter.detach().clone() for parameter in model.layer(0)]
    script = [[0.0, 1.0, 1.0, 1.0]] * 2
    ours, _ = compare(
        lambda p: AdamW(p, lr=0.1, fused=True), (model, twin), script, frozen_state="track", anchor_decay=1.0
    )
    for parameter, weights in zip(model.layer(0), before, strict=True):
        assert torch.equal(parameter, weights)
        assert ours.inner.state[parameter]["step"] == 2


def test_bfloat16_weights_with_moments_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    # torch steps no such thing. The reference is AdamW on the same weights in float32, and a step may be off by one
    # unit of bfloat16: the interpreter cuts numbers off where a GPU rounds them.
    monkeypatch.setenv("LOCALOPT_TRITON", "1")
    weights, wide = (nn.ParameterDict({f"{i}": torch.randn(50 + i) for i in range(LAYERS)}) for _ in range(2))
    weights.bfloat16()
    for key, parameter in wide.items():
        parameter.data.copy_(weights[key])
    inner = AdamW(weights.parameters(), lr=0.01, fused=True)
    for parameter in weights.parameters():
        inner.state[parameter] = {"step": torch.zeros(())} | {
            key: torch.zeros_like(parameter, dtype=torch.float32) for key in ("exp_avg", "exp_avg_sq")
        }
    bare = AdamW(wide.parameters(), lr=0.01)
    optimizer = localized(weights, inner, [[1.0] * LAYERS] * 4)
    for _ in range(4):
        for narrow, parameter in zip(weights.parameters(), wide.parameters(), strict=True):
            narrow.grad = torch.randn(narrow.shape).bfloat16()
            parameter.grad = narrow.grad.float()
        optimizer.step()
        bare.step()
        for narrow, parameter in zip(weights.parameters(), wide.parameters(), strict=True):
            torch.testing.assert_close(narrow.float(), parameter, rtol=2**-7, atol=0)
            parameter.data.copy_(narrow)
            torch.testing.assert_close(inner.state[narrow], bare.state[parameter], rtol=1e-5, atol=1e-7)
    assert inner.state[next(iter(weights.parameters()))]["exp_avg"].dtype == torch.float32


def localized(model: nn.Module, inner: Optimizer, script: list[list[float]], **options: Any) -> LocalizedOptimizer:
    return LocalizedOptimizer(inner, model, Scripted(script, False), layers=lambda name: name[0], **options)


def test_one_launch_updates_all_layers_and_tables_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from localopt.steps.triton import chunks, update

    monkeypatch.setenv("LOCALOPT_TRITON", "1")
    launches: list[str] = []

    class Counted:
        def __init__(self, kernel: Any, name: str) -> None:
            self.kernel, self.name = kernel, name

        def __getitem__(self, grid: Any) -> Any:
            launches.append(self.name)
            return self.kernel[grid]

    for name in ("adam", "count_steps", "pull"):
        monkeypatch.setattr(update, name, Counted(getattr(update, name), name))
    model, inner, _, _ = twins(INFOS["AdamW"], {"lr": 0.1, "fused": True}, torch.float32)
    optimizer = localized(model, inner, [[1.0] * LAYERS] * 3, anchor_decay=1.0, max_grad_norm=1.0)
    give_gradients(model)
    optimizer.step()
    made = (chunks._chunks.cache_info().misses, chunks._sent.cache_info().misses)
    optimizer.step()
    optimizer.step()
    assert launches == ["count_steps", "adam"] * 3
    assert (chunks._chunks.cache_info().misses, chunks._sent.cache_info().misses) == made


def doubled(tensor: Tensor) -> Tensor:
    return tensor.double()


def spread_out(tensor: Tensor) -> Tensor:
    return torch.stack([tensor, tensor], dim=-1)[..., 0]


@pytest.mark.parametrize("change", [doubled, spread_out])
def test_what_the_kernels_do_not_step_is_stepped_by_torch_and_that_is_said_once(
    change: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    models = [nn.ParameterDict({"0": change(torch.arange(6.0)), "1": torch.ones(3)}) for _ in range(2)]
    for model, on in zip(models, ("1", "0"), strict=True):
        monkeypatch.setenv("LOCALOPT_TRITON", on)
        optimizer = localized(model, Adam(model.parameters(), lr=0.1, fused=True), [[1.0, 1.0]] * 2)
        for _ in range(2):
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said == [
        "LOCALOPT_TRITON is set, and its kernels do not step weights or state in float64, with holes in memory or laid "
        "out differently: PyTorch's own kernels run (said once)"
    ]


def test_other_optimizers_keep_their_own_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALOPT_TRITON", "1")
    weights = [nn.Parameter(torch.ones(3))]
    adagrad, adamw = Adagrad(weights, fused=True), AdamW(weights, fused=True)
    assert not kernels.serves(adagrad, adagrad.param_groups[0])
    assert kernels.serves(adamw, adamw.param_groups[0])
