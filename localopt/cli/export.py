"""``localopt export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from localopt.cli.shared import Model, check_trace, refuse_existing, say_written
from localopt.errors import InputError

if TYPE_CHECKING:
    from localopt.tracing.export import Format

_FORMATS: dict[str, Format] = {
    "unfrozen": "unfrozen_parameters",
    "axolotl": "lr_groups",
    "lr-multipliers": "multipliers",
    "peft": "peft",
}


def export(
    trace: Annotated[Path, typer.Argument(help="What `localopt trace` wrote.", metavar="TRACE", show_default=False)],
    model: Model,
    out: Annotated[
        Path, typer.Option(help="File to write: YAML, or JSON if it ends in .json.", metavar="FILE", show_default=False)
    ],
    format: Annotated[
        str,
        typer.Option(
            help="unfrozen: the parameters to train (axolotl, Spectrum); axolotl: a learning rate for every layer; "
            "lr-multipliers: a factor for every parameter; peft: LoRA on the matrices of the layers to train."
        ),
    ] = "unfrozen",
    lr: Annotated[float | None, typer.Option(help="Base learning rate; for axolotl.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of the adapters, on average; for peft (8).", min=1)] = None,
) -> None:
    """Write what a trace chose as settings of another trainer.

    The model gives the names of its parameters; its weights are not read.
    """
    from localopt.pretraining.models import load_skeleton
    from localopt.tracing.layer_trace import LayerTrace

    refuse_existing(out)
    if format not in _FORMATS:
        raise InputError(f"--format must be one of {', '.join(_FORMATS)}, not {format!r}.")
    if (format == "axolotl") != (lr is not None):
        raise InputError(f"--format {format} with --lr {lr}: axolotl needs the base learning rate, and no other does.")
    if rank is not None and format != "peft":
        raise InputError(f"--format {format} with --rank {rank}: only adapters (peft) have a rank.")
    loaded = LayerTrace.load(trace)
    network = load_skeleton(model)
    check_trace(loaded, trace, network)
    loaded.export(out, network, _FORMATS[format], lr=lr, rank=rank)
    say_written(out)
