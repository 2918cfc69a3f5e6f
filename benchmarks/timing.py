"""Interleaved timing: every contender once a round, ratios within the round, medians over the rounds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.progress import Progress

from benchmarks.speed.contenders import Contender


@dataclass(frozen=True)
class Timing:
    """Seconds of one contender, one number a round; or the error that kept it from running."""

    name: str
    seconds: tuple[float, ...] = ()
    error: str | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def ratio(self, other: Timing) -> tuple[float, float, float]:
        """Median and quartiles of the ratio to another contender, taken round by round."""
        ratios = [mine / theirs for mine, theirs in zip(self.seconds, other.seconds, strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        return median, low, high

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def interleave(contenders: Sequence[Contender], rounds: int, *, warm_up: int = 2, title: str = "") -> dict[str, Timing]:
    """Time every contender ``rounds`` times, in an order that moves on by one every round."""
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    errors: dict[str, str] = {}
    with Progress(transient=True) as progress:
        for i in progress.track(range(-warm_up, rounds), description=title):
            shift = i % len(contenders)
            for contender in [*contenders[shift:], *contenders[:shift]]:
                if contender.name in errors:
                    continue
                contender.workload.restore_gradients(contender.only)
                try:
                    elapsed = once(contender.step, contender.workload.noise.device)
                except Exception as error:  # a peer that fails is reported, not hidden
                    errors[contender.name] = f"{type(error).__name__}: {error}".split("\n")[0]
                    continue
                if i >= 0:
                    seconds[contender.name].append(elapsed)
    return {name: Timing(name, tuple(taken), errors.get(name)) for name, taken in seconds.items()}


def rounds_of(timed: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Timing]:
    """Call every function once a round, each returning its seconds; the first round is a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    with Progress(transient=True) as progress:
        for i in progress.track(range(-1, rounds)):
            for name, function in timed.items():
                elapsed = function()
                if i >= 0:
                    seconds[name].append(elapsed)
    return {name: Timing(name, tuple(taken)) for name, taken in seconds.items()}


def once(step: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def bandwidth(device: torch.device, size: int = 1 << 27, rounds: int = 7) -> dict[str, float]:
    """Bytes a second this machine reads (a sum) and copies (read + write) over a buffer no cache holds."""
    source = torch.ones(size, device=device)
    target = torch.empty_like(source)
    nbytes = size * source.element_size()
    read = statistics.median(once(source.sum, device) for _ in range(rounds))
    copy = statistics.median(once(lambda: target.copy_(source), device) for _ in range(rounds))
    return {"read": nbytes / read, "copy": 2 * nbytes / copy}
