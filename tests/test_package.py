"""The package as a whole."""

from __future__ import annotations

import ast
import configparser
import os
import re
import subprocess
import sys
from pathlib import Path

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


def test_what_reads_files_is_there_without_transformers_until_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "probes.jsonl").write_text('{"prompt": "The Seine flows through", "answer": "Paris"}\n')
    (tmp_path / "corpus.txt").write_text("One.\n\nTwo.\n")
    code = (
        "import sys, localopt\n"
        "print('torch' in sys.modules)\n"
        "from localopt import Probe, encode, encode_text, read_corpus, read_probes, read_reference\n"
        "probe, = read_probes('probes.jsonl')\n"
        "print(isinstance(probe, Probe), probe.text, read_corpus('corpus.txt'))\n"
        "print('transformers' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=with_this_package())
    assert run.stdout.splitlines() == ["False", "True The Seine flows through Paris ['One.', 'Two.']", "False"]


def with_this_package() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(localopt.__file__).parents[1])}


def test_every_package_that_is_imported_is_declared() -> None:
    root = Path(__file__).parents[1]
    declared = configparser.ConfigParser()
    declared.read(root / "setup.cfg")
    extras = " ".join(declared["options.extras_require"].values())
    known = {
        re.split(r"[><=\[]", line)[0].lower().replace("-", "_")
        for line in (declared["options"]["install_requires"] + extras.replace(" ", "\n")).split()
    }
    known |= {"yaml"} if "pyyaml" in known else set()
    imported = set()
    for path in (root / "localopt").rglob("*.py"):
        if path.parent.name == "integrations":  # loaded by the framework they are for, which brings what they import
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    assert imported - {"localopt"} - set(sys.stdlib_module_names) - known == set()
