"""Text from outside is printed and drawn as itself: no markup, no escape sequence, no formula."""

from __future__ import annotations

import io
import unicodedata

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from rich.console import Console

from localopt.outside import one_line, plain, shown
from localopt.plots import Run, heat_map, learning_forgetting, save_figure
from localopt.pretraining.evaluate import Score
from localopt.pretraining.history import History
from localopt.pretraining.results import history_table, save_picture
from localopt.pretraining.scoring import score_table
from localopt.tracing.layer_trace import LayerTrace

NASTY = [
    "x[/]y",
    "[red]a[/red]",
    "[link=file:///etc/passwd]here[/link]",
    ":smile:",
    "a\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\x9b31m",
    "left\u202eright",
    "\u2066isolated\u2069",
    "two\nlines",
    "$x^2$",
    r"$\frac{1}",
    "cost $5 or $6_7",
    "caf\u00e9 \u4e2d\u6587",
    "half \udc80 a pair",
]


def acts(text: str) -> bool:
    return any(unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in "\n\u200c\u200d" for c in text)


def printed(what: object) -> str:
    console = Console(file=io.StringIO(), width=200, color_system=None, force_terminal=True)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@given(st.text(st.characters()))
def test_no_character_that_acts_is_left_and_no_other_is_changed(text: str) -> None:
    assert not acts(plain(text))
    assert "\n" not in plain(text)
    assert "\n" not in one_line(text)
    kept = "".join(c for c in text if not acts(c) and c not in "\n\u2028\u2029")
    assert (plain(text) == text) == (kept == text)
    plain(text).encode()  # half a pair would not


@given(st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=40))
def test_rich_prints_it_as_it_is(text: str) -> None:
    assert printed(shown(text)).replace("\n", "") == text


@pytest.mark.parametrize("name", NASTY)
def test_tables_show_names_as_they_are(name: str) -> None:
    score = Score(1.0, 2.7, 10, 2, 0.5)
    entry = {"epoch": 0, "step": 0, "sets": {name: score.as_dict()}}
    trace = LayerTrace(("layer",), torch.ones(1), torch.ones(1), {"model": name})
    history = History({"method": "full", "lr": 1.0}, scores=[entry], trained_parameters=1, all_parameters=1)
    for table in (score_table({name: score}, title=name), history_table(history), trace.table()):
        output = printed(table)
        assert plain(name) in output
        assert not acts(output)


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("name", NASTY)
def test_pictures_show_names_as_they_are(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("pictures")
    trace = LayerTrace(("h.0.mlp", "h.1.mlp"), torch.ones(2), torch.ones(2), {"model": name})
    drawn = [
        trace.plot(),
        heat_map({name: 1.0, "h.0.mlp": 2.0, f"{name}.h.0.mlp": 3.0}, center=1.0, title=name, label=name),
        learning_forgetting([Run(name, 1.0, 2.0)], title=name, forgetting=name, uptake=name),
    ]
    for number, figure in enumerate(drawn):
        save_figure(figure, folder / f"{number}.png", dpi=40)
        assert plain(name) in texts(figure)
        assert not any(map(acts, texts(figure)))


def texts(figure: Figure) -> list[str]:
    return [found.get_text() for found in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


@pytest.mark.filterwarnings("ignore:Glyph")
def test_the_picture_of_a_run_takes_any_name_of_a_set(tmp_path_factory: pytest.TempPathFactory) -> None:
    def entry(step: int) -> dict[str, object]:
        sets = {name: {"nll": 3.0 - step, "ranked_first": None} for name in [*NASTY, "reference"]}
        return {"epoch": step, "step": step, "sets": sets}

    history = History({"method": "full", "lr": 1.0}, scores=[entry(0), entry(1)])
    assert save_picture(history, tmp_path_factory.mktemp("picture") / "p.png") is not None
