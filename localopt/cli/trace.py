"""``localopt trace``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from localopt.cli.shared import Model, loaded, out_console, placed, refuse_existing, refuse_missing, say_written
from localopt.errors import InputError, writing
from localopt.layers import Mode
from localopt.outside import shown
from localopt.pretraining.textfiles import evenly

if TYPE_CHECKING:
    from localopt.pretraining.probes import Example
    from localopt.tracing.samples import Samples


def trace(
    model: Model,
    out: Annotated[Path, typer.Option(help="Trace file to write (safetensors).", metavar="FILE")],
    probe: Annotated[
        Path | None, typer.Option(help="Knowledge to take in: a probe file, the loss on the answers.", metavar="FILE")
    ] = None,
    corpus: Annotated[
        list[Path] | None,
        typer.Option(
            help="In place of --probe: the new text itself, the loss on every token; may be given several times.",
            metavar="FILE",
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="What to keep: ordinary text, or a probe file of facts. Without it, text the model writes itself.",
            metavar="FILE",
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw a heat map, to this picture.", metavar="FILE")] = None,
    layers: Annotated[str, typer.Option(help="What a layer is: sublayer, block, matrix or parameter.")] = "sublayer",
    by: Annotated[
        str, typer.Option(help="norms: of gradients; gains: what a step wins on the probe over what it costs.")
    ] = "norms",
    limit: Annotated[
        int | None,
        typer.Option(help="Use at most this many examples of each file; of a corpus 64 by itself.", min=1),
    ] = None,
    seq_len: Annotated[
        int, typer.Option(help="Tokens of a piece of text, and the most a probe may have.", min=2)
    ] = 256,
) -> None:
    """Find the layers new knowledge lives in: gradient norms on the probe, relative to the reference.

    A corpus is enough: `localopt trace MODEL --corpus news.txt --by gains --out trace.safetensors` asks which layers
    the corpus gains most on for what that costs text the model writes itself, as `train --method auto` does.

    In the table, "FP trains" (frozen parameters) marks the layers that `train` updates with `--method freeze`, "ALR"
    (adaptive learning rate) is the factor on a layer's rate with `--method rescale`.
    """
    if (probe is None) == (not corpus):
        given = "neither was given" if probe is None else "both were given"
        raise InputError(f"what is to be taken in is either --probe FILE or --corpus FILE, and {given}.")
    refuse_missing(*(corpus or []), reference)

    from localopt.plots import check_picture
    from localopt.pretraining import announce
    from localopt.pretraining.auto import TRACED, own_samples, whole
    from localopt.pretraining.probes import encode, encode_text, read_corpus, read_probes, read_reference
    from localopt.pretraining.processes import processes, say
    from localopt.pretraining.settings import refuse_longer
    from localopt.pretraining.vocabulary import refuse_beyond
    from localopt.tracing.trace import trace_layers

    refuse_existing(out, plot)
    if plot is not None:
        check_picture(plot)
        if plot.absolute() == out.absolute():
            raise InputError(f"{out}: is both the trace and its picture: name two files.")
    if layers not in get_args(Mode):
        raise InputError(f"--layers must be one of {', '.join(get_args(Mode))}, not {layers!r}.")
    if by not in ("norms", "gains"):
        raise InputError(f"--by must be norms or gains, not {by!r}.")
    here = processes()
    several = here.num_processes > 1
    probes = [] if probe is None else evenly(read_probes(probe), limit)
    texts = [text for path in corpus or [] for text in read_corpus(path)]
    network, tokenizer = loaded(model)
    refuse_longer(seq_len, network)
    if probe is not None:
        examples = encode(probes, tokenizer, seq_len)
    else:
        examples = evenly(whole(encode_text(texts, tokenizer, seq_len)), limit or TRACED)
    against: Samples | list[Example]
    if reference is not None:
        against = evenly(read_reference(reference, tokenizer, seq_len), limit)
        refuse_beyond(against, network)
    else:
        against = own_samples(network)
        if here.is_main_process:
            say(f"no --reference: against {against.count} texts that the model writes itself")
    refuse_beyond(examples, network)
    result = trace_layers(
        placed(network),
        examples,
        against,
        score="gains" if by == "gains" else "norms",
        layers=cast(Mode, layers),
        distributed=several,
        progress=here.is_main_process,
    )
    if not here.is_main_process:
        return
    with writing(out):
        result.save(out)
    out_console.print(result.table())
    out_console.print(shown(announce.chosen(network, result)))
    if plot is not None:
        with writing(plot):
            result.plot(plot)
    say_written(out, plot)
