"""Entity Cloze By Date -> probes on entities a model may not know yet, and the sentences that define them."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.lifelong.data.text import balanced, components, ngrams
from localopt.pretraining.probes import Probe, read_probes

NEW = {"ecbd_2020_2021_np.jsonl": "2020-2021", "ecbd_2023.jsonl": "2023"}
POPULAR = "ecbd_popular.jsonl"
NOT_NEW = {"Qubo", "Burke and Wills expedition"}  # a channel of 2006 and an expedition of 1860
CAP = 10  # probes an entity, so that no storm is half of the file

Row = dict[str, Any]


def new_entities(folder: Path, corpus: list[str], seed: int) -> tuple[list[Row], list[Row], Counter[str]]:
    """(probes, definitions, dropped): split by article, no 6-gram in a probe that is in `corpus` or a definition."""
    loaded = [(year, probe) for file, year in NEW.items() for probe in read_probes(folder / file)]
    found = [(year, probe) for year, probe in loaded if probe.extra["ent_str"] not in NOT_NEW]
    dropped = Counter({"not a new entity": len(loaded) - len(found)})
    groups = components([{probe.extra["ent_str"], _article(probe)} for _, probe in found])
    side = balanced(Counter(groups), random.Random(f"{seed}/entities"))
    definitions = {(group, _definition(probe)): year for group, (year, probe) in zip(groups, found, strict=True)}
    read = set().union(*(ngrams(text) for text in [*corpus, *(text for _, text in definitions)]))
    rows: list[Row] = []
    count: Counter[int] = Counter()
    for group, (year, probe) in zip(groups, found, strict=True):
        if read & ngrams(probe.text):
            dropped["shares a 6-gram with the corpus"] += 1
        elif count[group] == CAP:
            dropped[f"more than {CAP} of one entity"] += 1
        else:
            count[group] += 1
            rows.append(_row(probe) | {"year": year, "group": group, "split": side[group]})
    asked = {row["group"] for row in rows}
    texts = [
        {"text": text, "group": group, "year": year, "split": side[group]}
        for (group, text), year in definitions.items()
        if group in asked
    ]
    return rows, texts, dropped


def popular(folder: Path, corpus: list[str]) -> tuple[list[Row], Counter[str]]:
    """Probes on entities everyone knows."""
    read = set().union(*(ngrams(text) for text in corpus))
    found = read_probes(folder / POPULAR)
    rows = [_row(probe) for probe in found if not read & ngrams(probe.text)]
    return rows, Counter({"shares a 6-gram with the corpus": len(found) - len(rows)})


def _row(probe: Probe) -> Row:
    return {"text": probe.text, "spans": [list(span) for span in probe.span], "entity": probe.extra["ent_str"]}


def _article(probe: Probe) -> str:
    """`Title_pageid_paragraph_sentence` -> `Title_pageid`."""
    return str(probe.extra["ex_id"]).rsplit("_", 2)[0]


def _definition(probe: Probe) -> str:
    target = probe.extra["def_target"].removeprefix("<extra_id_0>").removesuffix("<extra_id_1>").strip()
    return str(probe.extra["definition"]).replace("<extra_id_0>", target)
