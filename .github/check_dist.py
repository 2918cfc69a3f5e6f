"""Look into a sdist and a wheel: python .github/check_dist.py DIST [TAG] [branch|tag]."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path


def main(folder: str, tag: str = "", kind: str = "branch") -> None:
    """Exit with a message if something is in them that should not be, or missing."""
    [wheel], [sdist] = Path(folder).glob("*.whl"), Path(folder).glob("*.tar.gz")
    inside = zipfile.ZipFile(wheel).namelist()
    strange = [name for name in inside if not name.startswith("localopt/") and ".dist-info/" not in name]
    tests = [name for name in inside if "test" in Path(name).name or name.endswith((".png", ".ipynb", ".safetensors"))]
    if strange or tests:
        sys.exit(f"{wheel.name} holds what no user needs: {strange + tests}")
    for needed in ("localopt/py.typed", "localopt/optimizer.py", "localopt/cli/__init__.py"):
        if needed not in inside:
            sys.exit(f"{wheel.name} lacks {needed}")
    with tarfile.open(sdist) as archive:
        source = {name.partition("/")[2] for name in archive.getnames()}
    for needed in ("README.md", "LICENSE", "setup.cfg", "pyproject.toml", "localopt/optimizer.py"):
        if needed not in source:
            sys.exit(f"{sdist.name} lacks {needed}")
    version = wheel.name.split("-")[1]
    if kind == "tag" and tag != f"v{version}":
        sys.exit(f"the tag is {tag}, the version is {version}")
    print(f"{wheel.name}: {len(inside)} files, {wheel.stat().st_size / 1024:.0f} KB; {sdist.name} has what it needs")


if __name__ == "__main__":
    main(*sys.argv[1:])
