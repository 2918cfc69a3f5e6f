"""The order of the house: who may import whom, read from the sources."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "localopt").rglob("*.py"))
}
# From the face down to the method. A part may import what stands below it, and itself.
ORDER = ("face", "pretraining", "tracing", "plots", "method")
PARTS = {"cli": "face", "demo": "face", "integrations": "face", "__main__": "face"}
PARTS |= {part: part for part in ("pretraining", "tracing", "plots")}
METHOD = ("optimizer", "layers", "signals", "sums", "policies", "steps")
PARTS |= dict.fromkeys(METHOD, "method")
# Optional, and loaded only where they are asked for.
TRITON = tuple(f"localopt.steps.triton.{name}" for name in ("elements", "sum_kernels", "adam_kernels", "sgd_kernels"))
SHARED = ("localopt.errors", "localopt.outside")  # what is wrong with input, and how it is shown: everybody's


def part_of(module: str) -> str | None:
    """The part of the house a module stands in; None for the package itself and what all share."""
    return None if module in ("localopt", *SHARED) else PARTS[module.split(".")[1]]


def imports(module: str, lazily: bool = True) -> Iterator[str]:
    """What a module imports when it runs, within functions too if ``lazily``; what is for type checkers does not count.

    ``from package import name`` is an import of the module ``package.name`` where there is one.
    """
    waiting: list[ast.AST] = [ast.parse(SOURCES[module].read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting.extend(node.orelse)
            continue
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and not lazily:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are written in full"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in SOURCES else node.module
        waiting.extend(ast.iter_child_nodes(node))


def ours(module: str, lazily: bool = True) -> set[str]:
    return {name for name in imports(module, lazily) if name in SOURCES} - {module}


@pytest.mark.parametrize("module", SOURCES)
def test_imports_go_down_the_house_and_never_up(module: str) -> None:
    here = part_of(module)
    if here is None:
        return
    up = {name for name in ours(module) if (there := part_of(name)) and ORDER.index(there) < ORDER.index(here)}
    assert up == set()


@pytest.mark.parametrize("module", [name for name in SOURCES if part_of(name) == "method"])
def test_the_method_imports_torch_and_nothing_else(module: str) -> None:
    allowed = {"torch", "localopt"} | ({"triton"} if module in TRITON else set())
    roots = {name.partition(".")[0] for name in imports(module)}
    assert roots - allowed - sys.stdlib_module_names == set()
    assert {name for name in ours(module) if part_of(name) not in ("method", None)} == set()


@pytest.mark.parametrize("module", SHARED)
def test_what_all_share_imports_nothing_of_the_house(module: str) -> None:
    assert ours(module) == set()


def circle(lazily: bool) -> list[str]:
    """Modules that import each other in a round, if there are any. The package itself is above all of them."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        for name in sorted(ours(module, lazily) - {"localopt"}):
            if found := visit(name, [*path, module]):
                return found
        done.add(module)
        return []

    return next((found for module in SOURCES if (found := visit(module, []))), [])


@pytest.mark.parametrize("lazily", [False, True], ids=["at the top of modules", "within functions too"])
def test_no_modules_import_each_other_in_a_circle(lazily: bool) -> None:
    assert circle(lazily) == []
