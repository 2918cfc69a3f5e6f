"""What every process of a run with something wrong on one of them saw; started by torchrun, prints JSON."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from localopt import LocalizedOptimizer
from localopt.policies import TopK
from localopt.tracing.trace import trace_layers
from tests.distributed.ending import leave
from tests.tiny_models import examples, llama


class Unpicklable(Exception):
    """An exception that holds what cannot be sent."""

    def __init__(self) -> None:
        super().__init__("what really happened")
        self.held = lambda: None


def said(function: Callable[[], Any]) -> str:
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def broadcast_nan() -> dict[str, Any]:
    """The second process alone has a NaN, in one layer, in the second of three steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    inner = torch.optim.AdamW(model.parameters(), lr=0.1)
    optimizer = LocalizedOptimizer(inner, model, TopK(1), broadcast_norms=True)
    for step in range(3):
        for number, parameter in enumerate(model.parameters()):
            parameter.grad = torch.full_like(parameter, 1.0 + number)
        if step == 1 and dist.get_rank() == 1:
            model[0].weight.grad[0, 0] = math.nan
        optimizer.step()
    weights = [value for parameter in model.parameters() for value in parameter.flatten().tolist()]
    return {"weights": weights, "skipped": optimizer.report().skipped_steps}


def unpicklable_error() -> str:
    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        if dist.get_rank() == 1:
            raise Unpicklable
        result: torch.Tensor = model(**batch).loss
        return result

    return said(lambda: trace_layers(llama(), examples(4), examples(4), loss=loss, distributed=True))


def different_counts() -> str:
    return said(lambda: trace_layers(llama(), examples(4 + 2 * dist.get_rank()), examples(4), distributed=True))


def different_layers() -> str:
    layers: Any = ("sublayer", "block")[dist.get_rank()]
    return said(lambda: trace_layers(llama(), examples(4), examples(4), layers=layers, distributed=True))


def main() -> None:
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    cases = (broadcast_nan, unpicklable_error, different_counts, different_layers)
    seen = {case.__name__: case() for case in cases}
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, seen)
    if dist.get_rank() == 0:
        print(json.dumps({name: [of_one[name] for of_one in everyone] for name in seen}), flush=True)
    leave()


if __name__ == "__main__":
    main()
