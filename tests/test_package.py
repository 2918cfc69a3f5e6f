"""The package as a whole."""

from __future__ import annotations

import subprocess
import sys

import localopt


def test_every_public_name_is_there() -> None:
    assert all(getattr(localopt, name) is not None for name in localopt.__all__)


def test_the_core_imports_nothing_but_torch() -> None:
    heavy = ["transformers", "accelerate", "safetensors", "rich", "typer", "matplotlib", "numpy.typing"]
    code = (
        "import torch, sys; before = set(sys.modules)\n"
        "from localopt import LocalizedOptimizer, AboveMean, partition\n"
        f"print([name for name in {heavy!r} if name in set(sys.modules) - before])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
