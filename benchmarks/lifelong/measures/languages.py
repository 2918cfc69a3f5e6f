"""python -m benchmarks.lifelong.measures.languages: learn topics in one language after the other, and see what is left.

After classifiers of news trained on one language after the other (2022), on SIB-200: the same sentences and topics in
every language. A causal model reads each sentence with its topic ("Topic: travel") and is asked which topic is the
likeliest; with --encoder NAME an encoder that the user names gets a classification head instead.

With K(t, i) the accuracy on language i after language t of T, and K(0, i) that before: average accuracy is the mean
over i of K(T, i), backward transfer the mean over i < T of K(T, i) - K(i, i).
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.lifelong.data.passages import SPLITS
from benchmarks.lifelong.measures import encoder
from benchmarks.lifelong.measures.asking import Choices, likeliest
from benchmarks.lifelong.methods.methods import layer_names
from benchmarks.lifelong.methods.norms import Norms
from benchmarks.lifelong.methods.rules import Case
from benchmarks.lifelong.report.records import append
from benchmarks.lifelong.report.tables import Table
from benchmarks.lifelong.start import model_of, place, start_weights
from benchmarks.lifelong.stream.__main__ import method
from benchmarks.lifelong.stream.periods import HALF, SHARED
from benchmarks.lifelong.teaching import teach
from benchmarks.lifelong.training import Settings
from benchmarks.stamp import stamp
from localopt.errors import InputError
from localopt.pretraining.models import load_model
from localopt.pretraining.textfiles import evenly, json_lines, read_text

LANGUAGES = ("eng_Latn", "deu_Latn", "fra_Latn", "ita_Latn", "pol_Latn", "spa_Latn")
FOLDER = "sib200"
SENTENCES = (200, 100)  # of a language: read, and asked about
SMOKE = (16, 16)
ROOM = 12  # tokens left for the topic

Row = dict[str, Any]
Sentence = tuple[str, str]  # text, topic


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lifelong.measures.languages", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="what prepare wrote: the start")
    parser.add_argument("--shared", type=Path, required=True, metavar="FOLDER", help="the folder that holds sib200")
    parser.add_argument("--model", help="a causal model; default DATA/model, or that beside it")
    parser.add_argument("--encoder", help="an encoder of transformers, instead of the causal model")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="languages.jsonl, .md and .png")
    parser.add_argument("--resume", action="store_true", help="go on with the runs in OUT")
    parser.add_argument("--methods", nargs="+", type=method, default=["adamw@1e-4"], metavar="NAME@RATE")
    parser.add_argument("--lrs", nargs="+", type=float, default=[1e-4], metavar="RATE", help="of methods without @RATE")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="SEED", help="also the order of languages")
    parser.add_argument(
        "--sentences",
        nargs=2,
        type=int,
        default=SENTENCES,
        metavar=("READ", "ASKED"),
        help="how many of each language are read, and asked about; by default %(default)s",
    )
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast, for processors that have it")
    parser.add_argument("--smoke", action="store_true", help="one epoch, few sentences: does it run?")
    given = parser.parse_args(arguments)
    try:
        print(run(given))
    except InputError as error:
        print(f"languages: {error}", file=sys.stderr)
        sys.exit(2)


def run(given: argparse.Namespace) -> str:
    """Do what is not done yet; returns the table."""
    file = given.out / "languages.jsonl"
    if file.exists() and not given.resume:
        raise InputError(f"{file}: exists: add --resume to go on with it, or name another --out.")
    settings = Settings.of(given.data, given.bf16, given.smoke)
    if min(given.sentences) < 1:
        raise InputError(f"--sentences {' '.join(map(str, given.sentences))}: both must be at least 1.")
    found = read_languages(given.shared / FOLDER, *(SMOKE if given.smoke else given.sentences))
    rows = [row for _, row in json_lines(file)] if file.exists() else []
    done = {(row["method"], row["lr"], row["seed"]) for row in rows}
    given.out.mkdir(parents=True, exist_ok=True)
    if given.encoder:
        learner: Learner | encoder.Encoder = encoder.Encoder(given.encoder, topics_of(found), settings)
    else:
        learner = Learner(given.data, given.model or model_of(given.data), given.out, found, settings)
    for seed, text in product(given.seeds, given.methods):
        name, _, rate = text.partition("@")
        for lr in [float(rate)] if rate else given.lrs:
            if (name, lr, seed) not in done:
                row = stream(learner, found, name, lr, seed)
                append(file, row)
                rows.append(row)
                print(f"{time.strftime('%H:%M:%S')} {name} {lr:g} seed {seed}: {row['seconds']} s", file=sys.stderr)
    made = table(rows)
    markdown = f"**{made.title}**\n\n{made.markdown()}\n\n{made.note}\n"
    (given.out / "languages.md").write_text(markdown, encoding="utf-8")
    picture(rows).savefig(given.out / "languages.png", dpi=150)
    return markdown


def stream(learner: Any, found: dict[str, dict[str, list[Sentence]]], name: str, lr: float, seed: int) -> Row:
    """One method through all languages: accuracy on each of them before, and after every one."""
    began = time.perf_counter()
    order = list(found)
    if seed:
        random.Random(f"{seed}/languages").shuffle(order)
    learner.restart()
    accuracy = [[learner.accuracy(found[language]["test"]) for language in order]]
    for language in order:
        learner.learn(found[language]["train"], name, lr, seed)
        accuracy.append([learner.accuracy(found[other]["test"]) for other in order])
    return {
        "method": name,
        "lr": lr,
        "seed": seed,
        "languages": order,
        "read": [len(found[language]["train"]) for language in order],
        "asked": [len(found[language]["test"]) for language in order],
        "accuracy": accuracy,
        "seconds": round(time.perf_counter() - began, 1),
        "stamp": stamp(),
    }


class Learner:
    """A causal model that reads sentences with their topics, and is asked for the likeliest topic."""

    def __init__(
        self, prepared: Path, name: str, out: Path, found: dict[str, dict[str, list[Sentence]]], settings: Settings
    ) -> None:
        self.prepared, self.settings, self.topics = prepared, settings, topics_of(found)
        self.model: PreTrainedModel
        self.tokenizer: PreTrainedTokenizerBase
        self.model, self.tokenizer = load_model(name)
        self.start, _ = start_weights(self.model, self.tokenizer, prepared, out / "start.safetensors", settings)
        self.weights = self.start

    def restart(self) -> None:
        self.weights = self.start
        place(self.model, self.start)
        self.model.eval()

    def learn(self, sentences: Sequence[Sentence], name: str, lr: float, seed: int) -> None:
        """Read them by a method, which traces them where it traces, from where the model stands."""
        with tempfile.TemporaryDirectory() as scratch:
            folder = self._lessons(sentences, Path(scratch))
            weights = self.weights
            norms = Norms(
                folder / "norms.json",
                folder,
                self.model,
                self.tokenizer,
                self.settings.length,
                lambda: place(self.model, weights),
            )
            case = Case(layer_names(self.model), HALF, seed, norms)
            teach(self.model, self.tokenizer, folder, case, name, lr, self.settings, weights)
        self.weights = {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}

    def accuracy(self, sentences: Sequence[Sentence]) -> float:
        """Share of sentences whose topic is the likeliest of all."""
        asked = [(self.prompt(text), [topic, *(t for t in self.topics if t != topic)]) for text, topic in sentences]
        with self.settings.autocast():
            losses = Choices(asked, self.tokenizer)(self.model)
        return float(np.mean([likeliest(nll) == 0 for nll in losses]))

    def prompt(self, text: str) -> str:
        """The end of the sentence, as much of it as is read in training, and a line that asks for the topic."""
        room = max(1, self.settings.length - ROOM)
        offsets = self.tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        return text[offsets[-room][0] if len(offsets) > room else 0 :].strip() + "\nTopic:"

    def _lessons(self, sentences: Sequence[Sentence], folder: Path) -> Path:
        passages, answers = [], []
        for number, (text, topic) in enumerate(sentences):
            prompt = self.prompt(text)
            whole, fact = f"{prompt} {topic}", f"sentence {number}"
            passages.append({"text": whole, "fact": fact, "group": number, "spans": [[len(prompt) + 1, len(whole)]]})
            answers.append({"fact": fact, "answer": topic})
        for name, rows in (("corpus_train", passages), ("updated", answers)):
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / f"{name}.{SPLITS[HALF]}.jsonl").write_text(lines, encoding="utf-8")
        for name in SHARED:
            shutil.copyfile(self.prepared / name, folder / name)
        return folder


def read_languages(folder: Path, trained: int, asked: int) -> dict[str, dict[str, list[Sentence]]]:
    """Sentences with topics by language and part, of the languages that the folder holds.

    Raises:
        InputError: fewer than two languages, or a file that is not SIB-200's.
    """
    found = {}
    for language in LANGUAGES:
        files = {part: folder / f"{language}.{part}.tsv" for part in ("train", "test")}
        if not all(file.is_file() for file in files.values()):
            print(f"{folder} does not hold {language}: it is passed over.", file=sys.stderr)
            continue
        found[language] = {
            part: evenly(read_sentences(file), trained if part == "train" else asked) for part, file in files.items()
        }
    if len(found) < 2:
        raise InputError(f"{folder}: holds {len(found)} of the languages {', '.join(LANGUAGES)}: two are needed.")
    return found


def read_sentences(file: Path) -> list[Sentence]:
    rows = list(csv.DictReader(read_text(file).splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))
    if not rows or not all(row.get("text") and row.get("category") for row in rows):
        raise InputError(f"{file}: needs the columns category and text with something in each: is it of SIB-200?")
    return [(row["text"], row["category"]) for row in rows]


def topics_of(found: dict[str, dict[str, list[Sentence]]]) -> list[str]:
    return sorted({topic for parts in found.values() for some in parts.values() for _, topic in some})


def summary(accuracy: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Average accuracy and backward transfer.

    >>> summary([[0.25, 0.25], [0.75, 0.25], [0.5, 1.0]])
    (0.75, -0.25)
    """
    known = np.array(accuracy)
    own = np.array([known[number + 1, number] for number in range(known.shape[1] - 1)])
    return float(known[-1].mean()), float((known[-1, :-1] - own).mean())


