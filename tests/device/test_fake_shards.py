"""A whole step on shards (FSDP2's DTensors) of a device and of processes that are not there: what is communicated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.optim import SGD, AdamW
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.speed.fake_device import Call, Recorded, fake_cuda
from localopt import AboveMean, AnchorDecay, LocalizedOptimizer, Proportional
from tests.device.test_fake_device import OnEverySignal, assert_on_the_device_alone

PROCESSES = 4
LAYERS = 3


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    torch.distributed.init_process_group("fake", rank=0, world_size=PROCESSES, store=FakeStore())
    try:
        mesh = init_device_mesh("cuda", (PROCESSES,))
        with fake_cuda():  # a DTensor of a new shape is first laid out on the host, which is no part of a step
            for tensor in tensors(mesh).values():
                torch.zeros_like(tensor)
        yield mesh
    finally:
        torch.distributed.destroy_process_group()


def shard(mesh: DeviceMesh, columns: int) -> Tensor:
    local = torch.empty(5, columns, device="cuda")
    whole = torch.Size((5 * PROCESSES, columns))
    return DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=whole, stride=(columns, 1))


def replica(mesh: DeviceMesh) -> Tensor:
    return DTensor.from_local(torch.empty(7, device="cuda"), mesh, [Replicate()], run_check=False)


def tensors(mesh: DeviceMesh) -> dict[str, Tensor]:
    sharded = {f"matrix{i}": shard(mesh, 4 + i) for i in range(LAYERS)}
    return sharded | {f"vector{i}": replica(mesh) for i in range(LAYERS)}


def steps(optimizer: LocalizedOptimizer, module: nn.Module, mesh: DeviceMesh) -> list[Recorded]:
    logs = []
    for _ in range(4):
        for parameter, gradient in zip(module.parameters(), tensors(mesh).values(), strict=True):
            parameter.grad = gradient
        optimizer.observe(2.0)
        with Recorded() as recorded:
            optimizer.step()
        logs.append(recorded)
    return logs


def collectives(recorded: Recorded) -> list[Call]:
    return [call for call in recorded.calls if call.collective]


@pytest.mark.parametrize("kind", [AdamW, SGD])
@pytest.mark.parametrize(
    ("policy", "decay", "reductions"),
    [
        (AboveMean(), 0.0, 1),
        (Proportional(), 25.0, 1),
        (AboveMean(), AnchorDecay(1.0, "cautious"), 1),
        (AboveMean(), AnchorDecay(1.0, "selective"), 2),  # the second: how far each layer has drifted after the step
        (OnEverySignal(), 25.0, 1),
    ],
    ids=["AboveMean", "plain decay", "cautious decay", "selective decay", "all signals"],
)
def test_one_reduction_of_the_signals_and_nothing_else(
    kind: Any, policy: Any, decay: Any, reductions: int, mesh: DeviceMesh
) -> None:
    with fake_cuda():
        module = nn.Module()
        for name, tensor in tensors(mesh).items():
            module.register_parameter(name, nn.Parameter(tensor))
        options = {"momentum": 0.9} if kind is SGD else {}
        inner = kind(module.parameters(), lr=0.1, fused=True, **options)
        optimizer = LocalizedOptimizer(
            inner, module, policy, layers=lambda name: name[-1], max_grad_norm=1.0, anchor_decay=decay
        )
        logs = steps(optimizer, module, mesh)
    for recorded in logs:
        assert [call.name for call in collectives(recorded)] == ["c10d.allreduce_.default"] * reductions
    assert_on_the_device_alone(logs)


def test_the_recorder_sees_what_a_dtensor_communicates(mesh: DeviceMesh) -> None:
    with fake_cuda(), Recorded() as recorded:
        shard(mesh, 4).redistribute(placements=[Replicate()])  # type: ignore[attr-defined]
    assert [call.name.split(".")[1] for call in collectives(recorded)] == ["all_gather_into_tensor"]
