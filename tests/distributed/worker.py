"""What every process of a distributed test does: `torchrun ... -m tests.distributed.worker CASE,CASE,... OUT`.

A case trains a small Llama on batches that are the same however many processes share them, and rank 0 leaves in OUT
what the test compares with one process.
"""

from __future__ import annotations

import copy
import os
import signal
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW

from localopt import AnchorDecay, LocalizedOptimizer, Samples, trace_layers
from localopt.errors import InputError
from localopt.policies import AboveMean, Proportional, Smoothed, TopK
from localopt.tracing.samples import sample
from tests.distributed.ending import leave
from tests.tiny_models import VOCABULARY, examples, llama

STEPS = 5
ROWS = 4  # of a global batch; every process takes its share
Share = tuple[int, int]  # which part of the batch, of how many; by default its rank, of the number of processes


def model() -> nn.Module:
    torch.manual_seed(0)
    return llama(layers=3)


def batch(step: int, rank: int = 0, processes: int = 1) -> Tensor:
    tokens = torch.randint(VOCABULARY, (ROWS, 8), generator=torch.Generator().manual_seed(100 + step))
    return tokens.tensor_split(processes)[rank]


def backward(network: nn.Module, step: int, share: Share | None = None) -> None:
    own = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    tokens = batch(step, *(share or own))
    network(input_ids=tokens, labels=tokens).loss.backward()


def train(
    network: nn.Module, optimizer: LocalizedOptimizer, steps: range, share: Share | None = None
) -> list[dict[str, Any]]:
    """Train, and return what every step did."""
    reports = []
    for step in steps:
        optimizer.zero_grad()
        backward(network, step, share)
        optimizer.step()
        report = optimizer.report()
        reports.append({"norms": report.norms, "scales": report.scales, "share": report.share_updated})
    return reports


def weights(network: nn.Module) -> dict[str, Tensor]:
    """The whole weights, by canonical name."""
    whole = {}
    for name, parameter in network.named_parameters():
        value = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        whole[name.removeprefix("module.")] = value.detach().clone()
    return whole


def same_on_all_ranks(values: dict[str, Tensor]) -> bool:
    """Whether every process holds the same bits."""
    flat = torch.cat([value.double().flatten() for value in values.values()])
    first = flat.clone()
    dist.broadcast(first, src=0)
    equal = torch.tensor(float(torch.equal(flat, first)))
    dist.all_reduce(equal, op=dist.ReduceOp.MIN)
    return bool(equal)


def sharded(network: nn.Module, **options: Any) -> nn.Module:
    for block in network.model.layers:  # type: ignore[union-attr]
        fully_shard(block, **options)
    return fully_shard(network, **options)


def localized(network: nn.Module, fused: bool = True, **options: Any) -> LocalizedOptimizer:
    options = {"policy": Smoothed(AboveMean(), 0.5), "max_grad_norm": 0.5} | options
    return LocalizedOptimizer(AdamW(network.parameters(), lr=1e-2, fused=fused), network, **options)


class _Calls:
    """Counts the collectives the optimizer makes, by how many numbers they carry."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __enter__(self) -> _Calls:
        self.reduce, self.broadcast = dist.all_reduce, dist.broadcast

        def counted(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
                self.sizes.append(tensor.numel())
                return original(tensor, *arguments, **options)

            return call

        dist.all_reduce, dist.broadcast = counted(self.reduce), counted(self.broadcast)
        return self

    def __exit__(self, *_: object) -> None:
        dist.all_reduce, dist.broadcast = self.reduce, self.broadcast


# -- cases: each returns what rank 0 writes down --------------------------------------------------------------------


def run_whole(network: nn.Module, optimizer: LocalizedOptimizer, share: Share | None = None) -> dict[str, Any]:
    with _Calls() as calls:
        reports = train(network, optimizer, range(STEPS), share)
    found = weights(network)
    return {"weights": found, "reports": reports, "same": same_on_all_ranks(found), "collectives": calls.sizes}


def ddp(out: Path, **options: Any) -> dict[str, Any]:
    network = DistributedDataParallel(model())
    return run_whole(network, localized(network, **options))


def ddp_broadcast(out: Path) -> dict[str, Any]:
    """Unlike hardware: each rank's norms differ a little, so that alone they would choose different layers."""
    network = DistributedDataParallel(model())
    optimizer = localized(network, policy=TopK(2), broadcast_norms=True)
    rank = dist.get_rank()
    for step in range(STEPS):
        optimizer.zero_grad()
        backward(network, step)
        with torch.no_grad():
            for position, parameter in enumerate(network.parameters()):
                parameter.grad.mul_(1 + 0.5 * ((position + rank) % 3))  # type: ignore[union-attr]
        optimizer.step()
    scales = torch.tensor(optimizer.report().scales)
    return {"same": same_on_all_ranks({"scales": scales})}


