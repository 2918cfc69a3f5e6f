"""The model to measure: which of its parameters count, and how it is lent and given back as it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from localopt.layers import Layers, partition


def trained_layers(model: nn.Module, layers: Layers) -> dict[str, str]:
    """The layer of every parameter that requires a gradient; ValueError where none does, or the model is wrapped."""
    refuse_wrapped(model, "trace")
    layer_of = partition((name for name, _ in model.named_parameters()), layers)
    trained = {name: layer_of[name] for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError("no parameter of the model requires a gradient: call model.requires_grad_(True) first")
    return trained


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Lend the model for measuring, and give it back as it was, whatever happens inside.

    Inside, every module is in evaluation mode (no dropout; Hugging Face models do not checkpoint either), gradients are
    recorded, no parameter has one, and hooks of the caller that would run on finished gradients (an optimizer in the
    backward pass, say) are set aside. Afterwards training modes, gradients (the same tensors), hooks and random state
    are those of before.
    """
    modes = [(module, module.training) for module in model.modules()]
    kept = [(p, p.grad, p._post_accumulate_grad_hooks) for p in model.parameters()]
    devices = {p.device for p in model.parameters() if p.device.type not in ("cpu", "meta")}
    try:
        for module, _ in modes:
            module.training = False  # .eval() may do more than that in a model of the caller's
        for p, _, _ in kept:
            p.grad = None
            p._post_accumulate_grad_hooks = None  # type: ignore[assignment]
        with _random_state(devices), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for p, gradient, hooks in kept:
            p.grad = gradient
            p._post_accumulate_grad_hooks = hooks


@contextmanager
def _random_state(devices: Iterable[torch.device]) -> Iterator[None]:
    kind = next((device.type for device in devices), "cuda")
    with torch.random.fork_rng(list(devices), device_type=kind):
        yield


def refuse_wrapped(model: nn.Module, action: str) -> None:
    """Raise ValueError if ``model``, or a module in it, is wrapped for data-parallel, sharded or DeepSpeed training."""
    wrappers = ("torch.nn.parallel.distributed", "torch.distributed", "deepspeed")
    for name, module in model.named_modules():
        kinds = [kind for kind in type(module).__mro__ if kind.__module__.startswith(wrappers)]
        if kinds or any(type(p).__module__.startswith("torch.distributed") for p in module.parameters(recurse=False)):
            how = kinds[0].__name__ if kinds else "DTensor"
            raise ValueError(
                f"cannot {action} a model that is already wrapped ({name or 'the model'} is a {how}): "
                f"{action} the plain model first, and wrap it afterwards"
            )
