"""Every file in examples/ runs as it stands; those for torchrun have a test of their own."""

from __future__ import annotations

import ast
import multiprocessing
import os
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "examples").glob("*.py"))
SAYS = {
    "export_settings": "unfrozen_parameters:\n- ^model",
    "lora": "adapter matrices left to train",
    "mixed_precision": "0 steps skipped",  # the scaler skipped them before the optimizer was asked
    "plain_torch": "layers decayed toward their start",
    "anchor_decay": "from the start",
    "traced": "TGL + ALR: all tensors trained",
    "trainer": "6 of 11 layers updated",
    "trainer_factory": "ended with the same weights",
    "with_accelerate": "saved and loaded",
}


def is_for_torchrun(file: Path) -> bool:
    said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return "torchrun" in said.partition("\n")[0]


def run(file: str, folder: str) -> None:
    """Run a file as a script, in a folder of its own that also takes what it prints."""
    os.chdir(folder)
    for descriptor, name in ((1, "output"), (2, "errors")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ["HF_HUB_OFFLINE"] = "1"
    runpy.run_path(file, run_name="__main__")


@pytest.fixture(scope="module")
def processes() -> multiprocessing.context.ForkServerContext:
    """Starts processes that have the libraries loaded, which takes most of the seconds of such a short script."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers.trainer", "transformers.models.llama.modeling_llama"])
    return context


@pytest.mark.parametrize("file", [file for file in FILES if not is_for_torchrun(file)], ids=lambda file: file.stem)
def test_an_example_runs_offline_and_says_what_it_did(
    file: Path, processes: multiprocessing.context.ForkServerContext, tmp_path: Path
) -> None:
    if file.stem == "lora":
        pytest.importorskip("peft")
    process = processes.Process(target=run, args=(str(file), str(tmp_path)))
    process.start()
    process.join()
    assert process.exitcode == 0, (tmp_path / "errors").read_text()
    assert SAYS[file.stem] in (tmp_path / "output").read_text()


def test_the_examples_are_all_listed() -> None:
    listed = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert [file.name for file in FILES if f"({file.name})" not in listed] == []
