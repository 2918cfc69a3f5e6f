"""What ``localopt demo`` calls."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from localopt.demo.experiment import Outcome, experiment
from localopt.demo.fetch import Unreachable, load_demo_model
from localopt.demo.folder import check_folder, filled
from localopt.demo.lessons import read_lessons
from localopt.demo.output import PICTURE, show, write
from localopt.demo.progress import Progress
from localopt.demo.tiny import run_demo as run_tiny
from localopt.demo.training import Effort
from localopt.pretraining.processes import processes

TITLE = "SmolLM2-135M"


def run_demo(
    out: Path,
    model: str | None = None,
    seed: int = 0,
    console: Console | None = None,
    effort: Effort | None = None,
) -> Outcome | None:
    """Teach a real model invented facts in three ways, print what each learned and forgot, and fill ``out``.

    Args:
        out: a folder that does not exist yet or is empty. It is filled at the very end, or not at all.
        model: hub id, folder, GGUF file, or wheel with a GGUF file in it, instead of SmolLM2-135M.
        seed: order of the passages, and of what the model writes where a method asks it to.
        console: where results go, standard output if None; progress goes to standard error.
        effort: less training, for a quick look.

    Returns:
        What came out; None if SmolLM2-135M could not be fetched, when the miniature was run instead, which is said.

    Raises:
        InputError: ``out`` or ``model`` cannot be used; what was fetched is another file.
    """
    console = console or Console()
    check_folder(out)
    title = TITLE if model is None else Path(model).name
    if model is None:
        _say("SmolLM2-135M: from the cache, or fetched now (93 MB) ...")
    try:
        network, tokenizer = load_demo_model(model)
    except Unreachable as error:
        _say(f"{error}\nSo this is the miniature, as with --tiny; --model FILE names a model that is here.")
        run_tiny(out, seed=seed, console=console)
        return None
    lessons, effort = read_lessons(), effort or Effort(seed=seed)
    console.print(
        f"{title} ({network.num_parameters():,} weights) reads {len(lessons.taught)} invented facts, three sentences "
        f"each, {effort.epochs} times, and is asked for them in other words: with AdamW; with one line, that wraps it; "
        "and as `localopt train` does (auto). About five minutes on two cores.",
        highlight=False,
        markup=False,
    )
    with filled(out) as folder:
        with Progress() as progress:
            outcome = experiment(network.to(processes().device), tokenizer, lessons, effort, folder, progress)
        write(outcome, folder, title)
    show(outcome, console)
    console.print(f"Picture and numbers: {out / PICTURE} and beside it", highlight=False, soft_wrap=True)
    return outcome


def _say(text: str) -> None:
    Console(file=sys.stderr).print(text, markup=False, highlight=False, soft_wrap=True)
