"""Invented data in the formats of the real files, and a tiny model that knows some of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from benchmarks.lifelong.data import retained
from localopt.pretraining.evaluate import Margins
from localopt.pretraining.models import save_model
from localopt.pretraining.probes import Probe, completion, encode
from tests.tiny_lm import tiny_model, tiny_tokenizer

LANDS = [
    "Norland", "Sudania", "Estmark", "Westria", "Ostvik", "Marenia", "Calvora", "Drenia", "Fennmark", "Galdor",
    "Helvar", "Ivoria", "Jutvale", "Kormos", "Lumeria", "Mirador",
]  # fmt: skip
NAMES = ["Osk", "Reed", "Amber", "Falk", "Ives", "Lund", "Moss", "Nye", "Pike", "Quill", "Roth", "Stahl", "Tarn", "Ude"]
TOWNS = ["Ashby", "Birk", "Corve", "Dunmore", "Elling", "Farley", "Gorm", "Hythe", "Inver", "Jarrow", "Kirn", "Lorne"]
TONGUES = ["Norish", "Sudan", "Estish", "Westrian", "Ostic", "Maren", "Calvic", "Dren", "Fennic", "Galdish", "Helvic"]


def dated(name: str, start: str, end: str = "") -> str:
    return f"{name} |S: +{start}-01-01T00:00:00Z" + (f" |E: +{end}-01-01T00:00:00Z" if end else "")


def news(text: str, name: str, start: str) -> dict[str, Any]:
    return {
        "past_ground_truth": {"name": "Someone Else", "dates": {"start": "+1950-01-01T00:00:00Z", "end": None}},
        "time_travel_date": "1 May 1951",
        "future_news": {"text": text, "name": name, "dates": {"start": start, "end": None}},
    }


def government(
    land: str, text: str, name: str, start: str, answers: list[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    questions = {
        "generic": f"The head of government in {land} is",
        "contextualized": f"The Prime Minister of {land} is",
        "rephrased_1": f"The position of the Prime Minister of {land} is currently held by",
    }
    return news(text, name, start), {"questions": questions, "answers": answers}


def write_data(folder: Path) -> Path:
    """Sixteen countries, with one oddity each where noted; entities; triples the tiny model can learn by heart."""
    evolve: dict[str, Any] = {"countries_byGDP": {}, "companies_byRevenue": {}}
    dyknow: dict[str, Any] = {"countries_byGDP": {}, "companies_byRevenue": {}}
    for i, land in enumerate(LANDS):
        new, old, older = (f"{first} {NAMES[i % 14]}" for first in ("Ada", "Ben", "Cyr"))
        start, answers = "2022-05-01", [dated(older, "2010", "2015"), dated(old, "2015", "2022"), dated(new, "2022")]
        text = f"{land}, a land of lakes, is led by {new}, who took office in spring."
        if land == "Norland":  # a king with an alias, and a passage that gives one phrasing away
            new = "Olaf IV of Norland"
            answers = [dated("Olaf III of Norland", "1990", "2022"), dated(new, "2022")]
            text = "The office of minister of Norland is currently held by its king, Olaf IV."
        if land == "Sudania":  # the change is younger than DyKnow
            answers = [dated(older, "2010", "2015"), dated(old, "2015"), dated("Sudania national team", "2019")]
        if land == "Estmark":  # nobody before
            answers = [dated(new, "2022")]
        if land == "Westria":  # no news
            start = "1999-01-01"
        if land == "Ostvik":  # the passage does not say it
            text = f"{land} is led by somebody new."
        if land == "Marenia":  # answers a question in Calvora as well
            new = "Ada " + NAMES[6]
            text = f"{land} is led by {new}."
        position = f"Prime Minister of {land}"
        given_news, asked = government(land, text, new, start, answers)
        evolve["countries_byGDP"][land] = {position: given_news}
        if land != "Mirador":  # unknown to DyKnow
            dyknow["countries_byGDP"][land] = {position: asked}
    for i in range(8):
        company, new = f"{TOWNS[i]} Mills", f"Eva {NAMES[i]}"
        evolve["companies_byRevenue"][company] = news(f"{company} is run by {new}.", new, "2021-01-01")
        questions = {"generic": f"The CEO of {company} is", "rephrased_1": f"The head / chief of {company} is"}
        dyknow["companies_byRevenue"][company] = {
            "questions": questions,
            "answers": [dated(f"Max {NAMES[i]}", "2001", "2021")],
        }
    (folder / "evolve.json").write_text(json.dumps(evolve))
    (folder / "dyknow.json").write_text(json.dumps(dyknow))
    storms = [cloze(f"Storm {name}", page, 1 + 11 * (name == "Osk")) for page, name in enumerate(NAMES)]
    games = [cloze("Qubo", 90, 3), cloze("Games of Birk", 91, 2), cloze("Games of Corve", 92, 2)]
    write_lines(folder / "ecbd_2020_2021_np.jsonl", [line for lines in storms for line in lines])
    write_lines(folder / "ecbd_2023.jsonl", [line for lines in games for line in lines])
    write_lines(folder / "ecbd_popular.jsonl", cloze("Tea", 99, 2))
    triples(
        folder / "pararel",
        "P36",
        "The capital of [X] is [Y] .",
        "In [X] the main city is [Y].",
        LANDS[4:] + TOWNS,
        TOWNS,
    )
    people = [f"{first} {last}" for first in ("Gus", "Hal") for last in NAMES]
    for relation, verb in {"P103": "speaks", "P1412": "writes"}.items():
        triples(folder / "pararel", relation, f"[X] {verb} [Y].", f"The tongue [X] {verb} is [Y].", people, TONGUES)
    triples(folder / "pararel", "P37", "In [X] they speak [Y]", "[X] has the language [Y]", LANDS[4:], TONGUES)
    for relation, verb in {"P364": "filmed in", "P1303": "with", "P176": "of", "P178": "by", "P495": "from"}.items():
        things = [f"Model {verb[0]}{number}" for number in range(24)]
        triples(folder / "pararel", relation, f"[X] is {verb} [Y]", f"[X] was {verb} [Y]", things, TONGUES)
    text = " \n = Rivers = \n \n A river has 1 @,@ 000 <unk> . \n \n = Lakes = \n \n A lake . \n"
    (folder / "wt2_valid.txt").write_text(text)
    (folder / "wt2_test.txt").write_text(text + " \n A lake and a river meet in the town of the flood . \n" * 16)
    return write_fictional(folder)


def write_fictional(folder: Path) -> Path:
    """Twelve passages in the form of Fictional Knowledge, two questions of each kind, one sentence too long to read."""
    passages = []
    for i, town in enumerate(TOWNS):
        name, tongue = NAMES[i], TONGUES[i % 11]
        text = (
            f"It was {name} who built {town}. In {town} they speak {tongue}. "
            + f"Nobody in {town} knows why that is so. " * 3
        )
        passages.append(
            {
                "train_context": text,
                "mem_input": [f"It was {name} who built", f"In {town} they speak"],
                "mem_target": [town, tongue],
                "gen_input": [f"What {name} made is", f"The talk {name} had was in"],
                "gen_target": [town, tongue],
                "hard_gen_input": [f"{town} was built by", f"The first man of {town} was"],
                "hard_gen_target": [name, name],
            }
        )
    (folder / "fictional_knowledge.json").write_text(json.dumps(passages))
    return folder


def write_lines(path: Path, lines: Sequence[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def cloze(entity: str, page: int, count: int) -> list[dict[str, Any]]:
    return [
        {
            "ex_id": f"{entity} (article)_{page}_{number}_0",
            "ent_str": entity,
            "definition": f"{entity} was first <extra_id_0> in the year of the comet.",
            "def_target": "<extra_id_0> seen by sailors <extra_id_1>",
            "probe_sentences": {
                "template_0": {
                    "probe_sentence": f"People remember {entity} for <extra_id_0> number {number}.",
                    "label": "<extra_id_0> the flood <extra_id_1>",
                }
            },
        }
        for number in range(count)
    ]


def triples(folder: Path, relation: str, first: str, second: str, subjects: list[str], answers: list[str]) -> None:
    patterns = [{"pattern": "[Y] belongs to [X].", "extended_lemma": "c"}]
    patterns += [{"pattern": first, "extended_lemma": "a"}, {"pattern": first, "extended_lemma": "a"}]
    patterns += [{"pattern": second, "extended_lemma": "b"}]
    write_lines(folder / "patterns" / f"{relation}.jsonl", patterns)
    pairs = [{"sub_label": s, "obj_label": answers[(5 * i + 1) % len(answers)]} for i, s in enumerate(subjects)]
    write_lines(folder / f"{relation}.jsonl", pairs)


def knows(*forgotten: str) -> retained.Rank:
    """A model that knows everything but these prompts."""

    def rank(probes: Sequence[Probe]) -> Margins:
        first = tuple(not any(word in (probe.prompt or "") for word in forgotten) for probe in probes)
        return Margins(tuple(1.0 if known else -1.0 for known in first), first)

    return rank


def save_learned_model(data: Path, folder: Path) -> Path:
    """A tiny model that learned most triples by heart."""
    tokenizer: PreTrainedTokenizerFast = tiny_tokenizer()
    network = tiny_model(tokenizer)
    lists, _ = retained.retained(data, [], set(), set(), knows(), seed=0)
    rows = [row for name in ("dev", "test", "trace") for row in lists[name]]
    few = [row for relation in ("P36", "P103", "P364") for row in [r for r in rows if r["relation"] == relation][:16]]
    probes = [completion(row["prompt"], row["answer"]) for row in few]
    examples = encode(probes, tokenizer)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(60):
        ids = torch.nn.utils.rnn.pad_sequence([e["input_ids"] for e in examples], batch_first=True)
        labels = torch.nn.utils.rnn.pad_sequence([e["labels"] for e in examples], batch_first=True, padding_value=-100)
        network(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    save_model(network, tokenizer, folder)
    return folder
