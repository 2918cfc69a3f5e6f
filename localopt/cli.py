"""The command line: ``localopt demo``, ``eval``, ``trace``, ``train``.

Every mistake in the input is one message on standard error and exit code 2; results go to standard output, progress to
standard error.
"""

from __future__ import annotations

import os
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from localopt.errors import InputError, writing

if TYPE_CHECKING:
    from localopt.tracing.layer_trace import LayerTrace

app = typer.Typer(
    help="Keep a language model up to date: find the layers new knowledge lives in, train those, leave the rest alone.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out_console = Console()
err_console = Console(stderr=True)

Model = Annotated[str, typer.Argument(help="Hub id, local folder, or GGUF file.", metavar="MODEL")]
Probes = Annotated[
    list[str] | None,
    typer.Option(
        "--probe", help="Probe file to score, and what to call it; may be given several times.", metavar="NAME=FILE"
    ),
]
Reference = Annotated[
    Path | None,
    typer.Option(help="What the model should keep: ordinary text, or a probe file of facts.", metavar="FILE"),
]


@app.command()
def demo(
    out: Annotated[
        Path | None, typer.Option(help="New folder for pictures, traces and numbers; a free name if none is given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed is another world.")] = 0,
) -> None:
    """Watch it work in three minutes, offline: a small world whose facts change, and a model that has to keep up."""
    from localopt.demo import run_demo

    names = chain(["localopt-demo"], (f"localopt-demo-{number}" for number in count(2)))
    free = (Path(name) for name in names)
    run_demo(out or next(path for path in free if not path.exists()), seed=seed, console=out_console)


@app.command()
def trace(
    model: Model,
    probe: Annotated[Path, typer.Option(help="Knowledge to take in: a probe file.", metavar="FILE")],
    reference: Annotated[Path, typer.Option(help="Ordinary text, or a probe file of facts to keep.", metavar="FILE")],
    out: Annotated[Path, typer.Option(help="Trace file to write (safetensors).", metavar="FILE")],
    plot: Annotated[Path | None, typer.Option(help="Also draw a heat map, to this picture.", metavar="FILE")] = None,
    layers: Annotated[str, typer.Option(help="What a layer is: sublayer, block or parameter.")] = "sublayer",
    by: Annotated[
        str, typer.Option(help="norms: of gradients; gains: what a step wins on the probe over what it costs.")
    ] = "norms",
    limit: Annotated[int | None, typer.Option(help="Use at most this many examples of each file.", min=1)] = None,
    seq_len: Annotated[
        int, typer.Option(help="Tokens of a piece of text, and the most a probe may have.", min=2)
    ] = 256,
) -> None:
    """Find the layers new knowledge lives in: gradient norms on the probe, relative to the reference.

    In the table, "FP trains" is what `train --method freeze` does, "ALR" the factor on the rate by `--method rescale`.
    """
    from localopt.plots import check_picture
    from localopt.pretraining.models import load_model
    from localopt.pretraining.probes import encode, read_probes, read_reference
    from localopt.pretraining.processes import processes
    from localopt.pretraining.settings import refuse_longer
    from localopt.tracing.gains import trace_gains
    from localopt.tracing.trace import trace_layers

    _refuse_existing(out, plot)
    if plot is not None:
        check_picture(plot)
    if layers not in ("sublayer", "block", "parameter"):
        raise InputError(f"--layers must be sublayer, block or parameter, not {layers!r}.")
    if by not in ("norms", "gains"):
        raise InputError(f"--by must be norms or gains, not {by!r}.")
    here = processes()
    several = here.num_processes > 1
    if by == "gains" and several:
        raise InputError(f"--by gains needs one process, and this is one of {here.num_processes}: leave torchrun out.")
    probes = _evenly(read_probes(probe), limit)
    network, tokenizer = load_model(model)
    refuse_longer(seq_len, network)
    examples = encode(probes, tokenizer, seq_len)
    references = _evenly(read_reference(reference, tokenizer, seq_len), limit)
    measure: Any = trace_gains if by == "gains" else partial(trace_layers, distributed=several)
    result = measure(
        _placed(network),
        examples,
        references,
        layers=layers,
        progress=here.is_main_process,
    )
    if not here.is_main_process:
        return
    with writing(out):
        result.save(out)
    out_console.print(result.table())
    if plot is not None:
        with writing(plot):
            result.plot(plot)
    _say_written(out, plot)


@app.command()
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
) -> None:
    """Continue a model's pretraining on new text, scoring it before and after every epoch.

    A run that was killed goes on from its last checkpoint with the same command and --resume. `torchrun -m localopt
    train ...` shares each step's sequences among several processes.
    """
    from localopt.pretraining.models import load_model
    from localopt.pretraining.probes import read_corpus
    from localopt.pretraining.processes import processes
    from localopt.pretraining.results import history_table, save_picture
    from localopt.pretraining.scoring import read_sets
    from localopt.pretraining.settings import Settings
    from localopt.pretraining.train import refuse_taken
    from localopt.pretraining.train import train as run
    from localopt.tracing.layer_trace import LayerTrace

    refuse_taken(out, resume)
    settings = Settings(method, lr, epochs, batch_size, seq_len, bf16, seed)
    texts = [text for path in corpus for text in read_corpus(path)]
    sets = read_sets(probe or [], reference)
    loaded = None if trace is None else LayerTrace.load(trace)
    network, tokenizer = load_model(model)
    if loaded is not None:
        _check_trace(loaded, trace, network)
        if loaded.holds_gains and method == "online":
            raise InputError(f"{trace}: holds gains, not norms, so online cannot use it: choose freeze or rescale.")
    network = _placed(network)
    history = run(network, tokenizer, texts, out, settings, trace=loaded, sets=sets, resume=resume, progress=True)
    if not processes().is_main_process:
        return
    if sets:
        out_console.print(history_table(history))
    with writing(out / "learning-forgetting.png"):
        picture = save_picture(history, out / "learning-forgetting.png")
    if picture is None and sets:
        err_console.print("no picture: learning against forgetting needs --probe and --reference")
    _say_written(out / "model", out / "history.json", picture)