def ddp_nan(out: Path) -> dict[str, Any]:
    """One rank sees a NaN before the gradients are reduced."""
    network = DistributedDataParallel(model())
    optimizer = localized(network)
    train(network, optimizer, range(2))
    before = weights(network)
    optimizer.zero_grad()
    tokens = batch(2, dist.get_rank(), dist.get_world_size())
    loss = network(input_ids=tokens, labels=tokens).loss
    (loss * (float("nan") if dist.get_rank() == 1 else 1.0)).backward()
    optimizer.step()
    after = weights(network)
    unchanged = all(torch.equal(after[name], before[name]) for name in before)
    skipped = optimizer.report().skipped_steps
    train(network, optimizer, range(3, 5))
    return {"unchanged": unchanged, "skipped": skipped, "same": same_on_all_ranks(weights(network))}


def ddp_toggled(out: Path) -> dict[str, Any]:
    network = DistributedDataParallel(model())
    optimizer = localized(network)
    train(network, optimizer, range(2))
    network.module.model.embed_tokens.requires_grad_(False)
    before = weights(network)
    optimizer.zero_grad()
    backward(network, 2)
    try:
        optimizer.step()
        message = ""
    except RuntimeError as error:
        message = str(error)
    after = weights(network)
    return {"message": message, "unchanged": all(torch.equal(after[name], before[name]) for name in before)}


def fsdp2(out: Path, **options: Any) -> dict[str, Any]:
    network = sharded(model())
    return run_whole(network, localized(network, **options))


def fsdp2_foreach(out: Path) -> dict[str, Any]:
    return fsdp2(out, fused=False)


def fsdp2_rescaled(out: Path) -> dict[str, Any]:
    return fsdp2(out, policy=Proportional("mean"))


def fsdp2_track(out: Path) -> dict[str, Any]:
    return fsdp2(out, frozen_state="track")


def ddp_selective(out: Path) -> dict[str, Any]:
    return ddp(out, anchor_decay=AnchorDecay(1.0, rule="selective"))


def fsdp2_selective(out: Path) -> dict[str, Any]:
    return fsdp2(out, anchor_decay=AnchorDecay(1.0, rule="selective"))


def ddp_unasked(out: Path) -> dict[str, Any]:
    return ddp(out, policy=None)


def fsdp2_unasked(out: Path) -> dict[str, Any]:
    return fsdp2(out, policy=None)


def fsdp2_plain(out: Path) -> dict[str, Any]:
    """The start is given whole, and sharded as the parameters are."""
    start = {name: torch.zeros_like(p) for name, p in model().named_parameters()}
    return fsdp2(out, anchor_decay=AnchorDecay(5.0, start=start))


def fsdp2_cautious_on_kernels(out: Path) -> dict[str, Any]:
    return fsdp2_on_kernels(out, anchor_decay=AnchorDecay(20.0, rule="cautious"))


def fsdp2_on_kernels(out: Path, **options: Any) -> dict[str, Any]:
    """The route of accelerators, whose kernels exist on the CPU too."""
    import localopt.steps.fused

    asked = localopt.steps.fused._is_plain
    localopt.steps.fused._is_plain = lambda parameter: True
    try:
        return fsdp2(out, **options)
    finally:
        localopt.steps.fused._is_plain = asked


def fsdp2_sgd(out: Path) -> dict[str, Any]:
    network = sharded(model())
    inner = SGD(network.parameters(), lr=0.1, momentum=0.9, foreach=True)
    return run_whole(network, LocalizedOptimizer(inner, network, AboveMean(), max_grad_norm=0.5))


