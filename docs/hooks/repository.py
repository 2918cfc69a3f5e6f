"""Pages that are kept elsewhere in the repository, and links from pages to files of the repository.

A page of the site may link to any file by its path, as GitHub shows it. What lies outside `docs/` is brought in: some
Markdown files are pages of the site (`PAGES`), pictures and web pages are copied, and anything else (a test, an
example) becomes a page that shows it.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = {
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "evidence/security.md",
    "benchmarks/results/faults.md": "evidence/faults.md",
    "benchmarks/results/decay.md": "evidence/decay.md",
    "benchmarks/results/decay/budgets.md": "evidence/budgets.md",
    "benchmarks/lifelong/README.md": "evidence/protocol.md",
    "benchmarks/results/README.md": "evidence/repeat.md",
    "benchmarks/results/first-look.md": "evidence/first-look.md",
    "benchmarks/results/lifelong.md": "evidence/lifelong.md",
    "benchmarks/results/optimizer-zoo.md": "evidence/optimizers.md",
    "benchmarks/results/lifelong/stability.md": "evidence/stability.md",
}
MADE = {"examples/first_look.ipynb": "start/first-look.md"}  # by notebook.py
COPIED = {".png", ".svg", ".html", ".json", ".xz"}
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s]+)(\))")
IMAGE = re.compile(r'(<img[^>]*\ssrc=")([^"]+)(")')
LANGUAGES = {".py": "python", ".sh": "bash", ".yml": "yaml", ".yaml": "yaml", ".cfg": "ini", ".toml": "toml"}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages kept elsewhere, and every file a page links to."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    wanted = {target for page in list(files.documentation_pages()) for target in _linked(page)}
    for target in sorted(wanted):
        place = _place(target)
        if target in PAGES or target in MADE or place is None or files.get_file_from_path(place):
            continue
        if Path(target).suffix in COPIED:
            files.append(File.generated(config, place, content=(ROOT / target).read_bytes()))
        else:
            files.append(File.generated(config, place, content=_shown(target)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links lead to where the files are in the site, and begin lists with the empty line Markdown asks for."""
    if page.file.src_uri.startswith("source/"):
        return markdown
    source = _source(page.file.src_uri)

    def relink(match: re.Match[str]) -> str:
        before, link, after = match.groups()
        target, anchor = _target(source, link)
        place = None if target is None else _place(target)
        if place is None or target is None:
            return match[0]
        if not target.startswith("docs/") and not (ROOT / target).exists():
            raise FileNotFoundError(f"{source}: links to {link}, and there is no {target}")
        return f"{before}{posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or '.')}{anchor}{after}"

    for pattern in (LINK, IMAGE):
        markdown = _outside_code(markdown, lambda text, pattern=pattern: pattern.sub(relink, text))
    return _outside_code(
        markdown, lambda text: re.sub(r"(?m)^(?![-*>|#\s]|\d+\.)(.+)\n(?=(?:[-*]|\d+\.) )", r"\1\n\n", text)
    )


def _source(page: str) -> str:
    """Return where a page is kept, as a path from the root of the repository."""
    return next((source for source, name in PAGES.items() if name == page), f"docs/{page}")


def _target(source: str, link: str) -> tuple[str | None, str]:
    """Return the file a link leads to, as a path from the root, and the anchor in it; None for one out in the world."""
    if re.match(r"[a-z]+:|#", link):
        return None, ""
    path, mark, anchor = link.partition("#")
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), path)), mark + anchor


def _place(target: str) -> str | None:
    """Return where in the site a file of the repository is; None for what stays where it is."""
    if target in PAGES or target in MADE:
        return PAGES.get(target) or MADE[target]
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    if (ROOT / target).is_dir():
        return _place(f"{target}/README.md") if (ROOT / target / "README.md").exists() else f"source/{target}.md"
    if Path(target).suffix in COPIED:
        return f"files/{target}"
    return f"source/{target.removesuffix('.md')}.md"


def _linked(page: File) -> set[str]:
    source = _source(page.src_uri)
    text = page.content_string
    links = [match[2] for pattern in (LINK, IMAGE) for match in pattern.finditer(text)]
    targets = {_target(source, link)[0] for link in links}
    return {target for target in targets if target and not target.startswith("docs/") and (ROOT / target).exists()}


def _shown(target: str) -> str:
    """Return a page that shows a file, or lists a folder."""
    path = ROOT / target
    head = f"---\ntitle: {path.name}\nsearch: {{exclude: true}}\n---\n"
    if path.is_dir():
        if (path / "README.md").exists():
            return _shown(f"{target}/README.md")
        names = "\n".join(f"- `{name}`" for name in sorted(os.listdir(path)) if not name.startswith(("_", ".")))
        return f"{head}# {target}\n\n{names}\n"
    text = path.read_text(encoding="utf-8")
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`{3,}", text))])
    return f"{head}# {target}\n\n{fence}{LANGUAGES.get(path.suffix, 'text')}\n{text}\n{fence}\n"


def _outside_code(markdown: str, change: Any) -> str:
    """Apply ``change`` to everything but fenced code."""
    parts = re.split(r"(?ms)(^ *```.*?^ *```[ \t]*$)", markdown)
    return "".join(part if i % 2 else change(part) for i, part in enumerate(parts))
