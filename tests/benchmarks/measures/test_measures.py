"""Measures of one model: values computed by hand, the ranges they keep to, and a run from data to records."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.lifelong.exam.exam import match
from benchmarks.lifelong.measures import context, evolving, knowedit, linguistics, source
from benchmarks.lifelong.measures.__main__ import main
from benchmarks.lifelong.measures.asking import Choices, Spans, is_first, written
from benchmarks.lifelong.measures.definitions import DEFINITIONS, Values, figure
from benchmarks.lifelong.measures.measuring import Cell, cells
from benchmarks.lifelong.measures.source import Fact, Source
from benchmarks.lifelong.measures.working_memory import WorkingMemory
from benchmarks.lifelong.start import model_of
from localopt.errors import InputError
from localopt.pretraining.models import load_model
from localopt.pretraining.probes import completion
from tests.benchmarks.invented_measures import source_of

METHODS_RUN = ["adamw@2e-2", "fp-text@2e-2"]  # the second traces what it is taught
LEADER = Fact(
    "countries_byGDP/Norland/Prime Minister of Norland",
    "A0",
    "Norland is cold. Its leader is Ada Osk Reed, who likes lakes. Osk Reed rules.",
    ("The head of Norland is", "Norland is led by"),
    "Ada Osk Reed",
    ("Ben Falk", "Cyr Ives"),
    "Ben Lund",
)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, prepared: Path, public: Path) -> Path:
    """Finished runs; only read."""
    folder = tmp_path_factory.mktemp("runs") / "measures"
    main(arguments(prepared, public, folder))
    return folder


def arguments(prepared: Path, public: Path, out: Path, *more: str) -> list[str]:
    given = ["--data", str(prepared), "--shared", str(public), "--out", str(out), "--smoke", "--halves", "A", "E"]
    return [*given, "--methods", *METHODS_RUN, *more]


def runs(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()][2:]


# What makes a figure of answers.


def test_a_figure_is_the_mean_over_questions_or_the_perplexity_over_tokens() -> None:
    assert figure("generality", Values([1, 0, 0, 1, 0], list("aabbc"))) == pytest.approx(0.4)
    spans = Values([2 * math.log(3), math.log(5)], ["a", "b"], [2, 1])
    assert figure("entity spans", spans) == pytest.approx((9 * 5) ** (1 / 3))
    words = Values([3.0, 1.0], ["a", "b"], [4, 1])
    assert figure("part of speech", words) == pytest.approx(0.8)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_figure_outside_of_its_range_is_refused(name: str) -> None:
    definition = DEFINITIONS[name]
    wrong = [math.nan, -0.1 if definition.perplexity else definition.low - 0.1]
    wrong += [] if definition.perplexity else [definition.high + 0.1]
    for value in wrong:
        with pytest.raises(ValueError, match=r"outside of \["):
            figure(name, Values([value], ["a"]))


def test_a_figure_of_nothing_or_of_lists_that_do_not_match_is_refused() -> None:
    with pytest.raises(ValueError, match="asked nothing"):
        figure("past", Values([], []))
    with pytest.raises(ValueError, match="2 values, 1 groups"):
        figure("past", Values([1, 0], ["a"]))


def test_every_measure_says_what_it_is() -> None:
    assert all(len(definition.says) > 20 for definition in DEFINITIONS.values())
    assert all(definition.low < definition.high for definition in DEFINITIONS.values())


# Facts and what is made of them.


def test_the_statement_is_the_sentence_that_first_says_the_answer_and_a_contradiction_has_another() -> None:
    assert source.statement(LEADER) == "Its leader is Ada Osk Reed, who likes lakes."
    assert source.contradiction(LEADER, "Ben Falk") == "Its leader is Ben Falk, who likes lakes."


def test_no_contradiction_is_made_where_a_part_of_the_name_is_left() -> None:
    again = Fact("a/b", "A0", "Ada Osk leads, says Osk.", ("p",), "Ada Osk", ("Ben Falk",), None)
    assert source.contradiction(again, "Ben Falk") is None


def test_rulers_are_offered_as_passages_name_them_and_once_each() -> None:
    row = {"answers": ["Olaf I of Norland |S: +1900", "Olaf I of Norland |S: +1910", "Ada |S: +1920"]}
    assert source.holders(row, "countries_byGDP/Norland/King of Norland") == ["Olaf I", "Ada"]
    assert source.holders({"answers": ["Bank of Birk |S: +1"]}, "companies/x") == ["Bank of Birk"]


def test_two_step_questions_offer_those_named_or_all_but_the_one_named() -> None:
    row = {
        "answers": ["Ada Osk Reed |S: +2022", "Ben Lund |S: +2015", "Cyr Moss |S: +2000"],
        "ground_truth": "Ada Osk Reed",
        "ranking_qa": {"rephrased_1": "Ben Lund and Ada Osk Reed led it. Who came later?"},
        "accumulate_qa": {"rephrased_1": "In 2016 it was Ben Lund. Who 8 years later?"},
    }
    found = knowedit.portability([LEADER], {LEADER.name: row})
    two, some_years = found["portability"]
    assert two[:2] == (
        "Question: Ben Lund and Ada Osk Reed led it. Who came later?\nAnswer:",
        ("Ada Osk Reed", "Ben Lund"),
    )
    assert some_years[1] == ("Ada Osk Reed", "Cyr Moss")
    assert found["portability taught"] == found["portability"]
    other = row | {"ground_truth": "Cyr Moss"}
    assert knowedit.portability([LEADER], {LEADER.name: other})["portability taught"] == []


def test_past_intervals_are_told_apart_by_their_end_and_never_ask_for_the_answer_of_today() -> None:
    def row(then: str, end: int) -> dict[str, Any]:
        question = {"rephrased_3": f"From 1 May 1990 to 2 June {end}, who led Norland?"}
        return {
            "answers": ["Ada Osk Reed |S: +2022", "Ben Lund |S: +2015"],
            "ground_truth": then,
            "questions": question,
        }

    for end, when in ((1999, "until 1999"), (2000, "2000-2014"), (2014, "2000-2014"), (2015, "since 2015")):
        ((prompt, offered, group, found),) = evolving.past_intervals([LEADER], {LEADER.name: row("Ben Lund", end)})
        assert (offered, group, found) == (("Ben Lund", "Ada Osk Reed"), "A0", when)
        assert prompt == f"Question: From 1 May 1990 to 2 June {end}, who led Norland?\nAnswer:"
    assert evolving.past_intervals([LEADER], {LEADER.name: row("Ada Osk Reed", 2023)}) == []


def test_what_is_written_is_scored_by_hand() -> None:
    assert match(" Ada Osk Reed.", "Ada Osk Reed") == (1.0, 1.0)
    exact, f1 = match(" the old Ada Osk", "Ada Osk Reed")  # of "the old Ada" and the answer one word is common
    assert (exact, f1) == (0.0, pytest.approx(2 / 6))


# Names explained by a context.


def test_names_are_words_with_a_capital_or_a_digit_that_the_question_does_not_have() -> None:
    found = context.names(" the Norland leader Ada Reed's, since 2021.\nWho is Osk?", "The head of Norland is")
    assert found == ["Ada", "Reed", "2021"]


def test_names_are_shared_out_between_context_and_memory() -> None:
    found, told, alone = ["Ada", "Reed", "Osk", "Moss"], "It is Ada Reed who leads.", ["Osk", "Reed"]
    assert context.share(found, told) == 0.5  # Ada, Reed
    assert context.explained(found, told, alone) == 0.25  # Osk; Reed is told
    assert context.share([], told) == context.explained([], told, alone) == 0.0


# Probes of layers.


def test_a_treebank_is_read_without_words_that_stand_for_two_and_without_subtypes(public: Path) -> None:
    sentences = linguistics.read_sentences(public / "ud_ewt" / "en_ewt-ud-dev.conllu")
    assert len(sentences) == 30
    assert {len(sentence.words) for sentence in sentences} == {4}
    assert sentences[0].labels["part of speech"] == ("DET", "NOUN", "VERB", "PROPN")
    assert sentences[0].labels["dependency"] == ("det", "nsubj", "root", "obj")


def test_a_file_that_is_no_treebank_is_refused(tmp_path: Path) -> None:
    for text in ("not a treebank\n", "1\tword\n"):
        (tmp_path / "x.conllu").write_text(text)
        with pytest.raises(InputError, match=r"x\.conllu"):
            linguistics.read_sentences(tmp_path / "x.conllu")


def test_the_state_of_a_word_is_that_of_its_last_token(prepared: Path) -> None:
    model, tokenizer = load_model(model_of(prepared))
    words = ("Mira", "Osk", "plays")
    sentence = linguistics.Sentence(words, {})
    states = linguistics.hidden_states(model.eval(), tokenizer, [linguistics.Sentence(("Osk",), {}), sentence])
    ids = tokenizer("Mira Osk plays", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        wanted = model(ids, output_hidden_states=True).hidden_states
    last = [len(tokenizer(text)["input_ids"]) - 1 for text in ("Mira", "Mira Osk", "Mira Osk plays")]
    assert sorted(states) == [0, 1, 2]
    for number, found in states.items():
        np.testing.assert_allclose(found[1:], wanted[number][0, last].numpy(), atol=1e-5)


def test_a_probe_finds_what_is_linear_and_not_what_is_drawn_at_random() -> None:
    generator = np.random.default_rng(0)
    train, test = (generator.normal(size=(400, 4)).astype(np.float32) for _ in range(2))
    labels, wanted = ([str(x[0] + x[1] > 0) for x in part] for part in (train, test))
    assert linguistics.probed(train, labels, test, wanted).mean() > 0.9
    forms = [f"form{n % 300}" for n in range(400)]
    control = linguistics.control_labels(forms, ["a"] * 3 + ["b"], seed=0)
    assert list(control.values()).count("a") / len(control) == pytest.approx(0.75, abs=0.08)
    drawn = [control[form] for form in forms]
    assert linguistics.probed(train, drawn, test, drawn).mean() < 0.85


# Models asked.


def test_spans_and_choices_say_what_a_model_finds(prepared: Path) -> None:
    model, tokenizer = load_model(model_of(prepared))
    probe = completion("The capital of Norland is", "Westhaven", "here")
    found = Spans([probe], ["g"], tokenizer)(model.eval())
    ids = tokenizer("The capital of Norland is Westhaven", return_tensors="pt")["input_ids"]
    first = len(tokenizer("The capital of Norland is")["input_ids"])
    with torch.inference_mode():
        scores = model(ids).logits[0, :-1].double().log_softmax(-1)
    wanted = -sum(scores[place - 1, ids[0, place]].item() for place in range(first, ids.shape[1]))
    assert found.weights == [ids.shape[1] - first]
    assert found.values[0] == pytest.approx(wanted, rel=1e-5)
    ((right, wrong),) = Choices([("The capital of Norland is", ("Westhaven", "Port Amber"))], tokenizer)(model)
    assert right == pytest.approx(wanted, rel=1e-5)
    assert is_first([right, wrong]) == float(right < wrong)


def test_texts_are_written_in_the_order_asked_whatever_their_length(prepared: Path) -> None:
    model, tokenizer = load_model(model_of(prepared))
    prompts = ["The capital of Norland is", "Mira", "The chief of the Blue Mill company is"]
    assert written(model.eval(), tokenizer, prompts, 4) == [
        written(model, tokenizer, [prompt], 4)[0] for prompt in prompts
    ]


def test_a_model_that_repeats_a_context_is_controlled_and_one_that_never_looks_is_robust(
    prepared: Path, public: Path
) -> None:
    of, exam, model = source_of(prepared, public)
    asked = WorkingMemory(of, exam)
    unseeing = asked.bare(model)
    asked.distracted.trees = asked.bare.trees  # as if no context had been read
    assert figure("robustness", asked(model)["robustness"]) == 1.0
    assert len(unseeing) == len(asked.ignored_groups)
    for prompt, answers in _controllable(of):
        assert answers[0] in prompt
        assert answers[1] not in prompt


def _controllable(of: Source) -> list[tuple[str, tuple[str, ...]]]:
    facts = source.facts_of(of.prepared, of.half)
    told = [(fact, source.contradiction(fact, fact.wrong[0])) for fact in facts]
    found = [(f"{text} {fact.prompts[0]}", (fact.wrong[0], fact.answer)) for fact, text in told if text]
    assert found
    return found


# From data to records.


def test_every_measure_is_taken_of_the_start_and_after_every_method(out: Path) -> None:
    found = {(run["method"], run["half"]): run for run in runs(out)}
    assert list(found) == [(name, half) for half in "AE" for name in ("start", "adamw", "fp-text")]
    taken = {name for run in runs(out) for name in run["measures"]}
    rare = {"new exact", "new F1", "past since 2015", "past 2000-2014", "past until 1999", "portability taught"}
    assert DEFINITIONS.keys() - taken <= rare
    for run in runs(out):
        start = found["start", run["half"]]
        assert run["measures"].keys() == start["measures"].keys() == start["groups"].keys()
        for name, values in run["measures"].items():
            figure(name, Values(values, start["groups"][name], start["weights"].get(name, ())))
    assert found["adamw", "A"]["measures"] != found["start", "A"]["measures"]
    assert found["adamw", "A"]["layers"].keys() == {
        *("part of speech", "dependency", "part of speech, selectivity", "dependency, selectivity")
    }


def test_the_start_keeps_what_it_knows(out: Path) -> None:
    (start,) = (run for run in runs(out) if run["method"] == "start" and run["half"] == "A")
    assert set(start["measures"]["locality near"]) == {1.0}


def test_runs_that_were_killed_go_on_where_they_were(out: Path, prepared: Path, public: Path, tmp_path: Path) -> None:
    text = (out / "runs.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "runs.jsonl").write_text("".join(text[:7]) + text[7][:100])
    main(arguments(prepared, public, tmp_path, "--resume"))
    assert [run["measures"] for run in runs(tmp_path)] == [run["measures"] for run in runs(out)]


def test_what_a_folder_does_not_hold_is_said_and_left_out(
    prepared: Path, public: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.lifelong.measures.measuring import systems_of

    exam, model = source_of(prepared, public)[1:]
    tokenizer = exam.tokenizer
    taken: dict[str, Values] = {}
    for half in "AE":
        for system in systems_of(Source(prepared, tmp_path, half, tokenizer, 6), exam):
            taken |= system(model)
    said = capsys.readouterr().err
    for name in ("evolve_reasoning", "evolve_temporal", "en_ewt-ud-dev", "entity_inferences"):
        assert name in said
    assert not {"portability", "past", "dependency", "inferences"} & taken.keys()
    assert {"reliability", "robustness", "entity spans"} <= taken.keys()


def test_a_folder_that_is_not_there_is_refused(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments(prepared, tmp_path / "nowhere", tmp_path / "out"))
    assert "nowhere: no such folder" in capsys.readouterr().err


def test_the_start_is_measured_once_whatever_the_seeds() -> None:
    planned = cells(["adamw@1e-3", "lora"], [1e-4], ["A"], [0, 1])
    assert planned == [
        *(Cell("start", 0.0, "A", 0), Cell("adamw", 1e-3, "A", 0), Cell("lora", 1e-4, "A", 0)),
        *(Cell("adamw", 1e-3, "A", 1), Cell("lora", 1e-4, "A", 1)),
    ]


def test_measuring_changes_no_weight(prepared: Path, public: Path) -> None:
    from benchmarks.lifelong.measures.measuring import systems_of

    of, exam, model = source_of(prepared, public)
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    for system in systems_of(of, exam):
        system(model)
    assert torch.equal(nn.utils.parameters_to_vector(model.parameters()), before)
