"""Settings + model + trace -> the optimizer of a run, and the rate it trains at."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from localopt.errors import InputError
from localopt.layers import Layers
from localopt.optimizer import LocalizedOptimizer
from localopt.policies.compose import RelativeTo
from localopt.policies.protocol import Policy
from localopt.policies.rules import AboveMean, Everything
from localopt.pretraining.settings import PLAIN_RATE, Settings
from localopt.steps.anchor import AnchorDecay
from localopt.tracing.layer_trace import LayerTrace

WEIGHT_DECAY = 0.01
RATE_TO_WEIGHTS = 0.0124
"""Peak rate of "auto" over the root mean square of the matrices that it trains.

Adam moves every weight by about the rate at a step, so this is the share of a typical weight that one step changes. It
is 2.4e-3, at which SmolLM2-135M took in most for the same forgetting on the layers chosen there (the MLPs of blocks 1,
3 to 8 and 23 to 27; see benchmarks/results/lifelong.md), over 0.193, the root mean square of those.
"""


def rate_by_rule(weights: Iterable[Tensor]) -> float:
    """Return the peak rate for training these weights: ``RATE_TO_WEIGHTS`` of the root mean square of the matrices.

    Where there is no matrix among them, that of all. Two digits are kept, so that it is the number that is shown.

    Raises:
        InputError: all are zero, or some not finite.

    >>> import torch
    >>> rate_by_rule([torch.full((8, 4), 0.2), torch.ones(4)])
    0.0025
    """
    every = [weight.detach() for weight in weights]
    sized = [weight for weight in every if weight.dim() > 1] or every
    total = sum(weight.double().square().sum().item() for weight in sized)
    root = (total / max(1, sum(weight.numel() for weight in sized))) ** 0.5
    if not 0 < root < float("inf"):
        raise InputError(f"the weights to train have a root mean square of {root:g}, which gives no rate: set --lr.")
    return float(f"{RATE_TO_WEIGHTS * root:.2g}")


def rate(model: nn.Module, settings: Settings) -> float:
    """Return the peak rate of a run; call it before training, with what will not be trained frozen."""
    if settings.lr is not None:
        return settings.lr
    if settings.method != "auto":
        return PLAIN_RATE
    return rate_by_rule(parameter for parameter in model.parameters() if parameter.requires_grad)


def make_optimizer(model: nn.Module, settings: Settings, trace: LayerTrace | None) -> Optimizer:
    """Return AdamW over the model's parameters, localized as ``settings.method`` says.

    Weight decay is on matrices only. "auto" and "freeze" freeze the model's other layers for good.

    Raises:
        ValueError: the trace is of other layers.
    """
    if settings.method in ("auto", "freeze"):
        assert trace is not None
        trace.freeze(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = AdamW([group for group in groups if group["params"]], lr=rate(model, settings), fused=True)
    policy = _policy(settings, trace)
    if policy is None and settings.pull == 0:
        return optimizer
    layers: Layers = "sublayer" if trace is None else trace.partition()
    anchor = AnchorDecay(settings.pull, rule="selective")
    return LocalizedOptimizer(optimizer, model, policy or Everything(), layers=layers, anchor_decay=anchor)


def _policy(settings: Settings, trace: LayerTrace | None) -> Policy | None:
    if settings.method == "rescale":
        assert trace is not None
        return trace.adaptive_learning_rates()
    if settings.method == "online":
        return AboveMean() if trace is None else RelativeTo(trace, AboveMean())
    return None
