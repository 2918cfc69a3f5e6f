"""``localopt train``."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from localopt.cli.shared import Model, Probes, Reference, check_trace, err_console, out_console, placed, say_written
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
        typer.Option(help="New folder for checkpoints, scores, picture, and the model (DIR/model).", metavar="DIR"),
    ],
    method: Annotated[
        str,
        typer.Option(
            help="Which layers: full (all), freeze (only those the trace chose), rescale (all, at rates from the "
            "trace), online (chosen anew at every step)."
        ),
    ] = "online",
    trace: Annotated[
        Path | None,
        typer.Option(
            help="What `localopt trace` wrote: for freeze and rescale; online then sees norms relative to its "
            "reference.",
            metavar="FILE",
        ),
    ] = None,
    probe: Probes = None,
    reference: Reference = None,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 5e-5,
    epochs: Annotated[int, typer.Option(help="Passes over the corpus.", min=1)] = 3,
    batch_size: Annotated[int, typer.Option(help="Sequences a step, of all processes together.", min=1)] = 8,
    seq_len: Annotated[int, typer.Option(help="Tokens a sequence.", min=2)] = 256,
    bf16: Annotated[bool, typer.Option("--bf16", help="bfloat16 autocast; weights stay float32.")] = False,
    seed: Annotated[int, typer.Option(help="Order of the sequences, and dropout.", min=0)] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in DIR, if there is one.")] = False,
    keep_checkpoints: Annotated[
        bool, typer.Option("--keep-checkpoints", help="Leave the last checkpoints in DIR when the run is finished.")
    ] = False,
) -> None:
    """Continue a model's pretraining on new text, scoring it before and after every epoch.

    A run that was killed goes on from its last checkpoint with the same command and --resume. `torchrun -m localopt
    train ...` shares each step's sequences among several processes.
    """
    from localopt.pretraining.history import History
    from localopt.pretraining.lock import held, refuse_held
    from localopt.pretraining.models import load_model
    from localopt.pretraining.probes import read_corpus
    from localopt.pretraining.scoring import read_sets
    from localopt.pretraining.settings import Settings
    from localopt.pretraining.train import refuse_taken
    from localopt.pretraining.train import train as run
    from localopt.tracing.layer_trace import LayerTrace

    refuse_held(out)
    if resume and (out / "model").exists() and ((out / "checkpoints").exists() or os.environ.get("RANK", "0") != "0"):
        with held(out) if os.environ.get("RANK", "0") == "0" else nullcontext():  # all but the end was done
            _end(out, History.load(out / "history.json"), keep_checkpoints)
        return
    refuse_taken(out, resume)
    settings = Settings(method, lr, epochs, batch_size, seq_len, bf16, seed)
    texts = [text for path in corpus for text in read_corpus(path)]
    sets = read_sets(probe or [], reference)
    loaded = None if trace is None else LayerTrace.load(trace)
    network, tokenizer = load_model(model)
    if loaded is not None:
        check_trace(loaded, trace, network)
        if loaded.holds_gains and method == "online":
            raise InputError(f"{trace}: holds gains, not norms, so online cannot use it: choose freeze or rescale.")
    network = placed(network)
    history = run(
        network,
        tokenizer,
        texts,
        out,
        settings,
        trace=loaded,
        sets=sets,
        resume=resume,
        progress=True,
        keep_checkpoints=True,  # until table and picture are there: then the end can be done again
    )
    _end(out, history, keep_checkpoints)


def _end(out: Path, history: History, keep_checkpoints: bool) -> None:
    """Show what a finished run did, and remove its checkpoints."""
    from localopt.pretraining.checkpoints import prune
    from localopt.pretraining.processes import processes
    from localopt.pretraining.results import history_table, save_picture

    if not processes().is_main_process:
        return
    sets = bool(history.scores and history.scores[0]["sets"])
    if sets:
        out_console.print(history_table(history))
    with writing(out / "learning-forgetting.png"):
        picture = save_picture(history, out / "learning-forgetting.png")
    if picture is None and sets:
        err_console.print("no picture: learning against forgetting needs --probe and --reference")
    if not keep_checkpoints:
        prune(out / "checkpoints")
    say_written(out / "model", out / "history.json", picture)
