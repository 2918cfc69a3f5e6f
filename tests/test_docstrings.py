"""Docstrings of public names have every part that applies to them (CONTRIBUTING says which), and their examples run."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import textwrap
from typing import Any

import pytest

import localopt
from localopt.integrations import transformers as for_transformers

PUBLIC = [getattr(localopt, name) for name in localopt.__all__]
PUBLIC += [
    getattr(for_transformers, name) for name in ("localize", "Localize", "localized_optimizer", "LocalizationCallback")
]
NEED_A_TRAINER = (for_transformers.localize, for_transformers.LocalizationCallback)  # the guide's code runs them
MODULES = sorted(module.name for module in pkgutil.walk_packages(localopt.__path__, "localopt."))
RAISES = re.compile(r"\braise |\brefuse_\w+\(|\bcheck_\w+\(")


def section(docstring: str, *titles: str) -> str | None:
    """The text of the first of the sections that there is."""
    for title in titles:
        found = re.search(rf"(?ms)^{title}:\n(.*?)(?=^\S|\Z)", docstring)
        if found:
            return found[1]
    return None


def parameters(public: Any) -> list[str]:
    """What a caller may give: the arguments of a function, or those of the class's construction."""
    if getattr(public, "_is_protocol", False):
        return []
    return [name for name in inspect.signature(public).parameters if name != "self"]


def source_of_the_call(public: Any) -> str:
    """A function, or what of a class runs when an instance is made and bound to an optimizer."""
    source = textwrap.dedent(inspect.getsource(public))
    if not inspect.isclass(public):
        return source
    [whole] = ast.parse(source).body
    assert isinstance(whole, ast.ClassDef)
    methods = [part for part in whole.body if isinstance(part, ast.FunctionDef)]
    return "\n".join(ast.unparse(part) for part in methods if part.name in ("__init__", "__post_init__", "bind"))


@pytest.mark.parametrize("public", PUBLIC, ids=lambda public: public.__name__)
def test_a_docstring_has_every_part_that_applies(public: Any) -> None:
    docstring = inspect.getdoc(public) or ""
    first, _, rest = docstring.partition("\n")
    assert first.endswith("."), "one line that says what it does"
    assert not rest or rest.startswith("\n"), "an empty line after the first"
    described = section(docstring, "Args", "Attributes") or ""
    missing = [name for name in parameters(public) if not re.search(rf"(?m)^    {name}:? ", described)]
    assert missing == [], "Args (or Attributes) says what each is"
    if inspect.isfunction(public) and public.__annotations__.get("return") not in (None, "None"):
        assert section(docstring, "Returns"), "Returns"
    if RAISES.search(source_of_the_call(public)):
        assert section(docstring, "Raises"), "Raises"
    if public not in NEED_A_TRAINER:
        assert ">>>" in (section(docstring, "Examples") or ""), "Examples that run"
    if re.search(r"arXiv|et al\.", docstring):
        assert section(docstring, "References"), "References hold the sources"


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings_run(module: str) -> None:
    if module == "localopt.__main__":
        pytest.skip("runs the program")
    if module.startswith("localopt.steps.triton."):
        pytest.importorskip("triton")  # the one package that may be missing
    outcome = doctest.testmod(importlib.import_module(module))
    assert outcome.failed == 0
