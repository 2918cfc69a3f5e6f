"""Optimizers of two processes that are alike or not; started by torchrun, prints what each process saw as JSON."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from localopt import AnchorDecay, LayerTrace, LocalizedOptimizer
from localopt.policies import AboveMean, Fixed, RandomLayers, RelativeTo, Smoothed, TopK
from tests.distributed.disagreeing import said
from tests.distributed.ending import leave


class Network(nn.Module):
    def __init__(self, last: str = "head", seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        self.add_module(last, nn.Linear(4, 2))
        self.last = last

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = getattr(self, self.last)(self.body(inputs))
        return result


class MyOwn:
    """A policy of the user's, that holds something else on every process."""

    def __init__(self) -> None:
        self.writes_the_log = dist.get_rank() == 0

    def __call__(self, norms: Tensor) -> Tensor:
        return (norms > 0).float()


def backward(network: nn.Module, seed: int = 0) -> None:
    network(torch.randn(4, 4, generator=torch.Generator().manual_seed(seed))).square().mean().backward()


def step(network: nn.Module, optimizer: LocalizedOptimizer) -> str:
    """A step, and what it raised."""
    optimizer.zero_grad()
    backward(network)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    error = said(optimizer.step)
    if error:
        assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    return error


def wrapped(network: nn.Module, *arguments: Any, **options: Any) -> LocalizedOptimizer:
    return LocalizedOptimizer(AdamW(network.parameters(), lr=0.1), network, *arguments, **options)


def other(first: Any, second: Any) -> Any:
    """The first process gets the first."""
    return (first, second)[dist.get_rank()]


def ddp(*arguments: Any, network: nn.Module | None = None, **options: Any) -> str:
    parallel = DistributedDataParallel(network or Network())
    return step(parallel, wrapped(parallel, *arguments, **options))


def policy() -> str:
    return ddp(other(TopK(1), AboveMean()))


def seed() -> str:
    return ddp(Smoothed(RandomLayers(1, every=2, seed=other(3, 4)), 0.5))


def trace() -> str:
    layers = ("body.0", "body.2", "head")
    found = LayerTrace(layers, torch.ones(3), torch.tensor([1.0, other(1.0, 2.0), 1.0]))
    return ddp(RelativeTo(found, AboveMean()))


def layers() -> str:
    return ddp(layers=other("sublayer", "parameter"))


def options() -> str:
    more = other({"frozen_state": "hold"}, {"frozen_state": "track", "nonfinite": "raise", "max_grad_norm": 1.0})
    return ddp(anchor_decay=other(0.5, 0.25), **more)


def names() -> str:
    """The second process leaves the last layer out."""
    parallel = DistributedDataParallel(Network())
    held = parallel.module if dist.get_rank() == 0 else parallel.module.body
    return step(parallel, LocalizedOptimizer(AdamW(held.parameters()), parallel))


def starts() -> str:
    """The optimizer is made before DDP gives all processes the first one's weights."""
    network = Network(seed=dist.get_rank())
    optimizer = wrapped(network, anchor_decay=AnchorDecay(1.0))
    return step(DistributedDataParallel(network), optimizer)


def wrapped_before_ddp() -> str:
    """The optimizer knows the bare model, as with Trainer, accelerate and Lightning."""
    network = Network()
    optimizer = wrapped(network, other(TopK(1), TopK(2)))
    return step(DistributedDataParallel(network), optimizer)


def broadcast_norms() -> str:
    network = Network()
    return step(network, wrapped(network, other(TopK(1), TopK(2)), broadcast_norms=True))


def broadcast_norms_on_one() -> str:
    return ddp(broadcast_norms=other(True, False))


def sharded() -> str:
    network = fully_shard(Network())
    return step(network, wrapped(network, other(TopK(1), TopK(2))))


def sharded_by_other_layers() -> str:
    network = fully_shard(Network())
    return step(network, wrapped(network, layers=other("sublayer", "parameter")))


def _checkpoint(seen: int) -> dict[str, Any]:
    """A checkpoint whose policy has averaged the norms of so many steps."""
    network = Network()
    optimizer = wrapped(network, Smoothed(AboveMean(), 0.5))
    for number in range(seen):
        optimizer.zero_grad()
        backward(network, number)
        optimizer.step()
    return optimizer.state_dict()


def checkpoint() -> list[str]:
    """Both load the same one, then each another."""
    parallel = DistributedDataParallel(Network())
    optimizer = wrapped(parallel, Smoothed(AboveMean(), 0.5))
    said_by = [step(parallel, optimizer)]
    for seen in (3, other(1, 2)):
        optimizer.load_state_dict(_checkpoint(seen))
        said_by.append(step(parallel, optimizer))
    return said_by


