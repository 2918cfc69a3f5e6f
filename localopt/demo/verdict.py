"""Numbers -> one sentence that says what they say, whatever that is."""

from __future__ import annotations

from collections.abc import Sequence

from localopt.demo.experiment import Result
from localopt.demo.path import compare


def verdict(results: Sequence[Result]) -> str:
    """Compare each method with the first, where the page has suffered alike; or say what each learned and lost."""
    baseline, *others = results
    ratios = [compare(other.path, baseline.path) for other in others]
    parts = []
    for other, ratio in zip(others, ratios, strict=True):
        if ratio is None:
            return _apart(results)
        least = "at least " if ratio.bound else ""
        parts.append(f"by {other.method} {least}{ratio.value:.2f} times ({ratio.low:.2f} to {ratio.high:.2f})")
    return (
        f"Where the page has suffered alike, {_listed(parts)} as much was taken in as by {baseline.method} (95% over "
        "other draws of the facts)."
    )


def _apart(results: Sequence[Result]) -> str:
    """What to say where nothing can be compared at equal forgetting."""
    parts = [
        f"{result.method} took in {result.path.uptake:.2f} nats for a rise of {result.path.forgetting:+.2f}"
        for result in results
    ]
    why = f"{results[0].method} forgot or learned too little to compare at equal forgetting"
    return f"{why}; at the end {_listed(parts)} on ordinary text."


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
