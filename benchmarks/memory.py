"""The most memory something takes while it runs."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch


def growth(run: Callable[[], Any], device: torch.device | str = "cpu") -> int | None:
    """Bytes in use at the peak of a run above those before it; None where that cannot be measured.

    On a CPU it is the process's resident memory (Linux alone tells its peak), so what a run takes from memory that was
    freed but not given back is not seen; on CUDA it is what the allocator handed out.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    reset_peak()
    resident = _status("VmRSS")
    run()
    peak = _status("VmHWM")
    return None if resident is None or peak is None else peak - resident


def reset_peak() -> None:
    """Give back what is free, and forget the process's peak so far."""
    gc.collect()
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)  # what was freed but not given back would count
    with suppress(OSError):
        # Not getrusage: its peak cannot be reset, and is inherited from the process that started this one.
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> int | None:
    """The most bytes the process held since its peak was reset."""
    return _status("VmHWM")


def _status(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)
