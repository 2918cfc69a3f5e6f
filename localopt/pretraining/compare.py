"""Several runs from one start -> one table and one picture of what each learned and forgot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isclose
from pathlib import Path
from typing import Any

from rich.table import Table

from localopt.errors import InputError
from localopt.outside import shown
from localopt.plots import Run, learning_forgetting, save_figure
from localopt.pretraining.history import History
from localopt.pretraining.scoring import REFERENCE


@dataclass(frozen=True)
class Compared:
    """A run and what of it is compared.

    Attributes:
        name: of its folder.
        history: what it was and how it did.
        learned: the set that was to be learned.
        path: (rise of the reference's NLL, fall of the learned set's) after every epoch, in nats a token.
        epochs: which epoch each point of the path is after.
        kept: the same for the model that a forgetting budget left; None without one.
    """

    name: str
    history: History
    learned: str
    path: tuple[tuple[float, float], ...]
    epochs: tuple[float, ...]
    kept: tuple[float, float] | None


def comparable(folders: Sequence[Path], learned: str | None = None) -> list[Compared]:
    """Read runs, and refuse what cannot be compared.

    Args:
        folders: what `train` wrote.
        learned: the set that was to be learned; None for the first that all runs scored.

    Raises:
        InputError: a folder without a run, a run without scores, two of one name; no set that all have; a set that is
            another one in another run, or scored on another model, by its loss before training.
    """
    histories = {str(folder): History.load(folder / "history.json") for folder in folders}
    if len(histories) < len(folders):
        raise InputError("a run is named twice: name each folder once.")
    sets = {name: list(history.scores[0]["sets"]) if history.scores else [] for name, history in histories.items()}
    for name, history in histories.items():
        if len(history.scores) < 2:
            raise InputError(f"{name}: has no scores of after an epoch: finish the run first, with --resume.")
        if REFERENCE not in sets[name]:
            raise InputError(f"{name}: scored no reference, so what it forgot is not known: train with --reference.")
    first = next(iter(histories))
    common = [one for one in sets[first] if one != REFERENCE and all(one in found for found in sets.values())]
    if learned is not None and learned not in common:
        raise InputError(f"--set {learned}: not scored by every run; all scored {', '.join(common) or 'none'}.")
    if not common:
        raise InputError("the runs scored no set in common: train them with the same --probe NAME=FILE.")
    chosen = learned or common[0]
    for name, history in histories.items():
        for one in (chosen, REFERENCE):
            mine, theirs = (run.scores[0]["sets"][one] for run in (history, histories[first]))
            if not _same(mine, theirs):
                raise InputError(
                    f"{name}: its {one} had a loss of {mine['nll']} over {mine['tokens']} tokens before training, that "
                    f"of {first} {theirs['nll']} over {theirs['tokens']}: compare runs of one model, scored on the "
                    "same files."
                )
    return [_compared(name, history, chosen) for name, history in histories.items()]


def comparison_table(runs: Sequence[Compared]) -> Table:
    """Return one row a run: method, rate, share of the parameters, what was learned and forgotten, in nats a token."""
    table = Table(title=shown(f"learned: {runs[0].learned}"), caption="change of NLL since the start, nats a token")
    for column in ("run", "method", "rate", "trained", "epochs", "learned", "forgot", "kept of the way"):
        table.add_column(column, justify="left" if column in ("run", "method") else "right")
    for run in runs:
        history = run.history
        share = "" if history.budget is None else f"{history.budget['share']:.0%}"
        end = run.kept or run.path[-1]
        table.add_row(
            shown(run.name),
            history.settings["method"],
            f"{history.rate or history.settings['lr']:g}",
            f"{history.trained_parameters / max(1, history.all_parameters):.0%}",
            f"{history.scores[-1]['epoch']:g}",
            f"{-end[1]:+.3f}",
            f"{end[0]:+.3f}",
            share,
        )
    return table


def comparison_picture(runs: Sequence[Compared], path: Path) -> None:
    """Draw every run from the origin, the model before training, over its epochs, each with its number, to its end."""
    drawn = [
        Run(run.name, *run.path[-1], path=((0.0, 0.0), *run.path[:-1]), marks=[f"{epoch:g}" for epoch in run.epochs])
        for run in runs
    ]
    drawn += [Run(f"{run.name}, kept", *run.kept) for run in runs if run.kept is not None and run.kept != run.path[-1]]
    figure = learning_forgetting(
        drawn,
        title=f"learned: {runs[0].learned}; numbers: after which epoch",
        forgetting="reference: rise of NLL (less is better)",
        uptake="fall of NLL since the start",
    )
    save_figure(figure, path)


def _compared(name: str, history: History, learned: str) -> Compared:
    path = history.uptake_and_forgetting(REFERENCE)[learned]
    scored = [entry for entry in history.scores[1:] if None not in _losses(entry["sets"], learned)]
    if not path:
        raise InputError(f"{name}: diverged, its losses are not finite: leave it out.")
    back = history.way_back(REFERENCE).get(learned)
    epochs = tuple(entry["epoch"] for entry in scored)
    return Compared(name, history, learned, tuple(path), epochs, back[-1] if back else None)


def _losses(sets: dict[str, Any], learned: str) -> list[float | None]:
    return [sets[name]["nll"] for name in (learned, REFERENCE)]


def _same(mine: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Whether two scores before training are of one model on one set; another batch size may change the last digits."""
    if mine["tokens"] != theirs["tokens"] or None in (mine["nll"], theirs["nll"]):
        return False
    return isclose(mine["nll"], theirs["nll"], rel_tol=1e-4)