@app.command(name="eval")
def evaluate(
    model: Model,
    probe: Probes = None,
    reference: Reference = None,
    batch_size: Annotated[int, typer.Option(help="Examples scored at a time.", min=1)] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Score a model: loss and perplexity of the probes' spans, and the share of answers ranked first.

    The loss (NLL) is in nats a token. An answer is ranked first if greedy decoding after its prompt would write it.
    """
    from localopt.pretraining.models import load_model
    from localopt.pretraining.scoring import read_sets, score_sets, score_table, scores_to_json

    sets = read_sets(probe or [], reference)
    if not sets:
        raise InputError("nothing to score: give --probe NAME=FILE or --reference FILE.")
    network, tokenizer = load_model(model)
    scores = score_sets(_placed(network), tokenizer, sets, batch_size=batch_size, progress=True)
    if as_json:
        print(scores_to_json(scores), flush=True)  # so that a full disk is noticed here
    else:
        out_console.print(score_table(scores, title=model))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; what ``localopt`` calls."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # one for every file, among ours
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # hints for those who call it themselves
    try:
        app(arguments)
    except (InputError, OSError) as error:  # OSError: no space left, no permission, a file that vanished
        process = os.environ.get("RANK", "0")
        who = "localopt" if process == "0" else f"localopt, process {process}"
        err_console.print(f"{who}: {error}", style="red", markup=False, soft_wrap=True)
        raise SystemExit(2) from None


def _placed(network: Any) -> Any:
    """Put a model on this process's accelerator, if there is one."""
    from localopt.pretraining.processes import processes

    return network.to(processes().device)


def _check_trace(loaded: LayerTrace, path: Path | None, network: Any) -> None:
    """Refuse a trace that is of another model, or cannot choose layers."""
    from localopt.layers import partition

    try:
        loaded.check(partition((name for name, _ in network.named_parameters()), loaded.partition()).values())
        _ = loaded.relative_norms
    except ValueError as error:
        raise InputError(f"{path}: {error}.") from error


def _say_written(*paths: Path | None) -> None:
    written = ", ".join(str(path) for path in paths if path is not None)
    err_console.print(f"written: {written}", markup=False, highlight=False, soft_wrap=True)


def _evenly(items: list[Any], limit: int | None) -> list[Any]:
    """At most ``limit`` of the items, spaced evenly: files are often sorted by topic."""
    if limit is None or limit >= len(items):
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


def _refuse_existing(*paths: Path | None) -> None:
    for path in paths:
        if path is not None and path.exists():
            raise InputError(f"{path}: exists already: name a new file, or remove this one.")
        if path is not None and not path.parent.is_dir():
            raise InputError(f"{path}: there is no folder {path.parent}: make it first.")
        if path is not None and not os.access(path.parent, os.W_OK):
            raise InputError(f"{path}: {path.parent} cannot be written to: name another folder.")


if __name__ == "__main__":
    main()
