"""What README and site say holds: their code runs, their commands parse, their links and names lead somewhere."""

from __future__ import annotations

import configparser
import importlib
import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import typer

import localopt
from localopt.cli import app
from tests.tiny_models import examples, llama

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
NOTEBOOK = ROOT / "examples" / "first_look.ipynb"
NOT_RUN = re.compile(r'title="not run here: (.+)"')


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


class Block(NamedTuple):
    language: str
    options: str
    code: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    """Fenced code; what stands inside a tab or a note is indented, and counts too."""
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"(?ms)^( *)```(\w*)([^\n]*)\n(.*?)^\1```[ \t]*$", text):
        indent, language, options, code = found.groups()
        yield Block(language, options, re.sub(f"(?m)^{indent}", "", code), text[: found.start()].count("\n") + 1)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150


# -- code -------------------------------------------------------------------------------------------------------------

WITH_CODE = [page for page in PAGES if any(block.language == "python" for block in blocks(page))]


def what_pages_may_use() -> dict[str, Any]:
    """As the pages say: a model, batches to train on, and single examples of what is new and what should stay."""
    torch.manual_seed(0)
    rows = torch.randint(61, (4, 2, 12))
    model = llama()
    model.config.max_position_embeddings = 128  # room for the samples it writes
    return {
        "torch": torch,
        "model": model,
        "batches": [{"input_ids": row, "labels": row} for row in rows],
        "probe": examples(4, length=12, span=3),
        "reference": examples(4, length=12),
    }


@pytest.mark.parametrize("page", WITH_CODE, ids=name)
@pytest.mark.filterwarnings("ignore")
def test_the_code_of_a_page_runs_from_top_to_bottom(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace = what_pages_may_use()
    for block in blocks(page):
        if block.language != "python" or NOT_RUN.search(block.options):
            continue
        if "peft" in block.code:
            pytest.importorskip("peft")
        exec(compile("\n" * block.line + block.code, str(page), "exec"), namespace)


def test_the_notebook_is_stored_without_what_it_printed_and_runs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    manager = pytest.importorskip("jupyter_client.manager").AsyncKernelManager(kernel_name="python3", transport="ipc")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, km=manager, timeout=300).execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "Least was forgotten by: " in printed


# -- commands ---------------------------------------------------------------------------------------------------------

COMMAND = re.compile(r"^(?:localopt|torchrun .*?-m localopt|(?:\.venv/bin/)?python3? -m benchmarks\.\S+) ?")


def commands(page: Path) -> Iterator[str]:
    for block in blocks(page):
        if block.language in ("", "text", "sh", "bash", "console"):
            for line in re.sub(r"\\\n\s*", "", block.code).splitlines():
                if COMMAND.match(line) and "[options]" not in line:
                    yield line.partition("  #")[0]
    yield from re.findall(
        r"`((?:localopt [a-z]|python -m benchmarks\.)[^`\n]* --[^`\n]+)`", page.read_text(encoding="utf-8")
    )


COMMANDS = [(page, command) for page in PAGES for command in commands(page)]


@pytest.mark.parametrize(("page", "command"), [pair for pair in COMMANDS if "benchmarks." not in pair[1]], ids=str)
def test_a_command_is_one_the_program_takes(page: Path, command: str) -> None:
    group: Any = typer.main.get_command(app)
    wanted, *arguments = shlex.split(COMMAND.sub("", command, count=1))
    group.commands[wanted].make_context(wanted, arguments)  # raises what the program would say


@pytest.mark.parametrize(("page", "command"), [pair for pair in COMMANDS if "benchmarks." in pair[1]], ids=str)
def test_a_benchmark_has_the_options_it_is_shown_with(page: Path, command: str) -> None:
    module = next(word for word in command.split() if word.startswith("benchmarks."))
    found = importlib.util.find_spec(module)
    assert found is not None
    if found.submodule_search_locations:
        found = importlib.util.find_spec(f"{module}.__main__")
    assert found is not None
    assert found.origin is not None
    source = Path(found.origin).read_text(encoding="utf-8")
    for option in re.findall(r"--[a-z][\w-]*", command):
        assert f'"{option}"' in source or f"    {option[2:].replace('-', '_')}: " in source, option


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_extras_that_are_to_be_installed_exist(page: Path) -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    wanted = re.findall(r"'\.\[(\w+)\]'", page.read_text(encoding="utf-8"))
    assert [extra for extra in wanted if extra not in settings["options.extras_require"] and extra != "NAME"] == []


# -- links and names --------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Headings, as they are written in addresses."""
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def entries() -> list[str]:
    """What the reference has an entry for."""
    pages = sorted((ROOT / "docs" / "reference").glob("*.md"))
    return [entry for page in pages for entry in re.findall(r"(?m)^::: (\S+)$", page.read_text(encoding="utf-8"))]


def test_every_public_name_has_its_entry_in_the_reference() -> None:
    public = {f"localopt.{public}" for public in localopt.__all__}
    assert sorted(public.difference(entries())) == []
    assert len(entries()) == len(set(entries()))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_names_of_the_package_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`(localopt(?:\.\w+)+)`|\]\[(localopt(?:\.\w+)+)\]|(?m:^::: (\S+)$)", text)
    for full in {next(filter(None, match)) for match in named}:
        target: Any = localopt
        for part in full.split(".")[1:]:
            if not hasattr(target, part):
                target = importlib.import_module(f"{target.__name__}.{part}")
            else:
                target = getattr(target, part)
