"""The transformers Trainer, told what :mod:`localopt.pretraining.train` wants of it."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from tqdm.auto import tqdm  # type: ignore[import-untyped]
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from localopt.errors import InputError
from localopt.pretraining.checkpoints import last_whole, seal
from localopt.pretraining.divergence import Watch
from localopt.pretraining.evaluate import padded
from localopt.pretraining.notes import resume_notes, save_notes
from localopt.pretraining.probes import Example
from localopt.pretraining.processes import processes, say
from localopt.pretraining.settings import Settings, rate_share
from localopt.steps.history import History as LayerHistory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAVE_EVERY = 100  # steps, or an epoch if that is shorter
LINE_EVERY = 10.0  # seconds, at least, between two lines where no bar can be shown


def fit(
    model: PreTrainedModel,
    sequences: Sequence[Example],
    optimizer: Optimizer,
    settings: Settings,
    folder: Path,
    checkpoint: Path | None,
    score: Callable[[int, int], None],
    *,
    noted: LayerHistory | None = None,
    progress: bool,
) -> None:
    """Run the training loop.

    Args:
        model, optimizer, settings: see :func:`localopt.pretraining.train.train`.
        sequences: what to train on, ``input_ids`` and ``labels`` of shape (T,).
        folder: where checkpoints go; the last two are kept.
        checkpoint: where to go on from, or None to begin.
        score: called with (epoch, step) after every epoch.
        noted: what the optimizer notes of its layers; kept with each checkpoint.
        progress: show a bar with the remaining time.

    Raises:
        InputError: a checkpoint cannot be written; the run diverged.
    """
    steps_an_epoch = settings.steps_an_epoch(len(sequences))
    schedule = LambdaLR(optimizer, partial(rate_share, steps=steps_an_epoch * settings.epochs))
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size // processes().num_processes,
        bf16=settings.bf16,
        use_cpu=not torch.accelerator.is_available(),  # said aloud, or Trainer refuses bf16 there
        seed=settings.seed,
        save_strategy="steps",
        save_steps=min(SAVE_EVERY, steps_an_epoch),
        save_total_limit=2,
        logging_steps=max(1, steps_an_epoch // 10),
        disable_tqdm=not progress,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        report_to="none",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # Trainer would give each GPU a batch of its own
    watch = Watch()
    if noted is not None and checkpoint is not None:
        resume_notes(noted, checkpoint)
    trainer = _Trainer(
        watch,
        noted,
        model=model,
        args=arguments,
        train_dataset=sequences,
        data_collator=_batch,
        optimizers=(optimizer, schedule),
        callbacks=[_Score(score, steps_an_epoch, watch)],
    )
    trainer.remove_callback(PrinterCallback)
    if progress:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(_Progress() if sys.stderr.isatty() else _Lines())
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def _batch(sequences: list[Example]) -> dict[str, Tensor]:
    return dict(zip(("input_ids", "labels", "attention_mask"), padded(sequences), strict=True))


class _Trainer(Trainer):
    def __init__(self, watch: Watch, noted: LayerHistory | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.watch, self.noted = watch, noted

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().training_step(*args, **kwargs)
        self.watch.see(loss)
        return loss

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        step, folder = self.state.global_step, Path(str(self.args.output_dir))
        self.watch.refuse_diverged(cast(nn.Module, self.model), step, folder)
        try:
            super()._save_checkpoint(*args, **kwargs)
            self.accelerator.wait_for_everyone()  # each process has a file of its own in it
            if self.args.should_save:
                if self.noted is not None:
                    save_notes(self.noted, folder / f"checkpoint-{step}")
                seal(folder / f"checkpoint-{step}", self.args.world_size)
        except (OSError, SafetensorError, RuntimeError) as error:  # torch.save raises a RuntimeError on a full disk
            if self.args.should_save:
                last_whole(folder)
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"{folder}: no checkpoint can be written there ({reason}): make room, then go on with --resume."
            ) from error


class _Score(TrainerCallback):
    """Scores the model after each epoch's last step, before Trainer writes the checkpoint of that step.

    So whoever goes on from a checkpoint finds all scores up to it.
    """

    def __init__(self, score: Callable[[int, int], None], steps_an_epoch: int, watch: Watch) -> None:
        self.score = score
        self.steps_an_epoch = steps_an_epoch
        self.watch = watch

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        epoch, within = divmod(state.global_step, self.steps_an_epoch)
        if within == 0:
            self.watch.refuse_diverged(model, state.global_step, Path(args.output_dir))
            with tqdm.external_write_mode(file=sys.stderr):  # one bar at a time
                self.score(epoch, state.global_step)


class _Progress(ProgressCallback):
    """Trainer's bar, with the loss beside it instead of a printed line for every log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        bar = getattr(self, "training_bar", None)
        if bar is not None and logs and "loss" in logs:
            bar.set_postfix(loss=f"{float(logs['loss']):.3f}", epoch=f"{state.epoch:.1f}", refresh=False)


class _Lines(TrainerCallback):
    """A line now and then with the loss and the remaining time: for logs, where a bar would be a mess."""

    def __init__(self) -> None:
        self.begun: tuple[float, int] | None = None
        self.said = -math.inf

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.begun = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        now, last = time.monotonic(), state.global_step >= state.max_steps
        if self.begun is None or not logs or "loss" not in logs or (now < self.said + LINE_EVERY and not last):
            return
        self.said = now
        since, first = self.begun
        left = (now - since) / max(1, state.global_step - first) * (state.max_steps - state.global_step)
        say(
            f"step {state.global_step} of {state.max_steps}, loss {float(logs['loss']):.3f}, "
            f"{timedelta(seconds=round(left))} left"
        )
