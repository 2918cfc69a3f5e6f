"""What spreads from the definition of an entity (arXiv 2305.01651): Entity Cloze By Date and Entity Inferences.

There one definition is taught at a time, and both sides of a masked span are read; here the definitions of many
entities are taught together, as a part "E" beside the halves A and B, and a causal model sees what is before a span.
A definition is read, and put in front where it is, as far as all methods read a passage.
For an inference the words offered are compared by what they cost together with the rest of the sentence.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from benchmarks.lifelong.data.passages import SPLITS
from benchmarks.lifelong.exam.exam import Exam
from benchmarks.lifelong.measures.asking import Choices, Spans, is_first
from benchmarks.lifelong.measures.definitions import Values
from benchmarks.lifelong.measures.source import Absent, Row, Source
from benchmarks.lifelong.stream.periods import HALF, SHARED
from localopt.pretraining.probes import Probe, read_probes
from localopt.pretraining.textfiles import evenly, json_lines

FOLDER = "entity_inferences"
MASK = re.compile(r"<extra_id_\d+>")
SPLIT = "test"  # of the prepared entities
SENTENCES = 2  # about an entity


@dataclass(frozen=True)
class Inference:
    """A sentence that follows from a definition: the words offered for its gap, the right one first."""

    entity: str
    definition: str
    sentence: str
    offered: tuple[str, ...]


class Propagation:
    """Ready to be asked of a model. `absent`: what was not there."""

    def __init__(self, source: Source, exam: Exam) -> None:
        tokenizer, most = source.tokenizer, source.most
        defined, sentences = entities(source)
        groups = [str(probe.extra["group"]) for probe in sentences]
        self.spans = {
            "entity spans": Spans(sentences, groups, tokenizer),
            "entity spans defined": Spans(
                [_behind(defined[group], probe) for group, probe in zip(groups, sentences, strict=True)],
                groups,
                tokenizer,
            ),
        }
        popular = evenly(read_probes(source.prepared / "popular.jsonl"), most)
        self.spans["entity specificity"] = Spans(popular, [probe.extra["entity"] for probe in popular], tokenizer)
        self.absent = ""
        self.inferences: dict[str, Fillings] = {}
        try:
            taught, untaught = inferences(source)
        except Absent as error:
            self.absent = str(error)
            return
        self.inferences = {
            "inferences": Fillings(taught, source),
            "inferences defined": Fillings(taught, source, defined=True),
            "inferences untaught": Fillings(untaught, source),
        }

    def __call__(self, model: PreTrainedModel) -> dict[str, Values]:
        found = {name: spans(model) for name, spans in self.spans.items()}
        return found | {name: fillings(model) for name, fillings in self.inferences.items()}


class Fillings:
    """Sentences with a gap, filled in every way offered."""

    def __init__(self, asked: Sequence[Inference], source: Source, defined: bool = False) -> None:
        self.asked = asked
        # An answer is the word with the rest of the sentence; where the gap comes first, the definition or a line end
        # gives the model something to begin from.
        questions = []
        for one in asked:
            before, after = one.sentence.split("<gap>")
            before = f"{one.definition} {before}" if defined else before
            questions.append((before.rstrip() or "\n", [word + after for word in one.offered]))
        self.choices = Choices(questions, source.tokenizer)

    def __call__(self, model: PreTrainedModel) -> Values:
        return Values([is_first(nll) for nll in self.choices(model)], [one.entity for one in self.asked])


def entities(source: Source) -> tuple[dict[str, str], list[Probe]]:
    """Definitions by group, as far as they are read, and sentences on these entities."""
    prepared = source.prepared
    texts: dict[str, str] = {}
    for _, row in json_lines(prepared / "corpus_entities.jsonl"):
        if row["split"] == SPLIT:
            texts.setdefault(str(row["group"]), row["text"])
    chosen = evenly(list(texts), max(1, source.most * 2 // 5))
    defined = {group: source.lesson(texts[group]) for group in chosen}
    probes = [p for p in read_probes(prepared / f"new_entities.{SPLIT}.jsonl") if str(p.extra["group"]) in defined]
    count: dict[str, int] = {}
    sentences = []
    for probe in probes:
        group = str(probe.extra["group"])
        count[group] = count.get(group, 0) + 1
        if count[group] <= SENTENCES and probe.span[0][0] > 0:
            sentences.append(probe)
    return defined, sentences


def inferences(source: Source) -> tuple[list[Inference], list[Inference]]:
    """Of entities whose definitions are taught, and as many of others, by turns.

    Raises:
        Absent: there is no such folder, or nothing in it.
    """
    files = sorted((source.shared / FOLDER).glob("*.json"))
    if not files:
        raise Absent(f"{FOLDER}/*.json")
    found = [_inference(row, source) for file in files for _, row in json_lines(file)]
    some = evenly(found, source.most * 4 // 5)
    return some[::2], some[1::2]


def _inference(row: Row, source: Source) -> Inference:
    probe = next(iter(row["probe_sentences"].values()))
    label = row["label"].strip()
    labels = [MASK.sub("", text).strip() for text in probe["labels"]]
    definition = MASK.sub("<gap>", row["definition"], count=1).replace("<gap>", MASK.sub("", row["def_target"]).strip())
    sentence = MASK.sub("<gap>", probe["probe_sentence"], count=1)
    offered = (label, *(word for word in labels if word != label))
    return Inference(row["ent_str"], source.lesson(definition), sentence, offered)


def _behind(definition: str, probe: Probe) -> Probe:
    moved = len(definition) + 1
    spans = tuple((begin + moved, end + moved) for begin, end in probe.span)
    return Probe(f"{definition} {probe.text}", spans, source=probe.source)


def write_lessons(source: Source, folder: Path) -> Path:
    """A folder that a method traces and reads like a half: the definitions, the loss on all but their first word."""
    taught = [(f"group {group}", text) for group, text in entities(source)[0].items()]
    with contextlib.suppress(Absent):  # which is said where the measures are made
        taught += [(one.entity, one.definition) for one in inferences(source)[0]]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    passages = [
        {"text": text, "fact": name, "group": number, "spans": [[text.find(" ") + 1, len(text)]]}
        for number, (name, text) in enumerate(taught)
    ]
    answers = [{"fact": row["fact"], "answer": row["text"]} for row in passages]
    for name, rows in (("corpus_train", passages), ("updated", answers)):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.{SPLITS[HALF]}.jsonl").write_text(lines, encoding="utf-8")
    for name in SHARED:
        shutil.copyfile(source.prepared / name, folder / name)
    return folder
