"""The transformers Trainer, and trainers made from it (TRL's, axolotl's, LlamaFactory's, your own).

One call, for any of them, before ``trainer.train()``: the optimizer that the trainer makes is localized when training
begins, and the trainer's logs say what was trained.

    localize(trainer)

Where only callbacks can be given, ``callbacks=[Localize()]``; where an optimizer's class and options can, what
``localized_optimizer(args)`` returns, and ``trainer.add_callback(LocalizationCallback(trainer))`` for the logs.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any, Literal

import transformers
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.optim import Optimizer
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from localopt.integrations.tensorboard import add_picture
from localopt.layers import Layers
from localopt.optimizer import LocalizedOptimizer
from localopt.policies.protocol import Policy
from localopt.steps.anchor import AnchorDecay, as_decay
from localopt.steps.elsewhere import DEEPSPEED
from localopt.steps.history import History
from localopt.steps.report import Report


def localized_optimizer(
    args: TrainingArguments,
    policy: Policy | None = None,
    *,
    layers: Layers = "sublayer",
    frozen_state: Literal["hold", "track", "drop"] = "hold",
    nonfinite: Literal["skip", "raise"] = "skip",
    anchor_decay: float | AnchorDecay | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Return what Trainer takes as ``optimizer_cls_and_kwargs``: the optimizer it would have made itself, localized.

    So ``optim``, learning rate, betas, epsilon and weight decay come from ``args``, and Trainer's own parameter groups
    (no decay for biases and norms) stay. Under FSDP, where Trainer refuses ``optimizers=``, it takes this (which needs
    GPUs and has not been tried yet). There is no ``max_grad_norm``: Trainer clips, by the one in ``args``.

    Args:
        args: the arguments the Trainer is given.
        policy: as for :class:`localopt.LocalizedOptimizer`; each optimizer made gets a copy of its own, so one tuple
            may serve several runs.
        layers: likewise.
        frozen_state: likewise.
        nonfinite: likewise.
        anchor_decay: likewise.

    Returns:
        A factory and its arguments.

    Raises:
        ImportError: transformers is older than 5.2, which has no optimizer factories.
        ValueError: ``args.deepspeed`` asks for ZeRO, which flattens layers; with what to do instead.

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
    refuse_zero(args)
    options = {"layers": layers, "frozen_state": frozen_state, "nonfinite": nonfinite, "anchor_decay": anchor_decay}
    return _Factory, {"args": args, "policy": policy, **options}


class _Factory:
    """Trainer's protocol: ``factory()(model, **kwargs)`` is the optimizer; axolotl gives its arguments too."""

    def __call__(
        self,
        model: nn.Module,
        training_args: TrainingArguments | None = None,
        *,
        args: TrainingArguments | None = None,
        policy: Policy | None = None,
        **options: Any,
    ) -> Optimizer:
        args = args or training_args
        assert args is not None
        return LocalizedOptimizer(
            _OptimizerMaker(model, args).create_optimizer(), model, copy.deepcopy(policy), **options
        )


class _OptimizerMaker(Trainer):
    """A Trainer as far as ``create_optimizer`` looks at one."""

    def __init__(self, model: nn.Module, args: TrainingArguments) -> None:
        self.model = self.model_wrapped = model
        self.args = args
        self.optimizer = self.optimizer_cls_and_kwargs = None


class Localize(TrainerCallback):
    """Localize the optimizer that a trainer made, when training begins: for those who can only give callbacks.

    Whatever made it (``create_optimizer`` of a subclass, several rates, ``optimizers=``) stays as it is, as do its
    scheduler and a checkpoint that was loaded.

    Args:
        policy: as for :class:`localopt.LocalizedOptimizer`; each training gets a copy of its own.
        options: likewise.

    Examples:
        >>> from localopt import AboveMean
        >>> Localize(AboveMean(), layers="block").options
        {'layers': 'block'}
    """

    def __init__(self, policy: Policy | None = None, **options: Any) -> None:
        # A checkpoint is loaded into the bare optimizer, before training begins: it must have a state for every start.
        decay = as_decay(options.get("anchor_decay"), unasked=policy is None)
        complete = {"complete_checkpoints": True} if decay.strength else {}
        self.policy, self.options = policy, complete | options

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        """Wrap what accelerate prepared; ValueError where ZeRO flattened it or the gradients are clipped twice."""
        refuse_zero(args)
        if type(optimizer).__name__ == "DeepSpeedOptimizerWrapper":
            if isinstance(optimizer.optimizer, LocalizedOptimizer):
                return  # localize() saw to it, or the factory
            raise ValueError(
                "DeepSpeed's engine holds the Trainer's optimizer by now, and it is not localized: call "
                "localize(trainer), or pass Trainer(optimizer_cls_and_kwargs=localized_optimizer(args)), and leave "
                '"optimizer" out of the DeepSpeed configuration'
            )
        if not isinstance(optimizer, AcceleratedOptimizer):
            raise TypeError(
                f"a Trainer's optimizer was expected, as accelerate prepares it, not {type(optimizer).__name__}"
            )
        if isinstance(optimizer.optimizer, LocalizedOptimizer):
            return  # this callback did, in an earlier training
        own = self.options.get("max_grad_norm")
        if own is not None and args.max_grad_norm:
            raise ValueError(_twice(args.max_grad_norm, own))
        localized = LocalizedOptimizer(optimizer.optimizer, model, copy.deepcopy(self.policy), **self.options)
        replaced = AcceleratedOptimizer(localized, device_placement=False, scaler=optimizer.scaler)
        vars(optimizer).update({key: value for key, value in vars(replaced).items() if key != "accelerator_state"})