def fsdp2_ignored(out: Path) -> dict[str, Any]:
    """The final norm stays a plain parameter, whose gradient the user averages."""
    network = model()
    plain = network.model.norm.weight  # type: ignore[union-attr]
    for block in network.model.layers:  # type: ignore[union-attr]
        fully_shard(block)
    fully_shard(network, ignored_params={plain})
    plain.register_post_accumulate_grad_hook(_average)
    assert not isinstance(plain, DTensor)
    return run_whole(network, localized(network))


def _average(parameter: Tensor) -> None:
    assert parameter.grad is not None
    dist.all_reduce(parameter.grad)
    parameter.grad.div_(dist.get_world_size())


def fsdp2_empty(out: Path) -> dict[str, Any]:
    """More processes than rows: some hold nothing of the last layer."""
    torch.manual_seed(0)
    network = fully_shard(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)))
    held = [parameter.to_local().numel() for parameter in network.parameters()]
    optimizer = LocalizedOptimizer(AdamW(network.parameters(), fused=True), network, max_grad_norm=1.0)
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        optimizer.zero_grad()
        network(inputs).square().mean().backward()
        optimizer.step()
    empty = torch.tensor(float(0 in held))
    dist.all_reduce(empty)
    return {"weights": weights(network), "empty": empty.item(), "norms": optimizer.report().norms}


def hsdp(out: Path) -> dict[str, Any]:
    """Two copies of the model, each in two shards."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "shards"))
    network = sharded(model(), mesh=mesh)
    return run_whole(network, localized(network))


def _tensor_parallel(network: nn.Module, mesh: Any) -> nn.Module:
    plan = {
        "mlp.gate_proj": ColwiseParallel(),
        "mlp.up_proj": ColwiseParallel(),
        "mlp.down_proj": RowwiseParallel(),
    }
    for block in network.model.layers:  # type: ignore[union-attr]
        parallelize_module(block, mesh, plan)
    return network


def tensor_parallel(out: Path) -> dict[str, Any]:
    """All processes see the whole batch."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("tp",))
    network = _tensor_parallel(model(), mesh)
    return run_whole(network, localized(network, fused=False), share=(0, 1))


def two_dimensions(out: Path) -> dict[str, Any]:
    """Tensor parallel inside FSDP2: MLPs are sharded both ways, the rest over one dimension of the mesh."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    network = sharded(_tensor_parallel(model(), mesh["tp"]), mesh=mesh["dp"])
    return run_whole(network, localized(network, fused=False), share=(mesh["dp"].get_local_rank(), 2))


def sequence_parallel(out: Path) -> dict[str, Any]:
    """A norm whose gradient is a summand on every process."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    inputs = torch.randn(4, 8, 6, generator=torch.Generator().manual_seed(1))
    expected = copy.deepcopy(network)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    parallelize_module(network, mesh, {"1": SequenceParallel()})
    mine = inputs.chunk(dist.get_world_size(), dim=1)[dist.get_rank()]  # of the sequence
    plain = LocalizedOptimizer(AdamW(expected.parameters()), expected, layers="parameter")
    parallel = LocalizedOptimizer(AdamW(network.parameters(), foreach=False), network, layers="parameter")
    expected(inputs).square().mean().backward()
    plain.step()
    network[2](network[1](network[0](mine)).full_tensor()).square().mean().backward()
    partial = all(parameter.grad.placements[0].is_partial() for parameter in network[1].parameters())
    parallel.step()
    expected_norms, norms = plain.report(), parallel.report()
    assert norms.norms is not None
    assert expected_norms.norms is not None
    return {"expected": expected_norms.norms[2:4], "found": norms.norms[2:4], "partial": partial}


def fsdp1(out: Path) -> dict[str, Any]:
    messages = []
    for original in (False, True):
        network = FullyShardedDataParallel(model(), use_orig_params=original, device_id=torch.device("cpu"))
        try:
            localized(network)
        except ValueError as error:
            messages.append(str(error))
    return {"messages": messages}


def rebuilt(out: Path) -> dict[str, Any]:
    """The optimizer is made before the model is sharded, which replaces its parameters."""
    network = model()
    optimizer = localized(network)
    sharded(network)
    backward(network, 0)
    try:
        optimizer.step()
        return {"message": ""}
    except RuntimeError as error:
        return {"message": str(error)}