def table(rows: Sequence[Row]) -> Table:
    header = ["method", "rate", "streams", "before", "after its own language", "average accuracy", "backward transfer"]
    lines = []
    for key in dict.fromkeys((row["method"], row["lr"]) for row in rows):
        some = [np.array(row["accuracy"]) for row in rows if (row["method"], row["lr"]) == key]
        own = float(np.mean([np.mean([one[n + 1, n] for n in range(one.shape[1])]) for one in some]))
        average, backward = (float(value) for value in np.mean([summary(one.tolist()) for one in some], axis=0))
        before = float(np.mean([one[0].mean() for one in some]))
        cells = [f"{before:.1%}", f"{own:.1%}", f"{average:.1%}", f"{backward:+.1%}"]
        lines.append([key[0], f"{key[1]:g}", str(len(some)), *cells])
    note = (
        "Share of sentences whose topic is the likeliest. Backward transfer: what later languages did to earlier ones."
    )
    return Table("Topics in one language after the other", header, lines, note)


def picture(rows: Sequence[Row]) -> Figure:
    """A square a run: languages down, time across."""
    figure = Figure(figsize=(3.2 * len(rows), 3.2), layout="constrained")
    for square, row in zip(figure.subplots(1, len(rows), squeeze=False)[0], rows, strict=True):
        known = np.array(row["accuracy"])
        square.imshow(known.T, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        for (after, language), share in np.ndenumerate(known):
            color = "black" if share > 0.6 else "white"
            square.text(after, language, f"{share:.0%}", ha="center", va="center", color=color, fontsize=7)
        names = [name.split("_")[0] for name in row["languages"]]
        square.set_xticks(range(len(known)), ["start", *names], fontsize=7)
        square.set_yticks(range(len(names)), names, fontsize=7)
        square.set_title(f"{row['method']} {row['lr']:g}", fontsize=8)
    figure.supxlabel("after")
    return figure


if __name__ == "__main__":
    main()