def localize(trainer: Trainer, policy: Policy | None = None, **options: Any) -> None:
    """Localize what a trainer trains with: any that is built on transformers' Trainer, before its ``train()``.

    Args:
        trainer: not yet trained.
        policy: as for :class:`localopt.LocalizedOptimizer`.
        options: likewise. ``max_grad_norm`` is the Trainer's business unless its own is 0.

    Raises:
        TypeError: not a Trainer.
        ValueError: the trainer uses DeepSpeed ZeRO.
    """
    if not isinstance(trainer, Trainer):
        raise TypeError(f"localize takes a transformers Trainer, not {type(trainer).__name__}")
    refuse_zero(trainer.args)
    if trainer.is_deepspeed_enabled:  # stage 0: its engine takes the optimizer before training begins, and keeps it
        create = trainer.create_optimizer

        def localized(*arguments: Any, **others: Any) -> Optimizer:
            made = create(*arguments, **others)
            if not isinstance(made, LocalizedOptimizer):
                trainer.optimizer = LocalizedOptimizer(made, trainer.model, copy.deepcopy(policy), **options)
            return trainer.optimizer  # type: ignore[return-value]

        trainer.create_optimizer = localized  # type: ignore[method-assign]
    trainer.add_callback(Localize(policy, **options))
    trainer.add_callback(LocalizationCallback(trainer))


def refuse_zero(args: Any) -> None:
    """Raise ValueError if training arguments ask for DeepSpeed's stages 1 to 3."""
    config = getattr(args, "hf_deepspeed_config", None) or getattr(args, "deepspeed", None)
    if isinstance(config, str):
        with open(config, encoding="utf-8") as file:
            config = json.load(file)
    config = getattr(config, "config", config) or {}
    stage = config.get("zero_optimization", {}).get("stage", 0) if isinstance(config, Mapping) else 1
    if stage != 0:
        raise ValueError(
            f"args.deepspeed asks for ZeRO stage {stage}: " + DEEPSPEED.format(what="the parameters will be")
        )


class LocalizationCallback(TrainerCallback):
    """Add to Trainer's logs what the last step did, whenever Trainer logs the loss.

    ``share_updated`` (of the parameters), ``updated_layers`` and ``skipped_steps`` go wherever the loss goes. What
    there is for each layer, ``gradient_norm/LAYER`` and ``scale/LAYER``, goes to the services ``report_to`` names
    (TensorBoard, Weights & Biases, ...) but not to the console and the saved history, which it would flood. Norms are
    those the optimizer saw: after Trainer's clipping. Between logs nothing is read, so nothing waits for the device.
    TensorBoard also gets the picture of the run, layers times steps, with every checkpoint and at the end.

    Refuses, before the first step, an optimizer that is not localized, and clipping by both sides.

    Args:
        trainer: the one it is added to: ``trainer.add_callback(LocalizationCallback(trainer))``.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._stepped = False  # a gradient scaler may skip the first steps, after which there is nothing to tell
        self._noted: History | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        """Raise TypeError unless the optimizer is localized, ValueError if Trainer and optimizer would both clip."""
        localized = _localized(optimizer)
        own = localized.max_grad_norm
        if own is not None and args.max_grad_norm:
            raise ValueError(_twice(args.max_grad_norm, own))
        if state.is_world_process_zero:
            self._noted = localized._history or localized.history()  # the user's own goes on

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Give TensorBoard the picture."""
        if self._noted is not None:
            add_picture(self.trainer.callback_handler.callbacks, self._noted, state.global_step)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        """Note that there was a step."""
        self._stepped |= not getattr(optimizer, "step_was_skipped", False)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Any = None, optimizer: Any = None, **others: Any
    ) -> None:
        """Log the last step too."""
        if "train_loss" in (logs or {}):  # the end: TensorBoard's writer is closed by the time on_train_end is called
            self.on_save(args, state, control)
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


def _twice(trainers: float, own: float) -> str:
    return (
        f"gradients would be clipped twice: by Trainer to {trainers} over all layers "
        f"(TrainingArguments.max_grad_norm), then by the optimizer to {own} over the layers it "
        "updates (LocalizedOptimizer's max_grad_norm). Leave the second out, or set the first to 0"
    )


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
            "Trainer(optimizer_cls_and_kwargs=localized_optimizer(args)) or call localize(trainer), which also works "
            "where a subclass makes an optimizer of its own, or where transformers drops the one given (DeepSpeed)"
        )
    return inner