def parameters_added() -> str:
    parallel = DistributedDataParallel(Network())
    optimizer = LocalizedOptimizer(AdamW(parallel.module.body.parameters()), parallel)
    assert step(parallel, optimizer) == ""
    more = [*parallel.module.head.named_parameters(prefix="head")]
    optimizer.add_param_group({"params": other(more, more[:1])})
    return step(parallel, optimizer)


# -- nothing is wrong --------------------------------------------------------------------------------------------------


def alike() -> list[str]:
    found = LayerTrace(("body.0", "body.2", "head"), torch.ones(3), torch.tensor([1.0, 2.0, 3.0]))
    policies = [
        RelativeTo(found, AboveMean()),
        RandomLayers(1, every=2),
        Fixed({"body.0": 0.0, "body.2": 1, "head": 1}),
    ]
    policies += [MyOwn(), lambda norms: torch.ones_like(norms)]  # the last two have other addresses on every process
    kept = AnchorDecay(1.0, rule="selective", device=other("cpu", None))
    return [ddp(policy, anchor_decay=kept, max_grad_norm=1.0) for policy in policies]


def alike_and_sharded() -> list[str]:
    one = fully_shard(Network())
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("copies", "shards"))
    both = fully_shard(Network(), mesh=mesh)
    return [step(network, wrapped(network, TopK(2), anchor_decay=1.0)) for network in (one, both)]


def runs_of_their_own() -> str:
    """Processes that compare policies, each on a model of its own."""
    network = Network(last=other("head", "tail"))
    return step(network, wrapped(network, other(TopK(1), RandomLayers(1, every=1, seed=dist.get_rank()))))


def stages_of_a_pipeline() -> str:
    """Each process is a stage, sharded over a mesh of itself alone."""
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("stages", "shards"))
    network = fully_shard(Network(last=other("head", "tail")), mesh=mesh["shards"])
    return step(network, wrapped(network, other(TopK(1), TopK(2))))


def replicas_in_groups_of_one() -> str:
    groups = [dist.new_group([rank]) for rank in range(2)]
    parallel = DistributedDataParallel(Network(last=other("head", "tail")), process_group=groups[dist.get_rank()])
    return step(parallel, wrapped(parallel, other(TopK(1), TopK(2))))


def updates_shared_out() -> str:
    """As ZeRO's first stage: gradients are averaged, and each process updates parameters of its own."""
    parallel = DistributedDataParallel(Network())
    held = other(parallel.module.body, parallel.module.head)
    return step(parallel, LocalizedOptimizer(AdamW(held.parameters()), parallel))


def experts_beside_shards() -> str:
    """Every process has an expert of its own, which nobody shards."""
    network = Network()
    network.body.add_module(f"expert{dist.get_rank()}", nn.Linear(4, 4))
    expert = {*network.body[-1].parameters()}
    fully_shard(network, ignored_params=expert)
    return step(network, wrapped(network, layers=lambda name: name.split(".")[0]))


def a_look_by_one_process() -> str:
    """A checkpoint's look at the state of an optimizer that has none yet, by the first process alone."""
    parallel = DistributedDataParallel(Network())
    optimizer = wrapped(parallel)
    if dist.get_rank() == 0:
        get_optimizer_state_dict(parallel, optimizer)
    return step(parallel, optimizer)


def once() -> list[int]:
    """How many objects are gathered in each of four steps, the third of them after a checkpoint was loaded."""
    parallel = DistributedDataParallel(Network())
    optimizer = wrapped(parallel)
    gather, calls, counts = dist.all_gather_object, [0], []

    def counted(*arguments: Any) -> None:
        calls[0] += 1
        gather(*arguments)

    dist.all_gather_object = counted
    try:
        for number in range(4):
            if number == 2:
                optimizer.load_state_dict(optimizer.state_dict())
            assert step(parallel, optimizer) == ""
            counts.append(calls[0])
    finally:
        dist.all_gather_object = gather
    return counts


CASES: tuple[Callable[[], Any], ...] = (
    *(policy, seed, trace, layers, options, names, starts, wrapped_before_ddp, broadcast_norms, broadcast_norms_on_one),
    *(sharded, sharded_by_other_layers, checkpoint, parameters_added),
    *(alike, alike_and_sharded, runs_of_their_own, stages_of_a_pipeline, replicas_in_groups_of_one),
    *(updates_shared_out, experts_beside_shards, a_look_by_one_process, once),
)


def main() -> None:
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    seen = {case.__name__: case() for case in CASES}
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, seen)
    if dist.get_rank() == 0:
        print(json.dumps({name: [of_one[name] for of_one in everyone] for name in seen}), flush=True)
    leave()


if __name__ == "__main__":
    main()
