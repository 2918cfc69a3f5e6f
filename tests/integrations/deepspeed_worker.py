"""What every process of a DeepSpeed run does: `torchrun ... -m tests.integrations.deepspeed_worker OUT`.

On the CPU, over gloo. Each case leaves in OUT what the test looks at.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from transformers import Trainer, TrainingArguments

from localopt import LayerTrace, LocalizedOptimizer, RandomLayers, partition
from localopt.integrations.transformers import Localize, localize, localized_optimizer
from tests.distributed.ending import leave
from tests.distributed.worker import backward, batch, model
from tests.tiny_models import VOCABULARY

BEFORE, AFTER = range(3), range(3, 5)


def config(stage: int) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,  # by default DeepSpeed clips to 1, over all layers
    }


def engine_of(network: nn.Module, optimizer: Any, stage: int) -> Any:
    return deepspeed.initialize(model=network, optimizer=optimizer, config=config(stage), dist_init_required=False)[0]


def train(engine: Any, steps: range) -> None:
    for step in steps:
        tokens = batch(step, dist.get_rank(), dist.get_world_size())
        engine.backward(engine(input_ids=tokens, labels=tokens).loss)
        engine.step()


def weights(network: nn.Module) -> dict[str, Tensor]:
    """Whole, also where ZeRO shards them."""
    parameters = dict(network.named_parameters())
    with deepspeed.zero.GatheredParameters(list(parameters.values())):
        return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def localized(network: nn.Module) -> LocalizedOptimizer:
    """SGD, as Adam's first step is the sign of a gradient, which rounding may turn round."""
    return LocalizedOptimizer(SGD(network.parameters(), lr=0.5, momentum=0.9), network, RandomLayers(3, every=1))


def trace(network: nn.Module) -> LayerTrace:
    layers = tuple(dict.fromkeys(partition(name for name, _ in network.named_parameters()).values()))
    return LayerTrace(layers, torch.arange(1.0, len(layers) + 1), torch.ones(len(layers)), {"partition": "sublayer"})


def stage_0(out: Path) -> dict[str, Any]:
    """Five steps, saved after three; resumed in an engine of its own; and the same in one process without DeepSpeed."""
    network = model()
    optimizer = localized(network)
    engine = engine_of(network, optimizer, 0)
    train(engine, BEFORE)
    engine.save_checkpoint(str(out / "checkpoint"), tag="three")
    train(engine, AFTER)
    again = model()
    for parameter in again.parameters():
        nn.init.zeros_(parameter)
    resumed = engine_of(again, localized(again), 0)
    resumed.load_checkpoint(str(out / "checkpoint"), tag="three")
    train(resumed, AFTER)
    alone = model()
    bare = localized(alone)
    for step in (*BEFORE, *AFTER):
        bare.zero_grad()
        backward(alone, step, (0, 1))
        bare.step()
    mine, theirs = optimizer.report(), bare.report()
    return {
        "weights": weights(network),
        "resumed": weights(again),
        "alone": weights(alone),
        "updated": [mine.updated, theirs.updated],
        "share": mine.share_updated,
    }


def refused(stage: int, before: bool) -> str:
    """What is said of a localized optimizer under ZeRO, made before or after the engine."""
    network = model()
    try:
        if before:
            train(engine_of(network, localized(network), stage), BEFORE)
        else:
            engine = engine_of(network, AdamW(network.parameters(), lr=1e-2), stage)
            LocalizedOptimizer(engine.optimizer, network)
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def remedy(stage: int, how: str) -> dict[str, Any]:
    """The bare optimizer on the layers of a trace: the rest frozen, or one group a layer."""
    network = model()
    chosen = trace(network)
    scales = chosen.frozen_parameters().scales
    layer_of = partition(name for name, _ in network.named_parameters())
    kept = [name for name in layer_of if scales[layer_of[name]] > 0]
    before = weights(network)
    if how == "freeze":
        chosen.freeze(network)
        optimizer = AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-2)
    else:
        optimizer = AdamW(chosen.param_groups(network, lr=1e-2))
    train(engine_of(network, optimizer, stage), BEFORE)
    after = weights(network)
    return {"chosen": kept, "moved": [name for name in before if not torch.equal(before[name], after[name])]}


def trainer(out: Path, how: str) -> dict[str, Any]:
    """transformers' Trainer with a DeepSpeed configuration of stage 0: localized, saved, and resumed from a save."""
    ends = []
    for resume in (None, str(out / how / "checkpoint-2")):
        args = TrainingArguments(
            str(out / how), max_steps=4, per_device_train_batch_size=2, report_to="none", disable_tqdm=True,
            save_steps=2, logging_steps=1, use_cpu=True, learning_rate=1e-2, max_grad_norm=0.0, deepspeed=config(0),
        )  # fmt: skip
        policy = RandomLayers(2, every=1)
        network = model()
        given: dict[str, Any] = {}
        if how == "factory":
            given["optimizer_cls_and_kwargs"] = localized_optimizer(args, policy)
        if how == "callback":
            given["callbacks"] = [Localize(policy)]
        rows = torch.randint(VOCABULARY, (16, 6), generator=torch.Generator().manual_seed(0))
        run = Trainer(network, args, train_dataset=[{"input_ids": row, "labels": row} for row in rows], **given)
        if how == "localize":
            localize(run, policy)
        run.train(resume_from_checkpoint=resume)
        ends.append(weights(network))
    updated = [entry["updated_layers"] for entry in run.state.log_history if "updated_layers" in entry]
    report = run.optimizer.optimizer.report()
    return {"whole": ends[0], "resumed": ends[1], "updated": list(report.updated), "logged": updated}


def main() -> None:
    out = Path(sys.argv[1])
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo")
    found: dict[str, Any] = {}
    cases: dict[str, Any] = {"stage 0": lambda: stage_0(out)}
    for stage in (1, 2, 3):
        for before in (True, False):
            name = f"stage {stage}, {'before' if before else 'after'}"
            cases[name] = lambda stage=stage, before=before: refused(stage, before)
        for how in ("freeze", "groups"):
            cases[f"stage {stage}, {how}"] = lambda stage=stage, how=how: remedy(stage, how)
    cases |= {f"trainer, {how}": lambda how=how: trainer(out, how) for how in ("localize", "factory", "callback")}
    for name, case in cases.items():
        try:
            found[name] = case()
        except Exception as error:  # the test that looks at this case says so
            found[name] = {"error": f"{type(error).__name__}: {error}"}
    if dist.get_rank() == 0:
        torch.save(found, out / "found.pt")
    leave()


if __name__ == "__main__":
    main()
