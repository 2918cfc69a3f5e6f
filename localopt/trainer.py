"""The transformers Trainer, told what :mod:`localopt.train` wants of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer
from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from localopt.probes import IGNORED, Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from localopt.train import Settings

SAVE_EVERY = 100  # steps, or an epoch if that is shorter


def fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sequences: Sequence[Example],
    optimizer: Optimizer,
    settings: Settings,
    *,
    folder: Path,
    warmup: float,
    checkpoint: Path | None,
    score: Callable[[float, int], None],
    progress: bool,
) -> None:
    """Run the training loop.

    Args:
        model, tokenizer, optimizer, settings: see :func:`localopt.train.train`.
        sequences: what to train on, ``input_ids`` and ``labels`` of shape (T,).
        folder: where checkpoints go; the last two are kept.
        warmup: share of the steps over which the learning rate rises.
        checkpoint: where to go on from, or None to begin.
        score: called with (epoch, step) before the first step and after every epoch.
        progress: show a bar with the remaining time.
    """
    steps_an_epoch = math.ceil(len(sequences) / settings.batch_size)
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        warmup_steps=math.ceil(warmup * steps_an_epoch * settings.epochs),
        lr_scheduler_type="linear",
        bf16=settings.bf16,
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
    trainer = Trainer(
        model=model,
        args=arguments,
        # Plain lists: the collator turns them into one tensor, and is slow on tensors.
        train_dataset=[{key: ids.tolist() for key, ids in sequence.items()} for sequence in sequences],
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True, label_pad_token_id=IGNORED),
        optimizers=(optimizer, None),
        callbacks=[_Score(score, steps_an_epoch)],
    )
    trainer.remove_callback(PrinterCallback)
    if progress:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(_Progress)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


class _Score(TrainerCallback):
    def __init__(self, score: Callable[[float, int], None], steps_an_epoch: int) -> None:
        self.score = score
        self.steps_an_epoch = steps_an_epoch

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # Also where a run goes on that was killed between an epoch's last checkpoint and its scores.
        if state.global_step % self.steps_an_epoch == 0:
            self.score(state.global_step / self.steps_an_epoch, state.global_step)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.score(state.global_step / self.steps_an_epoch, state.global_step)


class _Progress(ProgressCallback):
    """Trainer's bar, with the loss beside it instead of a printed line for every log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        bar = getattr(self, "training_bar", None)
        if bar is not None and logs and "loss" in logs:
            bar.set_postfix(loss=f"{float(logs['loss']):.3f}", epoch=f"{state.epoch:.1f}", refresh=False)
