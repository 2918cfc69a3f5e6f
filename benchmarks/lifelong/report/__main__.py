"""Records -> one page of tables and pictures, and the tables as Markdown.

    python -m benchmarks.lifelong.report.__main__ RUNS.jsonl ... --out FOLDER

writes FOLDER/lifelong.html, which needs nothing beside it, lifelong-tables.md, and the pictures of uptake against
forgetting as lifelong-text.png and lifelong-near.png.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import sys
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.lifelong.report import tables as tabled
from benchmarks.lifelong.report.findings import Findings
from benchmarks.lifelong.report.records import Records
from benchmarks.lifelong.report.statistics import MEASURES, Curve, Measure
from benchmarks.lifelong.report.tables import Table
from benchmarks.stamp import summary
from localopt.errors import InputError
from localopt.plots import Run, heat_map, learning_forgetting

AXES: dict[Measure, str] = {
    "text": "rise of the NLL on WikiText, nats a token (less is better)",
    "near": "score lost on near facts, nats (less is better)",
}
DRAWN: tuple[str, ...] = (
    "adamw",
    "random2",
    "deep",
    "online",
    "fp-text",
    "anchor",
    "gain-damage-fp",
    "gain-damage-fp-anchor",
)
DRAWN += ("replay-text", "gain-damage-fp-replay", "selective", "gain-damage-fp-selective", "corpus-fp-selective")
MAPPED = ("fp-text", "fp-kept", "gain-damage-fp", "gain-damage-alr", "alr-text", "online")

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 84rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; font-size: 13px } th, td { padding: .25rem .6rem; text-align: right }
th { border-bottom: 2px solid #888; vertical-align: bottom } td { border-bottom: 1px solid #ddd }
td:not(:first-child) { white-space: nowrap } th:first-child, td:first-child { text-align: left; min-width: 15rem }
img { max-width: 100% } .note { color: #555; max-width: 50rem }
"""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="report", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="runs.jsonl of one sweep, or of several of one exam")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    given = parser.parse_args(arguments)
    try:
        findings = Findings(Records.read(given.runs))
    except (InputError, OSError) as error:
        print(f"report: {error}", file=sys.stderr)
        sys.exit(2)
    given.out.mkdir(parents=True, exist_ok=True)
    tables = [make(findings) for make in (tabled.methods, tabled.levels, tabled.contrasts, tabled.costs)]
    if (kinds := tabled.kinds(findings)) is not None:
        tables.insert(2, kinds)
    (given.out / "lifelong.html").write_text(page(findings, tables), encoding="utf-8")
    markdown = "\n\n".join(f"**{table.title}**\n\n{table.markdown()}\n\n{table.note}" for table in tables)
    (given.out / "lifelong-tables.md").write_text(markdown + "\n", encoding="utf-8")
    for measure in MEASURES:
        frontier(findings, measure).savefig(given.out / f"lifelong-{measure}.png", dpi=150)
    print(markdown)


def page(findings: Findings, tables: list[Table]) -> str:
    records = findings.records
    assert records.exam is not None
    settings = ", ".join(f"{key} {value}" for key, value in records.exam["inputs"].items())
    starts = "; ".join(
        f"start {name} ({summary(row['stamp'])}; {row['distance']:.3f} nats from the first)"
        for name, row in records.starts.items()
    )
    parts = [
        f"<h1>Learning new facts, keeping old ones</h1><p>{len(records.runs)} runs. {html.escape(settings)}.</p>",
        f"<p class=note>{html.escape(starts)}</p>",
        *(f"<p>Diverged: {row['method']} at {row['lr']:g} on half {row['half']}.</p>" for row in records.diverged),
        *(_table(table) for table in tables[:-1]),
        "<h2>Learning against forgetting</h2><p class=note>Each line is a method's end weights mixed with the start's: "
        "a quarter, half, three quarters, and all of the change. F1: of what is written at the end.</p>",
        *(_picture(frontier(findings, measure), f"uptake against forgetting, {measure}") for measure in MEASURES),
        _table(tables[-1]),
        "<h2>Layers</h2><p class=note>How much of the rate each layer got, averaged over steps and halves.</p>",
        *(_picture(figure, "scales of the layers") for figure in layers(findings)),
    ]
    body = "\n".join(parts)
    return f"<!doctype html><meta charset=utf-8><title>localopt: lifelong</title><style>{STYLE}</style>\n{body}\n"


def frontier(findings: Findings, measure: Measure) -> Figure:
    """Uptake against forgetting by one measure, for the methods that say most."""
    runs = []
    for name in (name for name in DRAWN if name in findings.paths):
        path = findings.paths[name]
        lost: Curve = getattr(path, measure)
        points = [(float(x), float(y)) for x, y in zip(lost.mean, path.uptake.mean, strict=True)]
        written = sum(run["end"]["f1"] for run in findings.runs[name]) / len(findings.runs[name])
        runs.append(Run(f"{name} (F1 {written:.0%})", *points[-1], path=points[:-1]))
    return learning_forgetting(runs, forgetting=AXES[measure], uptake="uptake, nats (more is better)")


def layers(findings: Findings) -> list[Figure]:
    assert findings.records.exam is not None
    names = findings.records.exam["layers"]
    figures = []
    for method in (method for method in MAPPED if method in findings.runs):
        runs = findings.runs[method]
        means = [sum(values) / len(runs) for values in zip(*(run["scales"] for run in runs), strict=True)]
        scales = dict(zip(names, means, strict=True))
        figures.append(heat_map(scales, center=sum(means) / len(means), title=method, label="share of the rate"))
    return figures


def _table(table: Table) -> str:
    def cells(row: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell).replace('`', '')}</{tag}>" for cell in row) + "</tr>"

    rows = "\n".join(cells(row, "td") for row in table.rows)
    title = f"<h2>{html.escape(table.title)}</h2>"
    return f"{title}<table>{cells(table.header, 'th')}{rows}</table><p class=note>{html.escape(table.note)}</p>"


def _picture(figure: Figure, about: str) -> str:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return f'<p><img alt="{about}" src="data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}">'


if __name__ == "__main__":
    main()
