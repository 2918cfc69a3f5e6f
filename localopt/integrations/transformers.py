"""The transformers Trainer: an optimizer made from its own arguments, and its logs with what localization did.

trainer = Trainer(model, args, ..., optimizer_cls_and_kwargs=localized_optimizer(args))
trainer.add_callback(LocalizationCallback(trainer))
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import transformers
from torch import nn
from torch.optim import Optimizer
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from localopt.layers import Layers
from localopt.optimizer import LocalizedOptimizer
from localopt.policies import AboveMean
from localopt.policies.protocol import Policy
from localopt.steps.report import Report


def localized_optimizer(
    args: TrainingArguments,
    policy: Policy = AboveMean(),
    *,
    layers: Layers = "sublayer",
    frozen_state: Literal["hold", "track", "drop"] = "hold",
    nonfinite: Literal["skip", "raise"] = "skip",
) -> tuple[Any, dict[str, Any]]:
    """Return what Trainer takes as ``optimizer_cls_and_kwargs``: the optimizer it would have made itself, localized.

    So ``optim``, learning rate, betas, epsilon and weight decay come from ``args``, and Trainer's own parameter groups
    (no decay for biases and norms) stay. Under FSDP, where Trainer refuses ``optimizers=``, it takes this (which needs
    GPUs and has not been tried yet). There is no ``max_grad_norm``: Trainer clips, by the one in ``args``.

    Args:
        args: the arguments the Trainer is given.
        policy: each optimizer made gets a copy of its own, so one tuple may serve several runs.
        layers: as for :class:`localopt.LocalizedOptimizer`.
        frozen_state: likewise.
        nonfinite: likewise.

    Returns:
        A factory and its arguments.

    Raises:
        ImportError: transformers is older than 5.2, which has no optimizer factories.

    Examples:
        >>> from transformers import TrainingArguments
        >>> args = TrainingArguments(learning_rate=3e-4, weight_decay=0.1, report_to="none")
        >>> factory, options = localized_optimizer(args)  # Trainer(..., optimizer_cls_and_kwargs=...)
        >>> optimizer = factory()(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), **options)
        >>> [group["weight_decay"] for group in optimizer.param_groups]
        [0.1, 0.0]
    """
    if not hasattr(transformers.trainer, "is_optimizer_factory"):
        raise ImportError(
            f"transformers {transformers.__version__} cannot make an optimizer from a factory: upgrade to 5.2 or "
            "newer, or pass Trainer(optimizers=(LocalizedOptimizer(...), None))"
        )
    options = {"policy": policy, "layers": layers, "frozen_state": frozen_state, "nonfinite": nonfinite}
    return _Factory, {"args": args, **options}


class _Factory:
    """Trainer's protocol: ``factory()(model, **kwargs)`` is the optimizer."""

    def __call__(self, model: nn.Module, *, args: TrainingArguments, policy: Policy, **options: Any) -> Optimizer:
        return LocalizedOptimizer(
            _OptimizerMaker(model, args).create_optimizer(), model, copy.deepcopy(policy), **options
        )


class _OptimizerMaker(Trainer):
    """A Trainer as far as ``create_optimizer`` looks at one."""

    def __init__(self, model: nn.Module, args: TrainingArguments) -> None:
        self.model = self.model_wrapped = model
        self.args = args
        self.optimizer = self.optimizer_cls_and_kwargs = None


class LocalizationCallback(TrainerCallback):
    """Add to Trainer's logs what the last step did, whenever Trainer logs the loss.

    ``share_updated`` (of the parameters), ``updated_layers`` and ``skipped_steps`` go wherever the loss goes. What
    there is for each layer, ``gradient_norm/LAYER`` and ``scale/LAYER``, goes to the services ``report_to`` names
    (TensorBoard, Weights & Biases, ...) but not to the console and the saved history, which it would flood. Norms are
    those the optimizer saw: after Trainer's clipping. Between logs nothing is read, so nothing waits for the device.

    Refuses, before the first step, an optimizer that is not localized, and clipping by both sides.

    Args:
        trainer: the one it is added to: ``trainer.add_callback(LocalizationCallback(trainer))``.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._stepped = False  # a gradient scaler may skip the first steps, after which there is nothing to tell

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        """Raise TypeError unless the optimizer is localized, ValueError if Trainer and optimizer would both clip."""
        own = _localized(optimizer).max_grad_norm
        if own is not None and args.max_grad_norm:
            raise ValueError(
                f"gradients would be clipped twice: by Trainer to {args.max_grad_norm} over all layers "
                f"(TrainingArguments.max_grad_norm), then by the optimizer to {own} over the layers it updates "
                "(LocalizedOptimizer's max_grad_norm). Leave the second out, or set the first to 0"
            )

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        """Note that there was a step."""
        self._stepped |= not getattr(optimizer, "step_was_skipped", False)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Any = None, optimizer: Any = None, **others: Any
    ) -> None:
        """Log the last step too."""
        if not self._stepped or "loss" not in (logs or {}):
            return
        report = _localized(optimizer).report()
        self.trainer.log(
            {
                "share_updated": report.share_updated,
                "updated_layers": len(report.updated),
                "skipped_steps": report.skipped_steps,
            }
        )
        for callback in self.trainer.callback_handler.callbacks:
            if not isinstance(callback, (LocalizationCallback, PrinterCallback, ProgressCallback)):
                callback.on_log(args, state, control, logs=_by_layer(report), optimizer=optimizer, **others)


def _by_layer(report: Report) -> dict[str, float]:
    values = {f"scale/{name}": scale for name, scale in zip(report.names, report.scales, strict=True)}
    if report.norms is not None:
        values |= {f"gradient_norm/{name}": norm for name, norm in zip(report.names, report.norms, strict=True)}
    return values


def _localized(optimizer: Any) -> LocalizedOptimizer:
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper stands around it
    if not isinstance(inner, LocalizedOptimizer):
        raise TypeError(
            f"LocalizationCallback needs a LocalizedOptimizer, the Trainer's optimizer is {type(inner).__name__}: pass "
            "Trainer(optimizer_cls_and_kwargs=localized_optimizer(args)) or optimizers=(LocalizedOptimizer(...), None)"
        )
    return inner
