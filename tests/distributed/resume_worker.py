"""Saving and resuming sharded runs: `torchrun ... -m tests.distributed.resume_worker save|resume OUT`.

Every case trains three steps in which some layers are never chosen, and is saved; `save` goes on for two more steps,
`resume` loads in new processes and does the same two.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import load_fsdp_optimizer, save_fsdp_optimizer
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor
from torch.optim import AdamW

from localopt import AnchorDecay, Cyclic, Fixed, LocalizedOptimizer, partition
from tests.distributed.ending import leave
from tests.distributed.worker import backward, model, sharded, weights

BEFORE, AFTER = range(3), range(3, 5)
NESTED, FLAT = StateDictOptions(), StateDictOptions(flatten_optimizer_state_dict=True)
ACCELERATOR: Any = None
Run = tuple[nn.Module, LocalizedOptimizer]


def cyclic() -> Any:
    """Other layers at every step, so that some are first trained after the resume."""
    return Cyclic(every=1)


def fixed() -> Any:
    layers = dict.fromkeys(partition(name for name, _ in model().named_parameters()).values())
    return Fixed({name: float(i % 2) for i, name in enumerate(layers)})


CASES: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "nested": (cyclic, "nested", {}),
    "flat": (cyclic, "flat", {}),
    "accelerate": (cyclic, "accelerate", {}),
    "fixed nested": (fixed, "nested", {}),
    "fixed flat": (fixed, "flat", {}),
    "anchored nested": (cyclic, "nested", {"anchor_decay": 50.0}),
    "anchored flat": (cyclic, "flat", {"anchor_decay": 50.0}),
    "anchored accelerate": (cyclic, "accelerate", {"anchor_decay": AnchorDecay(1.0, rule="selective")}),
    "anchored fixed flat": (fixed, "flat", {"anchor_decay": 50.0}),
}


def new_run(case: str, seed: int) -> Run:
    policy, _, options = CASES[case]
    network = model()
    if seed:  # what resumes must find its weights, and its start, in the checkpoint
        torch.manual_seed(seed)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.02)
    network = sharded(network)
    inner = AdamW(network.parameters(), lr=1e-2, foreach=True)
    return network, LocalizedOptimizer(inner, network, policy(), max_grad_norm=0.5, **options)


def train(run: Run, steps: range) -> list[Any]:
    scales = []
    for step in steps:
        run[1].zero_grad()
        backward(run[0], step)
        run[1].step()
        scales.append(run[1].report().scales)
    run[1].zero_grad()
    return scales


def whole(value: Any) -> Any:
    return (
        value.full_tensor().clone()
        if isinstance(value, DTensor)
        else value.clone()
        if isinstance(value, Tensor)
        else value
    )


def all_of(run: Run) -> dict[str, Any]:
    """Weights, the state of what has one, and the starts, whole and by name."""
    network, optimizer = run
    state = {
        name: {key: whole(value) for key, value in optimizer.state[parameter].items() if "localopt" not in key}
        for name, parameter in network.named_parameters()
        if optimizer.state.get(parameter)
    }
    anchor = optimizer._anchor
    starts = (
        []
        if anchor is None
        else [whole(start) for starts in anchor.starts.near(optimizer.param_groups) for start in starts]
    )
    return {"weights": weights(network), "state": state, "starts": starts}


def plugin() -> Any:
    return FullyShardedDataParallelPlugin(
        fsdp_version=2, state_dict_type="SHARDED_STATE_DICT", cpu_ram_efficient_loading=False
    )


def save_optimizer(run: Run, how: str, folder: Path) -> None:
    if how == "accelerate":
        save_fsdp_optimizer(plugin(), ACCELERATOR, run[1], run[0], str(folder))
    else:
        state = get_optimizer_state_dict(*run, options=FLAT if how == "flat" else NESTED)
        dcp.save({"optimizer": state}, checkpoint_id=folder)


def load_optimizer(run: Run, how: str, folder: Path) -> None:
    if how == "accelerate":
        load_fsdp_optimizer(plugin(), ACCELERATOR, run[1], run[0], str(folder))
        return
    options = FLAT if how == "flat" else NESTED
    state = {"optimizer": get_optimizer_state_dict(*run, options=options)}
    dcp.load(state, checkpoint_id=folder)
    set_optimizer_state_dict(*run, state["optimizer"], options=options)


def save(case: str, out: Path) -> dict[str, Any]:
    run = new_run(case, seed=0)
    scales = train(run, BEFORE)
    saved = all_of(run)
    dcp.save({"model": get_model_state_dict(run[0])}, checkpoint_id=out / case / "model")
    save_optimizer(run, CASES[case][1], out / case / "saved")
    scales += train(run, AFTER)
    return {"saved": saved, "end": all_of(run), "scales": scales}


def resume(case: str, out: Path) -> dict[str, Any]:
    run = new_run(case, seed=7)
    state = {"model": get_model_state_dict(run[0])}
    dcp.load(state, checkpoint_id=out / case / "model")
    set_model_state_dict(run[0], state["model"])
    load_optimizer(run, CASES[case][1], out / case / "saved")
    loaded = all_of(run)
    scales = train(run, AFTER)
    return {"loaded": loaded, "end": all_of(run), "scales": scales}


def main() -> None:
    what, out = sys.argv[1], Path(sys.argv[2])
    warnings.simplefilter("ignore")
    global ACCELERATOR
    ACCELERATOR = Accelerator(cpu=True)  # which begins the process group, with gloo
    found: dict[str, Any] = {}
    for case in CASES:
        try:
            found[case] = {"save": save, "resume": resume}[what](case, out)
        except Exception as error:  # the test that looks at this case says so
            found[case] = {"error": f"{type(error).__name__}: {error}"}
    if dist.get_rank() == 0:
        torch.save(found, out / f"{what}-{dist.get_world_size()}.pt")
    leave()


if __name__ == "__main__":
    main()
