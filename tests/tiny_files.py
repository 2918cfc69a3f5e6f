"""Files to train, trace and score with: a tiny model's folder, a corpus, probes."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.tiny_lm import SENTENCES, tiny_model, tiny_tokenizer

FACTS = [
    {"prompt": "The capital of Norland is", "answer": "Westhaven"},
    {"prompt": "Mira Osk lives in", "answer": "Westhaven"},
]


def write_lines(path: Path, *lines: object) -> Path:
    """JSON lines; a string is written as it is."""
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def write_inputs(folder: Path) -> Path:
    """`model/`, `corpus.txt`, `facts.jsonl` (prompt and answer), `spans.jsonl` (text and spans)."""
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "corpus.txt").write_text("\n\n".join(SENTENCES * 10))
    write_lines(folder / "facts.jsonl", *FACTS)
    write_lines(folder / "spans.jsonl", {"text": SENTENCES[2], "spans": [[18, 25]]})
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """Let no file grow beyond `room` bytes: the system refuses to write more, as it does where a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
