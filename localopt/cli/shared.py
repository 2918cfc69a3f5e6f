"""What several commands have in common: options, where output goes, and checks before anything is done."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from localopt.errors import InputError
from localopt.outside import shown

if TYPE_CHECKING:
    from localopt.tracing.layer_trace import LayerTrace

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


def loaded(name: str) -> tuple[Any, Any]:
    """Load a model and its tokenizer, without the bars and hints of transformers."""
    from transformers.utils import logging

    from localopt.pretraining.models import load_model

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # one for every file, among ours
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # hints for those who call it themselves
    return load_model(name)


def placed(network: Any) -> Any:
    """Put a model on this process's accelerator, if there is one."""
    from localopt.pretraining.processes import processes

    return network.to(processes().device)


def check_trace(loaded: LayerTrace, path: Path | None, network: Any) -> None:
    """Refuse a trace that is of another model, or cannot choose layers."""
    from localopt.layers import partition

    try:
        loaded.check(partition((name for name, _ in network.named_parameters()), loaded.partition()).values())
        _ = loaded.relative_norms
    except ValueError as error:
        raise InputError(f"{path}: {error}.") from error


def say_written(*paths: Path | None) -> None:
    written = ", ".join(str(path) for path in paths if path is not None)
    err_console.print(shown(f"written: {written}"), highlight=False, soft_wrap=True)


def refuse_existing(*paths: Path | None) -> None:
    for path in paths:
        if path is not None and path.exists():
            raise InputError(f"{path}: exists already: name a new file, or remove this one.")
        if path is not None and not path.parent.is_dir():
            raise InputError(f"{path}: there is no folder {path.parent}: make it first.")
        if path is not None and not os.access(path.parent, os.W_OK):
            raise InputError(f"{path}: {path.parent} cannot be written to: name another folder.")


def refuse_missing(*paths: Path | None) -> None:
    """Raise InputError for a file that is not there, before anything heavy is imported to read it."""
    for path in paths:
        if path is not None and not path.exists():
            raise InputError(f"{path}: no such file: check the path.")


@contextmanager
def resumable(out: Path) -> Iterator[None]:
    """Where the run in ``out`` is stopped, by Ctrl-C or by the system's SIGTERM, say how it goes on."""
    caught = signal.SIGINT

    def stop(number: int, _: object) -> None:
        nonlocal caught
        caught = signal.Signals(number)
        raise KeyboardInterrupt

    inside = threading.current_thread() is threading.main_thread()  # where alone signals can be handled
    before = signal.signal(signal.SIGTERM, stop) if inside else None
    try:
        yield
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            remedy = "the same command with --resume goes on from its last checkpoint"
            begun = (out / "history.json").exists()
            said = f"{out}: the run was stopped; {remedy}" if begun else f"{out}: stopped before the run had begun"
            err_console.print(f"localopt: {said}.", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(128 + caught) from None
    finally:
        if inside:
            signal.signal(signal.SIGTERM, before)
