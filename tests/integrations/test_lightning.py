"""Lightning's Trainer and Fabric with DDP, two real processes. Runs where lightning is installed."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from tests.distributed.launch import succeed
from tests.runs import assert_same

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("lightning") is None, reason="needs lightning"),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("lightning")
    succeed("tests.integrations.lightning_worker", 2, out, timeout=400)
    loaded: dict[str, Any] = torch.load(out / "found.pt", weights_only=False)
    return loaded


def test_fabric_with_ddp_trains_as_one_process_without_it(found: dict[str, Any]) -> None:
    run = found["fabric"]
    assert "error" not in run, run
    assert run["updated"][0] == run["updated"][1]
    assert len(run["updated"][0]) == 1
    torch.testing.assert_close(run["weights"], run["alone"], rtol=1e-5, atol=1e-6)


def test_lightnings_trainer_with_ddp_resumes_bit_for_bit(found: dict[str, Any]) -> None:
    run = found["trainer"]
    assert "error" not in run, run
    assert len(run["updated"]) == 1
    assert run["updated"][0].startswith("net.")
    assert_same(dict(run["resumed"]), dict(run["whole"]))
