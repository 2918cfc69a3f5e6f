"""How often a step calls the device, and how often it waits for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch")
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize")  # a copy to the host ends in the first


def calls(step: Callable[[], Any], device: torch.device) -> dict[str, int] | None:
    """Kernel launches and host synchronizations of one step, which should be warm; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        step()
    found = {"launches": 0, "waits": 0}
    for event in recorded.key_averages():
        found["launches"] += event.count if event.key.startswith(LAUNCHES) else 0
        found["waits"] += event.count if event.key in WAITS else 0
    return found
