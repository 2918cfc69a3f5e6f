"""What tests of measures share: invented public files, and the folder prepared from them; only read."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.lifelong import prepare
from tests.benchmarks.invented import save_learned_model, write_data
from tests.benchmarks.invented_measures import write_public


@pytest.fixture(scope="session")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_public(write_data(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, public: Path) -> Path:
    model = save_learned_model(public, tmp_path_factory.mktemp("models") / "tiny")
    out = tmp_path_factory.mktemp("prepared") / "p"
    prepare.main(["--data", str(public), "--out", str(out), "--model", str(model), "--only", "facts"])
    model.rename(out / "model")
    return out