def killed(out: Path) -> dict[str, Any]:
    """Rank 1 dies between backward and step, where the others wait for its norms."""
    network = sharded(model())
    optimizer = localized(network)
    train(network, optimizer, range(2))
    backward(network, 2)
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    optimizer.step()
    return {}


def save(out: Path) -> dict[str, Any]:
    network = sharded(model())
    optimizer = localized(network)
    _initial_state(network, optimizer)
    train(network, optimizer, range(3))
    optimizer.zero_grad()
    model_state, optimizer_state = get_state_dict(network, optimizer)
    dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=out / "checkpoint")
    train(network, optimizer, range(3, STEPS))
    return {"weights": weights(network)}


def resume(out: Path) -> dict[str, Any]:
    network = sharded(model())
    optimizer = localized(network)
    model_state, optimizer_state = get_state_dict(network, optimizer)
    state = {"model": model_state, "optimizer": optimizer_state}
    dcp.load(state, checkpoint_id=out / "checkpoint")
    set_state_dict(network, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    train(network, optimizer, range(3, STEPS))
    return {"weights": weights(network), "reports": [optimizer.report().norms]}


def _initial_state(network: nn.Module, optimizer: LocalizedOptimizer) -> None:
    """Train every layer once, so that each has state to save."""
    backward(network, 99)
    optimizer.inner.step()


def swapped(out: Path) -> dict[str, Any]:
    """The optimizer is made first, and gets the sharded parameters in place of its own, as accelerate does it."""
    from accelerate.utils.fsdp_utils import fsdp2_switch_optimizer_parameters

    network = model()
    optimizer = localized(network)
    addresses = {name: parameter.data_ptr() for name, parameter in network.named_parameters()}
    for group in optimizer.param_groups:
        for i, parameter in enumerate(group["params"]):
            group["params"][i] = torch.empty(1)
            group["params"][i].data_ptr = parameter.data_ptr()
    sharded(network)
    fsdp2_switch_optimizer_parameters(
        optimizer, {addresses[name]: parameter for name, parameter in network.named_parameters()}
    )
    return run_whole(network, optimizer)


def trace(out: Path) -> dict[str, Any]:
    """Probes shared among the processes; on three processes, one gets nothing of the reference."""
    network = model()
    torch.manual_seed(3)
    found = trace_layers(network, examples(7, span=2), examples(2), distributed=True)
    torch.manual_seed(3)
    alone = trace_layers(network, examples(7, span=2), examples(2))
    same = same_on_all_ranks({"norms": found.probe_norms})
    return {"found": found, "alone": alone, "same": same}


def trace_by_gains(out: Path) -> dict[str, Any]:
    """Gains against the model's own text; on three processes, one gets nothing of the probe."""
    network = model().double()
    news, own = examples(2, span=2), Samples(count=5, length=6)
    found = trace_layers(network, news, own, score="gains", distributed=True)
    alone = trace_layers(network, news, own, score="gains")
    written = [example["input_ids"] for example in sample(network, own, distributed=True)]
    same = same_on_all_ranks({"gains": found.probe_norms, "damages": found.reference_norms, "text": torch.cat(written)})
    by_one = [example["input_ids"] for example in sample(network, own)]
    return {"found": found, "alone": alone, "same": same, "written": written, "by_one": by_one}


def trace_bad_example(out: Path) -> dict[str, Any]:
    """One process meets a bad example; all of them say which it was."""
    network = model()
    good = examples(5)
    good[3]["labels"] = torch.full_like(good[3]["labels"], -100)
    try:
        trace_layers(network, good, examples(2), distributed=True)
        message = ""
    except InputError as error:
        message = str(error)
    messages: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(messages, message)
    return {"messages": messages}


def main() -> None:
    cases, out = sys.argv[1].split(","), Path(sys.argv[2])
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    for case in cases:
        result = globals()[case](out)
        if dist.get_rank() == 0:
            torch.save(result, out / f"{case}-{dist.get_world_size()}.pt")
        dist.barrier()
    leave()


if __name__ == "__main__":
    main()
