"""Several processes measure as one: what one of them raises, all raise, and what has to be equal is compared first."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from localopt.errors import InputError


@contextmanager
def shared_errors(distributed: bool) -> Iterator[None]:
    """Raise in every process what one of them raises, so that none waits for it.

    What travels is the error's type and text: an exception itself may not be picklable, and would hide the real one.
    Elsewhere than where it was raised, a type that is not built in becomes a RuntimeError.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    if distributed:
        mine = None if error is None else (type(error).__name__, str(error), dist.get_rank())
        everyone = gathered(mine)  # also by who raised: the others wait for it
        error = error or next((_made(*found) for found in everyone if found is not None), None)
    if error is not None:
        raise error


class Counted:
    """An iterable that knows how many items it gave."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.items, self.given = items, 0

    def __iter__(self) -> Iterator[Any]:
        for item in self.items:
            self.given += 1
            yield item


def refuse_different(**values: object) -> None:
    """Raise ValueError, in every process, where a value is not the same in all; they are named by the keywords."""
    everyone = gathered({name: repr(value) for name, value in values.items()})
    for name in values:
        of_each = [theirs[name] for theirs in everyone]
        if len(set(of_each)) > 1:
            said = "; ".join(f"process {rank}: {value[:200]}" for rank, value in enumerate(of_each))
            raise ValueError(
                f"the processes do not have the same {name} ({said}), so what they measure cannot be added up: give "
                "every process the same model, layers and examples"
            )


def gathered(value: Any) -> list[Any]:
    """What every process gives, by rank; a collective."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _made(name: str, text: str, rank: int) -> Exception:
    kind = InputError if name == "InputError" else getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, UnicodeError):
        return kind(text)
    return RuntimeError(f"process {rank} raised {name}: {text}")
