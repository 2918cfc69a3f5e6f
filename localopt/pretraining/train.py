"""Continued pretraining of a causal language model, on all layers or on those a trace or the step itself chooses.

The loop is the transformers Trainer (`trainer.py`); this file gives it the optimizer, scores the model between epochs,
and makes a run that was killed go on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from localopt.errors import InputError
from localopt.optimizer import LocalizedOptimizer
from localopt.policies.compose import RelativeTo
from localopt.policies.rules import AboveMean
from localopt.pretraining.checkpoints import prune, where_to_go_on
from localopt.pretraining.history import History, fingerprint
from localopt.pretraining.lock import LOCK, alone_in_its_folder
from localopt.pretraining.models import save_model
from localopt.pretraining.probes import Probe, encode_text
from localopt.pretraining.processes import processes, say
from localopt.pretraining.scoring import ScoredSet, as_numbers, score_sets
from localopt.pretraining.settings import Settings, plan, refuse_longer, refuse_trace, refuse_uneven
from localopt.pretraining.vocabulary import refuse_beyond
from localopt.tracing.layer_trace import LayerTrace

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WEIGHT_DECAY = 0.01


@alone_in_its_folder
def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Sequence[str],
    out: str | Path,
    settings: Settings,
    *,
    trace: LayerTrace | None = None,
    sets: Sequence[ScoredSet] = (),
    resume: bool = False,
    progress: bool = False,
    keep_checkpoints: bool = False,
) -> History:
    """Continue a model's pretraining on documents, and save it.

    Writes ``OUT/history.json`` (what was asked, and the scores), ``OUT/checkpoints`` (the last two, until the end) and,
    at the end, ``OUT/model``.

    Under torchrun every process calls this. They share each step's sequences, by DistributedDataParallel; the last step
    of an epoch is filled up with sequences from its beginning. Each scores the whole sets, so that none waits for
    another, and the first writes the files.

    Args:
        model: changed in place; ``method="freeze"`` also sets ``requires_grad``.
        tokenizer: that of the model.
        corpus: documents; packed into sequences of ``settings.seq_len`` tokens, loss on every token.
        out: a new folder, or with ``resume`` that of the same run.
        settings: how to train.
        trace: which layers; needed by "freeze" and "rescale", optional for "online".
        sets: what to score the model on before, after every epoch and at the end.
        resume: go on from the last whole checkpoint in ``out``; starts anew if there is none.
        progress: show bars with the remaining time on standard error.
        keep_checkpoints: leave the last two where they are when the run is finished.

    Raises:
        InputError: another run is at work in ``out``; ``out`` is not empty, or with ``resume`` is of another run or a
            finished one; the trace is missing; sequences longer than the model can read; a step's sequences cannot be
            shared out evenly; a checkpoint or the model cannot be written; the run diverged.
        ValueError: the trace is of other layers.
    """
    from localopt.pretraining.trainer import fit  # transformers' Trainer takes seconds to import

    out = Path(out)
    here = processes()
    progress = progress and here.is_main_process
    refuse_trace(settings, trace)
    refuse_longer(settings.seq_len, model)
    refuse_uneven(settings.batch_size, here.num_processes)
    history = _history(out, settings, _fingerprints(model, corpus, trace, sets), resume)
    here.wait_for_everyone()  # none may find what another writes below
    sequences = encode_text(corpus, tokenizer, settings.seq_len)
    refuse_beyond(sequences, model)
    if progress:
        say(plan(settings, len(sequences), sum(len(sequence["input_ids"]) for sequence in sequences)))
    torch.manual_seed(settings.seed)
    optimizer = make_optimizer(model, settings, trace)
    history.all_parameters = model.num_parameters()
    history.trained_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)

    def score(epoch: int, step: int) -> None:
        # In training accelerate puts the model's forward pass under autocast; the scores before it must compare.
        with torch.autocast(model.device.type, torch.bfloat16, enabled=settings.bf16):
            scores = score_sets(model, tokenizer, sets, batch_size=settings.batch_size, progress=progress)
        entry: dict[str, Any] = {"epoch": epoch, "step": step, "sets": as_numbers(scores)}
        if isinstance(optimizer, LocalizedOptimizer) and step > 0:
            report = optimizer.report()
            entry |= {"updated_layers": list(report.updated), "share_updated": report.share_updated}
        # A run that was killed goes on from before its last scores, and takes them again.
        history.scores = [*(entry for entry in history.scores if entry["step"] < step), entry]
        if here.is_main_process:
            history.save(out / "history.json")

    checkpoint = where_to_go_on(out / "checkpoints")
    if checkpoint is None:
        score(0, 0)  # the first to write: by now everything that can be wrong with the input was looked at
    folder = out / "checkpoints"
    fit(model, sequences, optimizer, settings, folder, checkpoint, score, progress=progress)
    if here.is_main_process:
        save_model(model, tokenizer, out / "model")
        if not keep_checkpoints:
            prune(folder)
    here.wait_for_everyone()
    return history


def make_optimizer(model: nn.Module, settings: Settings, trace: LayerTrace | None) -> Optimizer:
    """Return AdamW over the model's parameters, localized as ``settings.method`` says.

    Weight decay is on matrices only. "freeze" freezes the model's other layers for good.

    Raises:
        ValueError: the trace is of other layers.
    """
    if settings.method == "freeze":
        assert trace is not None
        trace.freeze(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = AdamW([group for group in groups if group["params"]], lr=settings.lr, fused=True)
    if settings.method == "rescale":
        assert trace is not None
        return LocalizedOptimizer(optimizer, model, trace.adaptive_learning_rates(), layers=trace.partition())
    if settings.method == "online" and trace is not None:
        return LocalizedOptimizer(optimizer, model, RelativeTo(trace, AboveMean()), layers=trace.partition())
    if settings.method == "online":
        return LocalizedOptimizer(optimizer, model)
    return optimizer


def refuse_taken(out: Path, resume: bool) -> None:
    """Raise InputError if a run can neither begin in this folder nor, with ``resume``, go on there."""
    if resume and (out / "history.json").is_file():
        if (out / "model").exists():
            raise InputError(f"{out}: this run is finished, its model is in {out / 'model'}: name a new folder.")
    elif out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - {LOCK}):
        remedy = "name a new folder" if resume else "name a new folder, or add --resume to go on with the run in it"
        raise InputError(f"{out}: exists and is not empty: {remedy}.")


def _fingerprints(
    model: nn.Module, corpus: Sequence[str], trace: LayerTrace | None, sets: Sequence[ScoredSet]
) -> dict[str, str]:
    """Tell a run's inputs from others by their content, so that files may move before it goes on."""
    weights = ((name, tuple(p.shape), p.detach().flatten()[:8].tolist()) for name, p in model.named_parameters())
    found = {"model": fingerprint(weights), "corpus": fingerprint(corpus)}
    if trace is not None:
        found["trace"] = fingerprint([trace.layers, trace.probe_norms.tolist(), trace.reference_norms.tolist()])
    for one in sets:
        items = ((item.text, item.span) if isinstance(item, Probe) else item for item in one.content)
        found[f"set {one.name}"] = fingerprint(items)
    return found


def _history(out: Path, settings: Settings, inputs: dict[str, str], resume: bool) -> History:
    """Return the history of the run to resume, or a new one."""
    refuse_taken(out, resume)
    path = out / "history.json"
    if not path.is_file():
        return History(asdict(settings), inputs)
    history = History.load(path)
    history.refuse_other(asdict(settings), inputs, out)
    return history
