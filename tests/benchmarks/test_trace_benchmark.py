"""The tracing benchmark runs at its smallest size, and says what it was measured on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.speed.trace import WAYS
from benchmarks.stamp import stamp, summary

ROOT = Path(__file__).parents[2]


def test_the_smallest_size_writes_a_stamped_file(tmp_path: Path) -> None:
    file = tmp_path / "new" / "trace.json"
    command = [sys.executable, "-m", "benchmarks.speed.trace", "--smoke", "--threads", "1", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert all(way in done.stdout for way in WAYS)
    result = json.loads(file.read_text())
    assert result["stamp"]["versions"]["torch"] == torch.__version__
    assert result["stamp"]["threads"] == 1
    assert {way: len(seconds) for way, seconds in result["seconds"].items()} == dict.fromkeys(WAYS, 2)
    assert result["largest_relative_difference"] < 1e-3
    if sys.platform == "linux":
        assert all(peak > 0 for peak in result["peak_bytes"].values())


def test_a_stamp_names_hardware_threads_versions_and_commit() -> None:
    stamped = stamp("rich", "no-such-distribution")
    assert stamped["threads"] == torch.get_num_threads()
    assert stamped["versions"]["no-such-distribution"] is None
    line = summary(stamped)
    assert f"torch {torch.__version__}" in line
    assert "no-such-distribution" not in line
    assert stamped["cpu"] in line
    json.dumps(stamped)
