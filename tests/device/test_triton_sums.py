"""The kernels that take all signals at once, in Triton's interpreter on a CPU, against the calls of torch."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from localopt import AnchorDecay, LocalizedOptimizer, Proportional
from localopt.steps import triton as kernels
from localopt.steps.triton import best_sums
from localopt.steps.triton.chunks import CHUNK, addresses, chunks
from localopt.sums import READS, sums
from tests.device.test_fake_device import OnEverySignal
from tests.laws import Layered, give_gradients

NAMES = tuple(READS)
CPU = torch.device("cpu")
SHAPES = [(70, 301), (3,), (0, 7), (), (CHUNK,), (CHUNK + 1,), (129, 131)]
interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1" or not kernels.available(), reason="needs triton, interpreted"
)


@pytest.fixture
def _asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALOPT_TRITON", "1")
    monkeypatch.setattr(kernels, "_said", set())


def sources(dtype: torch.dtype, state: torch.dtype) -> dict[str, list[Tensor | None]]:
    found: dict[str, list[Tensor | None]] = {
        role: [torch.randn(shape).to(state if role == "momentum" else dtype) for shape in SHAPES]
        for role in ("gradient", "weight", "start", "momentum")
    }
    found["gradient"][0] = torch.randn(301, 70).t().to(dtype)  # not contiguous
    found["weight"][6] = torch.randn(258, 262)[::2, ::2].to(dtype)
    found["start"][5] = torch.randn(CHUNK + 2).to(dtype)[1:]  # begins where 16 bytes cannot be read at once
    found["gradient"][1] = found["start"][3] = found["momentum"][4] = None
    return found


def assert_equal_sums(found: Tensor, expected: Tensor, names: tuple[str, ...] = NAMES) -> None:
    """Equal to a part in 100,000: of the sum, or of the product of the lengths where both signs cancel."""
    by_name = dict(zip(names, expected, strict=True))
    lengths = {"pullback": ("norm", "drift"), "agreement": ("norm", "momentum")}
    for name, row in zip(names, found, strict=True):
        scale = by_name[name]
        if name in lengths:
            scale = (by_name[lengths[name][0]] * by_name[lengths[name][1]]).sqrt()
        assert ((row - by_name[name]).abs() <= 1e-5 * scale).all(), name


@interpreted
@pytest.mark.usefixtures("_asked_for")
@pytest.mark.parametrize(
    ("dtype", "state"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32),
        (torch.float64, torch.float64),
    ],
    ids=str,
)
def test_all_signals_equal_the_calls_of_torch(dtype: torch.dtype, state: torch.dtype) -> None:
    of = sources(dtype, state)
    found, expected = best_sums(NAMES, of, CPU), sums(NAMES, of, CPU)
    assert found.shape == expected.shape == (len(NAMES), len(SHAPES) + 1)
    assert_equal_sums(found, expected)
    assert torch.equal(found, best_sums(NAMES, of, CPU))


@interpreted
@pytest.mark.usefixtures("_asked_for")
@pytest.mark.parametrize("names", [("norm",), ("norm", "l1"), ("drift",), ("norm", "drift", "pullback"), ("momentum",)])
def test_a_sum_alone_is_what_it_is_beside_others(names: tuple[str, ...]) -> None:
    of = sources(torch.float32, torch.float32)
    together = dict(zip(NAMES, best_sums(NAMES, of, CPU), strict=True))
    for name, row in zip(names, best_sums(names, of, CPU), strict=True):
        torch.testing.assert_close(row, together[name], rtol=1e-6, atol=0)


@interpreted
@pytest.mark.usefixtures("_asked_for")
def test_many_empty_tensors_beside_large_ones_are_summed_right() -> None:
    # torch._foreach_norm once returned wrong norms for such lists (pytorch issue 140066).
    gradients: list[Tensor | None] = [torch.empty(0) for _ in range(70)]
    gradients[3::10] = [torch.full((CHUNK * 3 + 1,), 2.0) for _ in range(7)]
    found = best_sums(["norm", "l1"], {"gradient": gradients}, CPU)
    full = torch.tensor([float(g is not None and g.numel() > 0) for g in gradients] + [0.0], dtype=torch.float64)
    assert torch.equal(found, torch.stack([full * 4.0, full * 2.0]) * (CHUNK * 3 + 1))


@interpreted
@pytest.mark.usefixtures("_asked_for")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_tensor(value: float) -> None:
    gradients: list[Tensor | None] = [torch.ones(5), torch.tensor([1.0, value]), torch.ones(7)]
    found = best_sums(["norm", "l1"], {"gradient": gradients}, CPU)
    assert found.isfinite().tolist() == [[True, False, True, True]] * 2


@interpreted
@pytest.mark.usefixtures("_asked_for")
def test_sparse_and_complex_gradients_are_summed_as_torch_sums_them() -> None:
    sparse = torch.sparse_coo_tensor(torch.tensor([[1, 1]]), torch.tensor([[1.5], [1.5]]), (4, 1))
    gradients: list[Tensor | None] = [sparse, torch.tensor([3 + 4j, 0j])]
    assert best_sums(["norm"], {"gradient": gradients}, CPU).tolist() == [[9.0, 25.0, 0.0]]


@interpreted
@pytest.mark.usefixtures("_asked_for")
@pytest.mark.parametrize("make", [lambda p: AdamW(p, lr=0.1), lambda p: SGD(p, lr=0.1, momentum=0.9)])
@pytest.mark.parametrize("decay", [0.0, AnchorDecay(1.0, "selective")], ids=["no decay", "selective"])
@pytest.mark.parametrize("policy", [Proportional(), OnEverySignal()], ids=["norms", "signals"])
def test_a_run_with_the_kernels_is_a_run_without(
    make: Any, decay: Any, policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[nn.Module] = [Layered(torch.float32), Layered(torch.float32)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [
        LocalizedOptimizer(
            make(m.parameters()), m, policy, layers=lambda n: n[0], max_grad_norm=0.5, anchor_decay=decay
        )
        for m in models
    ]
    for _ in range(4):
        give_gradients(*models)
        for optimizer, on in zip(optimizers, ("1", "0"), strict=True):
            optimizer.observe(0.5)
            with monkeypatch.context() as patched:
                patched.setenv("LOCALOPT_TRITON", on)
                optimizer.step()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_tables_are_made_once_and_addresses_only_where_a_tensor_moved() -> None:
    assert chunks((5, CHUNK * 2), CPU) is chunks((5, CHUNK * 2), CPU)
    assert chunks((5, CHUNK * 2), CPU).tensor.tolist() == [0, 1, 1]
    tensors = [torch.ones(3), torch.ones(4)]
    first = addresses(tensors, CPU)
    assert addresses(tensors, CPU) is first
    moved = [tensors[0], torch.ones(4)]
    assert addresses(moved, CPU).tolist() == [tensor.data_ptr() for tensor in moved]


@pytest.mark.usefixtures("_asked_for")
def test_without_triton_the_calls_of_torch_run_and_that_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kernels, "available", lambda: False)
    for _ in range(2):
        assert best_sums(["norm"], {"gradient": [torch.tensor([3.0, 4.0])]}, CPU).tolist() == [[25.0, 0.0]]
    assert [record.getMessage() for record in caplog.records] == [
        "LOCALOPT_TRITON is set, and the package triton is not installed (pip install triton): "
        "PyTorch's own kernels run (said once)"
    ]


@pytest.mark.usefixtures("_asked_for")
def test_on_a_cpu_without_the_interpreter_the_calls_of_torch_run_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kernels, "available", lambda: True)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert best_sums(["norm"], {"gradient": [torch.tensor([3.0, 4.0])]}, CPU).tolist() == [[25.0, 0.0]]
    assert "its kernels do not serve tensors on cpu" in caplog.text


def test_nobody_who_did_not_ask_for_it_imports_triton() -> None:
    code = "import sys, localopt.steps.triton; print('triton.language' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


@pytest.mark.skipif(not kernels.available() or sys.platform != "linux", reason="needs triton")
def test_the_kernels_compile_for_gpus_and_add_nothing_atomically() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.device.compile_kernels"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    lines = [line.split() for line in run.stdout.splitlines()]
    read_chunks = ["sums_of_chunks", "adam", "sgd", "pull"]
    assert [line[0] for line in lines] == 2 * [*read_chunks, *read_chunks, "sums_of_tensors", "count_steps"]
    # 16 bytes a thread, where all tensors begin at a multiple of them.
    assert [line[2:] for line in lines] == 2 * [*[["wide"]] * 4, *[[]] * 6]
