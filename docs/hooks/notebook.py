"""The notebook as a page: run when the site is built, so that the page shows what it prints today."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "first_look.ipynb"
PAGE = "start/first-look.md"


def on_files(files: Files, config: Any) -> Files:
    """Add the page and its pictures."""
    markdown, pictures = _executed(NOTEBOOK.read_text(encoding="utf-8"))
    files.append(File.generated(config, PAGE, content=markdown))
    for name, content in pictures.items():
        files.append(File.generated(config, f"start/{name}", content=content))
    return files


@functools.cache
def _executed(text: str) -> tuple[str, dict[str, bytes]]:
    import nbformat
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbconvert import MarkdownExporter

    notebook = nbformat.reads(text, as_version=4)
    kernel = AsyncKernelManager(kernel_name="python3", transport="ipc")  # files instead of open ports
    NotebookClient(notebook, km=kernel, timeout=300).execute()
    for cell in notebook.cells:  # warnings of libraries, with paths of this machine
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
    markdown, resources = MarkdownExporter().from_notebook_node(notebook, {"unique_key": "first-look"})
    return markdown, resources["outputs"]
