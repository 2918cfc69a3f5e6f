"""Invented public files that measures are made of, beside those of `invented.py`."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from benchmarks.lifelong.exam.exam import Exam
from benchmarks.lifelong.measures.source import Source
from benchmarks.lifelong.start import model_of
from localopt.pretraining.models import load_model
from tests.benchmarks.invented import LANDS, NAMES, TONGUES, dated, write_lines

TOPICS = ("sports", "travel")
LANGUAGES = ("eng_Latn", "deu_Latn", "fra_Latn")


def write_public(folder: Path) -> Path:
    """EvolveBench's questions on the countries, inferences, a treebank, topics in three languages."""
    reasoning: dict[str, Any] = {}
    intervals: dict[str, Any] = {}
    for i, land in enumerate(LANDS):
        new, old, older = (f"{first} {NAMES[i % 14]}" for first in ("Ada", "Ben", "Cyr"))
        then = 1950 + 5 * i
        answers = [dated(older, str(then), str(then + 5)), dated(old, "2015", "2022"), dated(new, "2022")]
        position = f"Prime Minister of {land}"
        latter = new if i % 2 else old
        two = {"rephrased_1": f"{older} and {latter} both led {land}. Which of them came later?"}
        ago = {"rephrased_1": f"In 2016 {land} was led by {old}. Who led it some years before or after?"}
        questions = {"rephrased_3": f"From 1 May {then} to 1 May {then + 5}, who led {land}?"}
        reasoning[land] = {
            position: {"answers": answers, "ground_truth": latter, "ranking_qa": two, "accumulate_qa": ago}
        }
        intervals[land] = {position: {"answers": answers, "ground_truth": older, "questions": questions}}
    for name, tree in (("evolve_reasoning_qa_20250210", reasoning), ("evolve_temporal_interval_qa", intervals)):
        (folder / f"{name}.json").write_text(json.dumps({"countries_byGDP": tree}))
    write_lines(folder / "entity_inferences" / "storms.json", [inference(name) for name in NAMES])
    (folder / "ud_ewt").mkdir()
    for part, seed in (("dev", 0), ("test", 1)):
        (folder / "ud_ewt" / f"en_ewt-ud-{part}.conllu").write_text(treebank(seed))
    for language in LANGUAGES:
        for part, count in (("train", 24), ("test", 8)):
            rows = [
                f"{n}\t{TOPICS[n % 2]}\t{NAMES[n % 14]} {language[:3]} {TOPICS[n % 2][::-1]}." for n in range(count)
            ]
            (folder / "sib200").mkdir(exist_ok=True)
            text = "\n".join(["index_id\tcategory\ttext", *rows]) + "\n"
            (folder / "sib200" / f"{language}.{part}.tsv").write_text(text)
    return folder


def inference(name: str) -> dict[str, Any]:
    tongue = TONGUES[NAMES.index(name) % 11]
    offered = [f"<extra_id_0> {word} <extra_id_1>" for word in ("Norish", "Sudan", tongue)]
    return {
        "ex_id": f"storm_{name}",
        "ent_str": f"Storm {name}",
        "definition": f"Storm {name} was a storm of the <extra_id_0> coast.",
        "def_target": f"<extra_id_0> {tongue} <extra_id_1>",
        "probe_sentences": {
            "template_0": {"probe_sentence": f"Storm {name} hit the <extra_id_0> people.", "labels": offered}
        },
        "label": tongue,
    }


def treebank(seed: int) -> str:
    """Thirty sentences of a determiner, a noun, a verb and a name; one has a word that stands for two."""
    drawn = random.Random(seed)
    trees = []
    for number in range(30):
        words = [
            (drawn.choice(["the", "a", "this"]), "DET", "det"),
            (drawn.choice(["river", "lake", "storm", "town"]), "NOUN", "nsubj:pass"),
            (drawn.choice(["sees", "meets", "leaves"]), "VERB", "root"),
            (drawn.choice(NAMES), "PROPN", "obj"),
        ]
        lines = [f"{n}\t{w}\t{w}\t{upos}\t_\t_\t3\t{deprel}\t_\t_" for n, (w, upos, deprel) in enumerate(words, 1)]
        if number == 0:
            lines.insert(2, "3-4\tseesit\t_\t_\t_\t_\t_\t_\t_\t_")
        trees.append("\n".join([f"# sent_id = {number}", *lines]))
    return "\n\n".join(trees) + "\n\n"


def source_of(prepared: Path, public: Path, half: str = "A", most: int = 10) -> tuple[Source, Exam, Any]:
    """Where questions of a half come from, the exam, and the model that was prepared."""
    model, tokenizer = load_model(model_of(prepared))
    return Source(prepared, public, half, tokenizer, most), Exam(prepared, tokenizer), model.eval()
