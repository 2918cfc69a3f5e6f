"""Which layers the steps of a run updated."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from benchmarks.lifelong.methods.optimizers import partition_of
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
        self.scales = dict.fromkeys(layer_of.values(), 0.0) if isinstance(plan, Online) else _by_sublayer(model, plan)
        self.share = 0.0 if isinstance(plan, Online) else held / everything

    def __call__(self) -> None:
        if not isinstance(self.optimizer, LocalizedOptimizer):
            return
        report = self.optimizer.report()
        self.steps += 1
        self.share += (report.share_updated - self.share) / self.steps
        for layer, scale in zip(report.names, report.scales, strict=True):
            self.scales[layer] += (scale - self.scales[layer]) / self.steps


def _by_sublayer(model: nn.Module, plan: Scales) -> Scales:
    """The scales of attentions and MLPs; where matrices have their own, the mean over their parameters."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    sublayers = partition(sizes, "sublayer")
    units = partition(sizes, partition_of(plan, sizes))
    total = dict.fromkeys(sublayers.values(), 0.0)
    trained = dict(total)
    for name, size in sizes.items():
        total[sublayers[name]] += size
        trained[sublayers[name]] += size * plan[units[name]]
    return {layer: trained[layer] / total[layer] for layer in total}
