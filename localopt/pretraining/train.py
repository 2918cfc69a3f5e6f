"""Continued pretraining of a causal language model, on all layers or on those a trace or the step itself chooses.

The loop is the transformers Trainer (`trainer.py`); this file gives it the optimizer, scores the model between epochs,
makes a run that was killed go on where it was, and ends it where the forgetting budget says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from localopt.layers import partition
from localopt.optimizer import LocalizedOptimizer
from localopt.pretraining import announce
from localopt.pretraining.auto import Material, own_samples, scored_part
from localopt.pretraining.budget import keep_within
from localopt.pretraining.checkpoints import prune, where_to_go_on
from localopt.pretraining.history import History, fingerprint, refuse_taken
from localopt.pretraining.lock import alone_in_its_folder
from localopt.pretraining.models import save_model
from localopt.pretraining.optimizers import make_optimizer
from localopt.pretraining.probes import Probe, encode_text
from localopt.pretraining.processes import processes, say
from localopt.pretraining.scoring import REFERENCE, ScoredSet, as_numbers, score_sets
from localopt.pretraining.settings import Settings, refuse_longer, refuse_trace, refuse_uneven
from localopt.pretraining.vocabulary import refuse_beyond
from localopt.tracing.layer_trace import LayerTrace

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
    at the end, ``OUT/model``. "auto" without a trace also writes ``OUT/trace.safetensors`` and, without a reference,
    ``OUT/own-text.jsonl``. With a forgetting budget that the end does not keep to, ``OUT/model`` is the model on the
    way that does, and ``OUT/model-end`` that of the end of training.

    Under torchrun every process calls this. They share each step's sequences, by DistributedDataParallel; the last step
    of an epoch is filled up with sequences from its beginning. Each scores the whole sets, so that none waits for
    another, and the first writes the files.

    Args:
        model: changed in place, to what ``OUT/model`` holds; "auto" and "freeze" also set ``requires_grad``.
        tokenizer: that of the model.
        corpus: documents; packed into sequences of ``settings.seq_len`` tokens, loss on every token.
        out: a new folder, or with ``resume`` that of the same run.
        settings: how to train.
        trace: which layers; needed by "freeze" and "rescale", optional for "online" and "auto", which makes its own.
        sets: what to score the model on before, after every epoch and at the end. The one named "reference" is what
            the model should keep: every other piece of it is scored, and the rest left for "auto" to choose layers
            against; where there is none, "auto" and a budget take text that the model writes itself, before it trains.
        resume: go on from the last whole checkpoint in ``out``; starts anew if there is none.
        progress: show bars with the remaining time on standard error.
        keep_checkpoints: leave the last two where they are when the run is finished.

    Raises:
        InputError: another run is at work in ``out``; ``out`` is not empty, or with ``resume`` is of another run or a
            finished one; the trace is missing; sequences longer than the model can read; a reference is needed and the
            model cannot write one; a step's sequences cannot be shared out evenly; a checkpoint or the model cannot be
            written; the run diverged.
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
    for one in sets:
        refuse_beyond(one.examples(model, tokenizer), model)
    if settings.needs_reference and not any(one.name == REFERENCE for one in sets):
        own_samples(model, settings.seed)
    if progress:
        say(announce.plan(settings, len(sequences), sum(len(sequence["input_ids"]) for sequence in sequences)))
    # By now everything that can be wrong with the input was looked at.
    if settings.needs_reference:
        if here.is_main_process and not (out / "history.json").exists():
            history.save(out / "history.json")  # so that a run that is killed from here on is known as one
        material = Material(model, tokenizer, sequences, sets, settings, out, progress)
        chooses = settings.method == "auto" and trace is None
        sets, trace = material.sets(), material.trace() if chooses else trace
    else:
        sets = [scored_part(one, model, tokenizer) for one in sets]
    torch.manual_seed(settings.seed)
    optimizer = make_optimizer(model, settings, trace)
    _describe(history, model, optimizer, trace)
    if progress:
        say(announce.trained(model, "sublayer" if trace is None else trace.partition()))
        say(announce.rate_rule(settings, history.rate))
    start: dict[str, torch.Tensor] = {}
    if settings.budget is not None:  # whoever resumes gives the untouched model again
        start = {name: p.detach().cpu().clone() for name, p in model.named_parameters() if p.requires_grad}

    def scores() -> dict[str, dict[str, Any]]:
        # In training accelerate puts the model's forward pass under autocast; the scores before it must compare.
        with torch.autocast(model.device.type, torch.bfloat16, enabled=settings.bf16):
            return as_numbers(score_sets(model, tokenizer, sets, batch_size=settings.batch_size, progress=progress))

    def save() -> None:
        if here.is_main_process:
            history.save(out / "history.json")

    def score(epoch: int, step: int) -> None:
        entry: dict[str, Any] = {"epoch": epoch, "step": step, "sets": scores()}
        if isinstance(optimizer, LocalizedOptimizer) and step > 0:
            report = optimizer.report()
            entry |= {"updated_layers": list(report.updated), "share_updated": report.share_updated}
        # A run that was killed goes on from before its last scores, and takes them again.
        history.scores = [*(entry for entry in history.scores if entry["step"] < step), entry]
        save()
        if progress and sets:
            say(announce.scores(entry, history.scores[0]))

    checkpoint = where_to_go_on(out / "checkpoints")
    if checkpoint is None:
        score(0, 0)
    folder = out / "checkpoints"
    noted = optimizer.history() if isinstance(optimizer, LocalizedOptimizer) else None
    fit(model, sequences, optimizer, settings, folder, checkpoint, score, noted=noted, progress=progress)
    if settings.budget is not None:
        history.budget = keep_within(
            model, start, scores, settings.budget, out / "model-end", tokenizer, progress=progress
        )
        save()
    if here.is_main_process:
        save_model(model, tokenizer, out / "model")
        if not keep_checkpoints:
            prune(folder)
    here.wait_for_everyone()
    return history


def _describe(history: History, model: PreTrainedModel, optimizer: Optimizer, trace: LayerTrace | None) -> None:
    """Write down what will train, and how fast."""
    parameters = dict(model.named_parameters())
    layer_of = partition(parameters, "sublayer" if trace is None else trace.partition())
    history.all_parameters = model.num_parameters()
    history.trained_parameters = sum(p.numel() for p in parameters.values() if p.requires_grad)
    history.trained_layers = list(dict.fromkeys(layer_of[name] for name, p in parameters.items() if p.requires_grad))
    history.rate = optimizer.param_groups[0]["lr"]


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
