"""What a training run did, for a person: one table of scores over the epochs, one picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from localopt.outside import shown
from localopt.plots import Run, learning_forgetting, run_picture, save_figure
from localopt.pretraining.history import History
from localopt.pretraining.scoring import REFERENCE
from localopt.steps.history import History as LayerHistory

if TYPE_CHECKING:
    from localopt.tracing.layer_trace import LayerTrace


def tables(history: History) -> list[Table]:
    """Return the scores over the epochs and, where there was a budget, those along the way back."""
    if not history.scores or not history.scores[0]["sets"]:
        return []
    return [history_table(history), *([] if history.budget is None else [budget_table(history)])]


def history_table(history: History) -> Table:
    """Return one row an epoch: each set's NLL, with the share of answers ranked first; the last row is the change.

    Where not every step changes everything, a last column gives the share of the parameters the epoch's last one did.
    """
    share = history.trained_parameters / max(1, history.all_parameters)
    table = Table(
        title=f"{_title(history)}, {share:.0%} of parameters trainable",
        caption="NLL, nats a token (answers ranked first)",
    )
    names = list(history.scores[0]["sets"])
    chosen = any(entry.get("share_updated", 1) < 1 for entry in history.scores)
    table.add_column("")
    for name in [*names, *(["last step changed"] if chosen else [])]:
        table.add_column(shown(name), justify="right")
    for entry in history.scores:
        cells = ["before" if entry["step"] == 0 else f"epoch {entry['epoch']:g}", *_cells(entry["sets"])]
        if chosen:
            cells.append(f"{entry['share_updated']:.0%}" if "share_updated" in entry else "")
        table.add_row(*cells)
    if len(history.scores) == 1:
        return table
    table.add_section()
    last = history.scores[-1]["sets"] if history.budget is None else _kept(history)["sets"]
    change = [_change(history.scores[0]["sets"][name], last[name]) for name in names]
    table.add_row("change" if history.budget is None else f"change, {_way(history.budget['share'])}", *change)
    return table


def budget_table(history: History) -> Table:
    """Return one row a share of the way from the start to the end of training that was tried, the chosen one marked."""
    assert history.budget is not None
    rise, share, path = (history.budget[key] for key in ("rise", "share", "path"))
    table = Table(title=f"forgetting budget {rise:g}: {_way(share)}", caption=_verdict(history.budget))
    table.add_column("share", justify="right")
    for name in path[0]["sets"]:
        table.add_column(shown(name), justify="right")
    table.add_column("reference rose by", justify="right")
    for entry in path:
        begin, now = path[0]["sets"][REFERENCE], entry["sets"][REFERENCE]
        cells = f"{entry['share']:.1%}", *_cells(entry["sets"]), _change(begin, now)
        table.add_row(*cells, style="bold" if entry["share"] == share else None)
    return table


def save_pictures(history: History, trace: LayerTrace | None, noted: LayerHistory | None, out: Path) -> list[Path]:
    """Draw what was learned against what was forgotten.

    Also the heat map of a trace the run made itself, and what each step did to each layer, where that was noted.
    """
    pictures = []
    if trace is not None:
        trace.plot(out / "trace.png")
        pictures.append(out / "trace.png")
    if noted is not None and noted.steps:
        save_figure(run_picture(noted, title=_title(history)), out / "layers.png")
        pictures.append(out / "layers.png")
    picture = save_picture(history, out / "learning-forgetting.png")
    return [*pictures, *([] if picture is None else [picture])]


def save_picture(history: History, path: Path) -> Path | None:
    """Draw each set's fall in NLL against the reference's rise, over the epochs; None where there is no reference.

    With a forgetting budget, the way back to the model that was kept is drawn too.
    """
    paths = {name: points for name, points in history.uptake_and_forgetting(REFERENCE).items() if points}
    if not paths:
        return None
    runs = [Run(name, *points[-1], path=[(0.0, 0.0), *points[:-1]]) for name, points in paths.items()]
    if history.budget is not None:
        for name, points in history.way_back(REFERENCE).items():
            if points:
                kept = f"{name}, {_way(history.budget['share'])}"
                runs.append(Run(kept, *points[-1], path=points[:-1]))
    figure = learning_forgetting(
        runs,
        title=_title(history),
        forgetting="reference: rise of NLL (less is better)",
        uptake="fall of NLL since the start",
    )
    save_figure(figure, path)
    return path


def _cells(sets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    cells = []
    for score in sets.values():
        nll, first = score["nll"], score["ranked_first"]
        cells.append(("not finite" if nll is None else f"{nll:.3f}") + ("" if first is None else f" ({first:.0%})"))
    return cells


def _change(begin: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if begin["nll"] is None or now["nll"] is None:
        return "not finite"
    return f"{now['nll'] - begin['nll']:+.3f}"


def _kept(history: History) -> dict[str, Any]:
    """The scores at the share of the way that the budget left."""
    assert history.budget is not None
    share = history.budget["share"]
    entry: dict[str, Any] = next(one for one in history.budget["path"] if one["share"] == share)
    return entry


def _way(share: float) -> str:
    return "the whole way" if share == 1 else "at the start" if share == 0 else f"{share:.1%} of the way"


def _verdict(budget: Mapping[str, Any]) -> str:
    """What came of the budget."""
    if budget["share"] == 1:
        return "The end of training keeps to the budget: OUT/model is that."
    if budget["share"] == 0:
        least = min(entry["share"] for entry in budget["path"] if entry["share"] > 0)
        return (
            f"No share of the way keeps to the budget, not even {least:.1%}: OUT/model is the start, unchanged, and "
            "OUT/model-end the end of training."
        )
    return "The largest share found that keeps to the budget is OUT/model; OUT/model-end is the end of training."


def _title(history: History) -> str:
    rate = history.rate or history.settings["lr"]  # a history of before the rate was written down
    return f"{history.settings['method']}, learning rate {rate:g}"
