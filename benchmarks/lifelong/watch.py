"""Which layers the steps of a run updated."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from benchmarks.lifelong.methods.rules import Online, Scales
from localopt import LocalizedOptimizer
from localopt.layers import partition


class Watch:
    """Called after every step of an optimizer.

    `scales`: of each layer, averaged over the steps; `share`: of the parameters a step updates, likewise.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, plan: Scales | Online) -> None:
        self.optimizer = optimizer if isinstance(plan, Online) else None
        self.steps = 0
        layer_of = partition((name for name, _ in model.named_parameters()), "sublayer")
        everything = sum(parameter.numel() for parameter in model.parameters())
        held = sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"])
        self.scales = dict.fromkeys(layer_of.values(), 0.0) if isinstance(plan, Online) else dict(plan)
        self.share = 0.0 if isinstance(plan, Online) else held / everything

    def __call__(self) -> None:
        if not isinstance(self.optimizer, LocalizedOptimizer):
            return
        report = self.optimizer.report()
        self.steps += 1
        self.share += (report.share_updated - self.share) / self.steps
        for layer, scale in zip(report.names, report.scales, strict=True):
            self.scales[layer] += (scale - self.scales[layer]) / self.steps
