"""Continued pretraining of a causal language model, on all layers or on those a trace or the step itself chooses.

The loop is the transformers Trainer; this file gives it the optimizer, scores the model between epochs, and makes a run
that was killed go on where it was.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from localopt.compose import RelativeTo
from localopt.errors import InputError
from localopt.evaluate import Score
from localopt.layer_trace import LayerTrace
from localopt.models import save_model
from localopt.optimizer import LocalizedOptimizer
from localopt.policies import AboveMean
from localopt.probes import encode_text
from localopt.scoring import ScoredSet, score_sets

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

METHODS = ("full", "freeze", "rescale", "online")
WEIGHT_DECAY = 0.01
WARMUP = 0.05  # share of the steps


@dataclass(frozen=True)
class Settings:
    """What a run was asked to do; a resumed run must be asked the same.

    Attributes:
        method: ``"full"``: AdamW on everything. ``"freeze"`` (TGL + FP): on the layers a trace chose, the others do not
            even get gradients. ``"rescale"`` (TGL + ALR): each layer's rate scaled by the trace. ``"online"``: each
            step on the layers with large gradient norms, relative to the trace's reference if there is a trace.
        lr: peak learning rate; linear warm-up over 5% of the steps, linear decay to 0.
        epochs, batch_size, seq_len: passes over the corpus, sequences a step, tokens a sequence.
        bf16: run the model under bfloat16 autocast (weights stay float32).
        seed: order of the sequences and dropout.
    """

    method: str = "online"
    lr: float = 5e-5
    epochs: int = 3
    batch_size: int = 8
    seq_len: int = 256
    bf16: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"method must be one of {', '.join(METHODS)}, not {self.method!r}.")
        if not self.lr > 0:
            raise InputError(f"the learning rate must be > 0, not {self.lr}.")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}.")


@dataclass
class History:
    """What a run did so far: one entry of ``scores`` before training and one after each epoch.

    Attributes:
        settings: the :class:`Settings`, as a dictionary.
        scores: ``{"epoch": ..., "step": ..., "sets": {name: score}}``, in order; ``updated_layers`` are those of the
            last step, where an optimizer chose them.
        trained_parameters, all_parameters: how many weights could change, and how many there are.
    """

    settings: dict[str, Any]
    scores: list[dict[str, Any]] = field(default_factory=list)
    trained_parameters: int = 0
    all_parameters: int = 0

    def save(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path) -> History:
        """Read what :meth:`save` wrote."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path}: is not the history of a run ({error}): name the folder of one.") from error


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
) -> History:
    """Continue a model's pretraining on documents, and save it.

    Writes ``OUT/history.json`` (settings and scores), ``OUT/checkpoints`` (the last two) and, at the end, the model to
    ``OUT/model``.

    Args:
        model: changed in place; ``method="freeze"`` also sets ``requires_grad``.
        tokenizer: that of the model.
        corpus: documents; packed into sequences of ``settings.seq_len`` tokens, loss on every token.
        out: a new folder, or with ``resume`` that of the same run.
        settings: how to train.
        trace: which layers; needed by "freeze" and "rescale", optional for "online".
        sets: what to score the model on before, after every epoch and at the end.
        resume: go on from the last whole checkpoint in ``out``; starts anew if there is none.
        progress: show bars with the remaining time.

    Raises:
        InputError: ``out`` exists, or with ``resume`` is of another run; the trace is missing, or of other layers.
    """
    out = Path(out)
    _check_trace(settings, trace)
    history = _history(out, settings, resume)
    sequences = encode_text(corpus, tokenizer, settings.seq_len)
    torch.manual_seed(settings.seed)
    optimizer = make_optimizer(model, settings, trace)
    # Nothing is written before everything that can be wrong was looked at.
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = _last_checkpoint(out / "checkpoints")
    history.all_parameters = model.num_parameters()
    history.trained_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)

    from localopt.trainer import fit  # transformers' Trainer takes seconds to import

    def score(epoch: float, step: int) -> None:
        # A run that goes on from before its last scores takes them again.
        history.scores = [entry for entry in history.scores if entry["step"] < step]
        scores = score_sets(model, tokenizer, sets, batch_size=settings.batch_size, progress=progress)
        entry = {"epoch": epoch, "step": step, "sets": {name: one.as_dict() for name, one in scores.items()}}
        if isinstance(optimizer, LocalizedOptimizer) and step > 0:
            entry["updated_layers"] = list(optimizer.report().updated)
        history.scores.append(entry)
        history.save(out / "history.json")

    fit(
        model,
        tokenizer,
        sequences,
        optimizer,
        settings,
        folder=out / "checkpoints",
        warmup=WARMUP,
        checkpoint=checkpoint,
        score=score,
        progress=progress,
    )
    save_model(model, tokenizer, out / "model")
    return history


def make_optimizer(model: nn.Module, settings: Settings, trace: LayerTrace | None) -> Optimizer:
    """Return AdamW over the model's parameters, localized as ``settings.method`` says.

    Weight decay is on matrices only. "freeze" freezes the model's other layers for good.
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


def uptake_and_forgetting(history: History, reference: str) -> dict[str, list[tuple[float, float]]]:
    """Return, for each scored set but the reference, its path of (rise of the reference's NLL, fall of its own NLL)."""
    if not history.scores or reference not in history.scores[0]["sets"]:
        return {}
    start = history.scores[0]["sets"]
    return {
        name: [
            (e["sets"][reference]["nll"] - start[reference]["nll"], start[name]["nll"] - e["sets"][name]["nll"])
            for e in history.scores[1:]
        ]
        for name in start
        if name != reference
    }


def _check_trace(settings: Settings, trace: LayerTrace | None) -> None:
    if settings.method in ("freeze", "rescale") and trace is None:
        raise InputError(
            f'method "{settings.method}" needs a trace: make one with `localopt trace`, give it as --trace.'
        )
    if settings.method == "full" and trace is not None:
        raise InputError('method "full" trains every layer and has no use for a trace: leave --trace out.')


def _history(out: Path, settings: Settings, resume: bool) -> History:
    """Return the history of the run to resume, or a new one if ``out`` can take it."""
    mine = asdict(settings)
    path = out / "history.json"
    if resume and path.is_file():
        history = History.load(path)
        other = {key: value for key, value in history.settings.items() if mine.get(key) != value}
        if other:
            asked = {key: mine.get(key) for key in other}
            raise InputError(
                f"{out}: this run was started with {other}, not {asked}: resume it with the same settings."
            )
        if (out / "model").exists():
            raise InputError(f"{out}: this run is finished, its model is in {out / 'model'}: name a new folder.")
        return history
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        remedy = "name a new folder" if resume else "name a new folder, or add --resume to go on with the run in it"
        raise InputError(f"{out}: exists and is not empty: {remedy}.")
    return History(mine)


def _last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end, and remove what a killed run left half-written."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    whole = []
    for path in found:
        try:
            # Trainer writes this file last.
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            whole.append(path)
        except (OSError, ValueError):
            shutil.rmtree(path)
    return whole[-1] if whole else None


__all__ = ["METHODS", "History", "Score", "Settings", "make_optimizer", "train", "uptake_and_forgetting"]
