"""What a training run did, for a person: one table of scores over the epochs, one picture."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from localopt.plots import Run, learning_forgetting
from localopt.scoring import REFERENCE
from localopt.train import History, uptake_and_forgetting


def history_table(history: History) -> Table:
    """Return one row a set, with its NLL (and share of answers ranked first) before training and after every epoch."""
    share = history.trained_parameters / max(1, history.all_parameters)
    method = history.settings["method"]
    table = Table(title=f"{method}, learning rate {history.settings['lr']:g}, {share:.0%} of parameters trainable")
    table.add_column("NLL (ranked first)")
    for entry in history.scores:
        table.add_column("before" if entry["step"] == 0 else f"epoch {entry['epoch']:g}", justify="right")
    names = history.scores[0]["sets"] if history.scores else {}
    for name in names:
        cells = []
        for entry in history.scores:
            score = entry["sets"][name]
            first = "" if score["ranked_first"] is None else f" ({score['ranked_first']:.0%})"
            cells.append(f"{score['nll']:.3f}{first}")
        table.add_row(name, *cells)
    return table


def save_picture(history: History, path: Path) -> Path | None:
    """Draw each set's fall in NLL against the reference's rise, over the epochs; None where there is no reference."""
    paths = uptake_and_forgetting(history, REFERENCE)
    if not paths or not all(paths.values()):
        return None
    runs = [Run(name, *points[-1], path=points[:-1]) for name, points in paths.items()]
    figure = learning_forgetting(
        runs,
        title=f"{history.settings['method']}, learning rate {history.settings['lr']:g}",
        forgetting="reference: rise of NLL (less is better)",
        uptake="fall of NLL since the start",
    )
    figure.savefig(path, dpi=150)
    return path
