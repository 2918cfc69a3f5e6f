"""What a training run did, for a person: one table of scores over the epochs, one picture."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from localopt.outside import shown
from localopt.plots import Run, learning_forgetting, save_figure
from localopt.pretraining.history import History
from localopt.pretraining.scoring import REFERENCE


def history_table(history: History) -> Table:
    """Return one row an epoch: each set's NLL, with the share of answers ranked first.

    Where not every step changes everything, a last column gives the share of the parameters the epoch's last one did.
    """
    share = history.trained_parameters / max(1, history.all_parameters)
    table = Table(title=f"{_title(history)}, {share:.0%} of parameters trainable", caption="NLL (answers ranked first)")
    names = list(history.scores[0]["sets"])
    chosen = any(entry.get("share_updated", 1) < 1 for entry in history.scores)
    table.add_column("")
    for name in [*names, *(["last step changed"] if chosen else [])]:
        table.add_column(shown(name), justify="right")
    for entry in history.scores:
        cells = ["before" if entry["step"] == 0 else f"epoch {entry['epoch']:g}"]
        for name in names:
            nll, first = entry["sets"][name]["nll"], entry["sets"][name]["ranked_first"]
            cells.append(("not finite" if nll is None else f"{nll:.3f}") + ("" if first is None else f" ({first:.0%})"))
        if chosen:
            cells.append(f"{entry['share_updated']:.0%}" if "share_updated" in entry else "")
        table.add_row(*cells)
    return table


def save_picture(history: History, path: Path) -> Path | None:
    """Draw each set's fall in NLL against the reference's rise, over the epochs; None where there is no reference."""
    paths = {name: points for name, points in history.uptake_and_forgetting(REFERENCE).items() if points}
    if not paths:
        return None
    figure = learning_forgetting(
        [Run(name, *points[-1], path=points[:-1]) for name, points in paths.items()],
        title=_title(history),
        forgetting="reference: rise of NLL (less is better)",
        uptake="fall of NLL since the start",
    )
    save_figure(figure, path)
    return path


def _title(history: History) -> str:
    return f"{history.settings['method']}, learning rate {history.settings['lr']:g}"
