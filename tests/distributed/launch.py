"""Real processes under torchrun, with gloo on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def torchrun(script: str, processes: int, *arguments: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a module of the repository (``package.module``) or a file under torchrun; its output is kept, not judged."""
    target = [str(ROOT / script)] if script.endswith(".py") else ["-m", script]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
    }
    return subprocess.run(
        [*command, *target, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment,
        cwd=ROOT,
    )


def succeed(script: str, processes: int, *arguments: object, timeout: float = 120) -> str:
    """Run it, and return its standard output; fails with all it said if it fails."""
    done = torchrun(script, processes, *arguments, timeout=timeout)
    assert done.returncode == 0, f"{script} {arguments} on {processes} processes:\n{done.stdout}\n{done.stderr}"
    return done.stdout
