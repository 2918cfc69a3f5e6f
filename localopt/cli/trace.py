"""``localopt trace``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from localopt.cli.shared import Model, loaded, out_console, placed, refuse_existing, say_written
from localopt.errors import InputError, writing
from localopt.layers import Mode
from localopt.pretraining.textfiles import evenly


def trace(
    model: Model,
    probe: Annotated[Path, typer.Option(help="Knowledge to take in: a probe file.", metavar="FILE")],
    reference: Annotated[Path, typer.Option(help="Ordinary text, or a probe file of facts to keep.", metavar="FILE")],
    out: Annotated[Path, typer.Option(help="Trace file to write (safetensors).", metavar="FILE")],
    plot: Annotated[Path | None, typer.Option(help="Also draw a heat map, to this picture.", metavar="FILE")] = None,
    layers: Annotated[str, typer.Option(help="What a layer is: sublayer, block, matrix or parameter.")] = "sublayer",
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
    from localopt.pretraining.probes import encode, read_probes, read_reference
    from localopt.pretraining.processes import processes
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
    probes = evenly(read_probes(probe), limit)
    network, tokenizer = loaded(model)
    refuse_longer(seq_len, network)
    examples = encode(probes, tokenizer, seq_len)
    references = evenly(read_reference(reference, tokenizer, seq_len), limit)
    refuse_beyond([*examples, *references], network)
    result = trace_layers(
        placed(network),
        examples,
        references,
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
    if plot is not None:
        with writing(plot):
            result.plot(plot)
    say_written(out, plot)
