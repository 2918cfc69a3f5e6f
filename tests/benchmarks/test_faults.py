"""The count of faults: its small size finds none, and what it looks with sees one that is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.faults import oracle, steps, texts, traces
from benchmarks.faults.__main__ import FAMILIES
from benchmarks.faults.count import Clock, Count
from benchmarks.faults.material import TOKENIZERS
from localopt import LocalizedOptimizer
from localopt.pretraining.probes import completion, encode

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(600)  # on a machine that does much else
def test_a_few_tries_of_each_family_find_nothing(tmp_path: Path) -> None:
    out = tmp_path / "faults.md"
    command = [sys.executable, "-m", "benchmarks.faults", "--smoke", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"(?m)^\| ([a-z ]+): .*? \| ([\d,]+) \| 0 \| 0 \| 0 \| 0 \|", out.read_text())
    assert [name for name, _ in rows] == [*FAMILIES]
    assert all(
        int(tries.replace(",", "")) >= family.smoke for (_, tries), family in zip(rows, FAMILIES.values(), strict=True)
    )


def test_the_table_that_is_shown_has_every_family_and_nothing_found() -> None:
    text = (ROOT / "benchmarks" / "results" / "faults.md").read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| ([a-z ]+): .*? \| [\d,]+ \| 0 \| 0 \| 0 \| 0 \|", text)
    assert sorted(rows) == sorted(FAMILIES)  # counts of several calls come in their order


# -- what it looks with -----------------------------------------------------------------------------------------------


def test_what_is_raised_or_takes_too_long_is_counted() -> None:
    count = Count("any", "a try")
    with count.one("refused", expected=(ValueError,)):
        raise ValueError
    assert count.clean
    with count.one("raises", expected=(ValueError,)):
        raise KeyError("gone")
    with count.one("hangs", limit=0.05):
        time.sleep(5)
    assert count.tries == 3
    assert count.found == {"traceback": 1, "wrong": 0, "hang": 1, "lost": 0}
    assert count.said == {"traceback": "raises: KeyError: 'gone'", "hang": "hangs"}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_oracle_labels_what_is_plain_to_see(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    ids, labels = oracle.labels(tokenizer, kind, ("The river runs", frozenset(range(4, 9))))
    assert tokenizer.decode([i for i, label in zip(ids, labels, strict=True) if label >= 0]).strip() == "river"


def test_labels_that_are_one_token_off_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(*arguments: Any) -> list[dict[str, torch.Tensor]]:
        return [example | {"labels": example["labels"].roll(1)} for example in encode(*arguments)]

    monkeypatch.setattr(texts, "encode", shifted)
    count = Count("probes", "")
    texts.a_probe(count, 40, 0, tmp_path, Clock())
    assert count.found["wrong"] > 0


def test_probes_that_are_read_otherwise_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "read_probes", lambda path: [completion("Another", "probe")])
    count = Count("probes", "")
    texts.a_probe(count, 40, 0, tmp_path, Clock())
    assert count.found["wrong"] + count.found["traceback"] == count.tries  # of damaged files, the oracle's own


def test_a_trace_that_is_none_but_accepted_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Lenient:
        layers, metadata = ("a", "a"), ()
        probe_norms = reference_norms = relative_norms = torch.tensor([-1.0, 1.0])
        load = classmethod(lambda cls, path: cls())

    monkeypatch.setattr(traces, "LayerTrace", Lenient)
    count = Count("traces", "")
    traces.a_trace(count, 40, 0, tmp_path, Clock())
    assert count.found["wrong"] > 0


def test_an_optimizer_that_lets_a_nan_through_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Bare(LocalizedOptimizer):
        def step(self, closure: Any = None) -> None:
            super().step()
            self.inner.step()

    monkeypatch.setattr(steps, "LocalizedOptimizer", Bare)
    count = Count("steps", "")
    steps.a_step(count, 2000, 0, tmp_path, Clock())
    assert count.found["wrong"] > 0
