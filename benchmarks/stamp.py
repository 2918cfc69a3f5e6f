"""What a table was measured on: hardware, threads, versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "transformers", "localopt")


def stamp(*packages: str) -> dict[str, Any]:
    """Return what to write beside every figure, ready for JSON.

    Args:
        packages: distributions whose versions matter, beside those of ``PACKAGES``; None where one is not installed.

    Example:
        >>> sorted(stamp())  # doctest: +NORMALIZE_WHITESPACE
        ['accelerators', 'commit', 'cores', 'cpu', 'load', 'memory_gb', 'modified', 'platform', 'python', 'threads',
         'time', 'versions']
    """
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "modified": bool(_git("status", "--porcelain", "--untracked-files=no", "--", "localopt", "benchmarks")),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        # Of the last minute, this process included: more than the threads means that others were running.
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "memory_gb": _memory_gb(),
        "accelerators": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in (*PACKAGES, *packages)},
    }


def summary(stamped: dict[str, Any]) -> str:
    """One line for below a table."""
    where = ", ".join([f"{stamped['cpu']} ({stamped['cores']} cores)", *stamped["accelerators"]])
    versions = ", ".join(f"{package} {number}" for package, number in stamped["versions"].items() if number)
    commit = f"{(stamped['commit'] or 'unknown')[:10]}{' with changes' if stamped['modified'] else ''}"
    load = "" if stamped["load"] is None else f", load {stamped['load']}"
    return f"{where}, {stamped['threads']} threads{load}; {versions}; commit {commit}, {stamped['time']}"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    if package == "torch":
        return str(torch.__version__)  # which also says for which CUDA it was built
    try:
        return version(package)
    except PackageNotFoundError:
        return None
