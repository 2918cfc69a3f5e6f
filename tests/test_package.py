"""The package as a whole."""

from __future__ import annotations

import ast
import configparser
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
