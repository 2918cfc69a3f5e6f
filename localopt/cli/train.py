"""``localopt train``."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from localopt.cli.shared import (
    Model,
    Probes,
    check_trace,
    err_console,
    loaded,
    out_console,
    placed,
    refuse_missing,
    resumable,
    say_written,
)
from localopt.errors import InputError, writing

if TYPE_CHECKING:
    from localopt.pretraining.history import History


def train(
    model: Model,
    corpus: Annotated[
        list[Path],
        typer.Option(
            help="Text, or JSON lines with a field `text`; may be given several times.",
            metavar="FILE",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(help="New folder for checkpoints, scores, pictures, and the model (DIR/model).", metavar="DIR"),
    ],
    method: Annotated[
        str,
        typer.Option(
            help="auto: trains the layers that a trace of the corpus chooses, held near their start. full: all layers. "
            "freeze: only those the trace chose. rescale: all, at rates from the trace. online: chosen anew at every "
            "step."
        ),
    ] = "auto",
    trace: Annotated[
        Path | None,
        typer.Option(
            help="What `localopt trace` wrote: for freeze and rescale; auto then makes none; online then sees norms "
            "relative to its reference.",
            metavar="FILE",
        ),
    ] = None,
    probe: Probes = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="What the model should keep: ordinary text, or a probe file of facts. Every other piece is scored, "
            "the rest is for choosing layers. Without it, auto and --budget take text that the model writes itself.",
            metavar="FILE",
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Peak learning rate. By default auto takes it from the size of the weights; others: 5e-5."),
    ] = None,
    anchor_decay: Annotated[
        float | None,
        typer.Option(
            help="How strongly weights are held near their start, 0 (not) to 1. By default 1 for auto, 0 for others."
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(help="Forget at most this much: rise of the reference's loss, in nats a token, such as 0.05."),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the corpus.", min=1)] = 3,
    batch_size: Annotated[int, typer.Option(help="Sequences a step, of all processes together.", min=1)] = 8,
    seq_len: Annotated[int, typer.Option(help="Tokens a sequence.", min=2)] = 256,
    bf16: Annotated[bool, typer.Option("--bf16", help="bfloat16 autocast; weights stay float32.")] = False,
    seed: Annotated[int, typer.Option(help="Order of the sequences, and dropout.", min=0)] = 0,
    limit: Annotated[
        int,
        typer.Option(
            help="Score at most this many probes, or pieces of text, of each set, spaced evenly. The corpus is "
            "trained on whole.",
            min=1,
        ),
    ] = 256,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in DIR, if there is one.")] = False,
    keep_checkpoints: Annotated[
        bool, typer.Option("--keep-checkpoints", help="Leave the last checkpoints in DIR when the run is finished.")
    ] = False,
) -> None:
    """Continue a model's pretraining on new text, scoring it before and after every epoch.

    With nothing but a corpus it finds the layers that the text needs most for what that costs the model's own text,
    trains those, holds them near their start, and shows what was learned and forgotten.

    A run that was stopped goes on from its last checkpoint with the same command and --resume. `torchrun -m localopt
    train ...` shares each step's sequences among several processes.
    """
    from localopt.pretraining.history import History, refuse_taken
    from localopt.pretraining.lock import held, refuse_held
    from localopt.pretraining.settings import Settings

    settings = Settings(method, lr, epochs, batch_size, seq_len, bf16, seed, anchor_decay, budget)
    refuse_held(out)
    if resume and (out / "model").exists() and (out / "history.json").is_file():
        first = os.environ.get("RANK", "0") == "0"
        with held(out) if first else nullcontext():  # which also clears away the lock of a process that was killed
            if not first or (out / "checkpoints").exists():  # all but the end was done
                _end(out, History.load(out / "history.json"), keep_checkpoints)
                return
    refuse_taken(out, resume)
    refuse_missing(*corpus, reference)

    from localopt.pretraining.probes import read_corpus
    from localopt.pretraining.scoring import read_sets
    from localopt.pretraining.train import train as run
    from localopt.tracing.layer_trace import LayerTrace

    texts = [text for path in corpus for text in read_corpus(path)]
    sets = read_sets(probe or [], reference, limit=limit)
    known = None if trace is None else LayerTrace.load(trace)
    network, tokenizer = loaded(model)
    if known is not None:
        check_trace(known, trace, network)
        if known.holds_gains and method == "online":
            raise InputError(f"{trace}: holds gains, not norms, so online cannot use it: choose freeze or rescale.")
    with resumable(out):
        history = run(
            placed(network),
            tokenizer,
            texts,
            out,
            settings,
            trace=known,
            sets=sets,
            resume=resume,
            progress=True,
            keep_checkpoints=True,  # until table and picture are there: then the end can be done again
        )
    _end(out, history, keep_checkpoints)


def _end(out: Path, history: History, keep_checkpoints: bool) -> None:
    """Show what a finished run did, and remove its checkpoints."""
    from localopt.pretraining.auto import TRACE
    from localopt.pretraining.checkpoints import newest, prune
    from localopt.pretraining.notes import load_notes
    from localopt.pretraining.processes import processes
    from localopt.pretraining.results import save_pictures, tables
    from localopt.tracing.layer_trace import LayerTrace

    if not processes().is_main_process:
        return
    shown = tables(history)
    for table in shown:
        out_console.print(table)
    made, last = out / TRACE, newest(out / "checkpoints")
    noted = None if last is None else load_notes(last)
    with writing(out):
        pictures = save_pictures(history, LayerTrace.load(made) if made.exists() else None, noted, out)
    if shown and not (out / "learning-forgetting.png").exists():
        err_console.print("no picture: learning against forgetting needs --probe and --reference")
    if not keep_checkpoints:
        prune(out / "checkpoints")
    end = out / "model-end"
    say_written(out / "model", end if end.exists() else None, out / "history.json", *pictures)
