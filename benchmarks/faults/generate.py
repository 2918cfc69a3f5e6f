"""Hypothesis as a source of inputs: seeded, bounded by a number and by a clock, nothing stored, nothing shrunk."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from benchmarks.faults.count import Clock

T = TypeVar("T")

_LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
ANYTHING = st.recursive(
    _LEAF,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)
"""Any JSON, with the numbers that JSON does not have but Python writes."""


class _Over(Exception):
    """The time is up."""


def examples(strategy: st.SearchStrategy[T], one: Callable[[T], None], number: int, of: int, clock: Clock) -> None:
    """Call ``one`` with so many different examples, the same for the same seed."""

    @seed(of)
    @settings(
        max_examples=number,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def each(example: T) -> None:
        if clock.over:
            raise _Over
        one(example)

    with contextlib.suppress(_Over):
        each()


def damaged(good: bytes) -> st.SearchStrategy[bytes]:
    """A good file with some bytes changed, put in, or cut off."""
    place = st.integers(0, len(good) - 1)
    harm = st.tuples(place, st.sampled_from(["change", "insert", "cut", "drop"]), st.binary(min_size=1, max_size=4))

    def apply(harms: list[tuple[int, str, bytes]]) -> bytes:
        data = good
        for at, how, new in harms:
            if how == "change":
                data = data[:at] + new + data[at + len(new) :]
            elif how == "insert":
                data = data[:at] + new + data[at:]
            elif how == "cut":
                data = data[:at]
            else:
                data = data[:at] + data[at + len(new) :]
        return data

    return st.lists(harm, min_size=1, max_size=4).map(apply)
