"""A trace, to read: a table for a terminal, and the same as plain text."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from localopt.errors import InputError
from localopt.outside import plain, shown

if TYPE_CHECKING:
    from localopt.tracing.layer_trace import LayerTrace


def as_table(trace: LayerTrace) -> Table:
    """Return one row a layer: norms, R, and what TGL + FP and TGL + ALR make of them."""
    name = trace.metadata.get("model", "")
    what = "gain over damage" if trace.holds_gains else "relative gradient norms"
    fixed, adaptive = trace.frozen_parameters().scales, trace.adaptive_learning_rates().scales
    chosen = sum(scale > 0 for scale in fixed.values())
    made = Table(title=shown(f"{name}: {what}" if name else what), caption=f"FP trains {chosen} of {len(fixed)} layers")
    made.add_column("layer", no_wrap=True)
    titles = ("gain", "damage", "ratio") if trace.holds_gains else ("probe", "reference", "relative")
    for title in (*titles, "FP trains", "ALR"):
        made.add_column(title, justify="center" if title == "FP trains" else "right")
    rows = zip(trace.layers, trace.probe_norms, trace.reference_norms, trace.relative_norms, strict=True)
    for layer, probe, reference, relative in rows:
        trained = fixed[layer] > 0
        values = (
            f"{probe:.4g}",
            f"{reference:.4g}",
            f"{relative:.3g}" if trace.holds_gains else f"{relative:.3f}",
            "yes" if trained else "",
            f"{adaptive[layer]:.3f}",
        )
        made.add_row(shown(layer), *values, style="bold" if trained else None)
    return made


def as_text(trace: LayerTrace) -> str:
    """Return the table as plain text, as wide as it needs to be; where nothing can be chosen, the names and why."""
    written = io.StringIO()
    console = Console(file=written, width=1000, color_system=None, force_terminal=False, force_jupyter=False)
    try:
        made = as_table(trace)
    except InputError as error:
        return f"{', '.join(map(plain, trace.layers))}: {error}"
    console.width = min(1000, console.measure(made).maximum)
    console.print(made)
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines())
