"""The systems of the field: their laws on tiny models, and runs of all of them on invented facts."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel

from benchmarks.lifelong import prepare
from benchmarks.lifelong.__main__ import main
from benchmarks.lifelong.data.passages import answers_in_passages, lessons
from benchmarks.lifelong.methods import dark_experience, distillation, f_learning, lexical_change, memit, mixreview
from benchmarks.lifelong.methods.entry import Entry
from benchmarks.lifelong.methods.fine_tuned_layer import EPSILON, answers, at_depth, best_layer, from_the_prompt, only
from benchmarks.lifelong.methods.methods import METHODS
from benchmarks.lifelong.methods.norms import Norms
from benchmarks.lifelong.methods.optimizers import layer_names
from benchmarks.lifelong.methods.rules import Case, everything
from benchmarks.lifelong.methods.side_network import beside, side_alone, spread
from benchmarks.lifelong.methods.study import Lesson, Study
from benchmarks.lifelong.methods.systems import SYSTEMS
from benchmarks.lifelong.start import Weights, place
from benchmarks.lifelong.stream import stream
from benchmarks.lifelong.teaching import teach
from benchmarks.lifelong.training import Settings, own_loss
from localopt.errors import InputError
from localopt.pretraining.models import load_model
from localopt.pretraining.probes import IGNORED, Example
from localopt.pretraining.textfiles import json_lines
from tests.benchmarks.invented import save_learned_model, write_data
from tests.tiny_lm import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_learned_model(write_data(tmp_path_factory.mktemp("data")), tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "p"
    data = write_data(tmp_path_factory.mktemp("data"))
    prepare.main(["--data", str(data), "--out", str(folder), "--model", str(model_folder)])
    return folder


@pytest.fixture
def lesson(prepared: Path, model_folder: Path, tmp_path: Path) -> Lesson:
    model, tokenizer = load_model(str(model_folder))
    start = weights(model)
    settings = Settings(length=24, batch_size=4, epochs=2)
    norms = Norms(tmp_path / "norms.json", prepared, model, tokenizer, 24, lambda: place(model, start))
    return Lesson(model, tokenizer, prepared, Case(layer_names(model), "A", 0, norms), 1e-2, settings, start)


def weights(model: nn.Module) -> Weights:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def taught(lesson: Lesson, monkeypatch: pytest.MonkeyPatch, entry: Entry) -> Weights:
    """The weights after a run of a method."""
    monkeypatch.setitem(METHODS, "one", entry)
    teach(lesson.model, lesson.tokenizer, lesson.prepared, lesson.case, "one", 1e-2, lesson.settings, lesson.start)
    return weights(lesson.model)


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# One of each system, alone or where gain over damage chooses; the others differ in the layers alone.
SMOKE = ["distillation", "f-learning-lora", "lexical-random", "mixreview-chosen", "der", "k-adapter-best", "ft-l"]
SMOKE += ["ft-m-chosen", "memit", "recadam"]


def test_every_system_runs_and_changes_what_it_says(prepared: Path, model_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    given = ["--data", str(prepared), "--model", str(model_folder), "--out", str(tmp_path), "--smoke"]
    main([*given, "--lrs", "1e-2", "--halves", "A", "--methods", *SMOKE])
    rows = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    runs = {row["method"]: row for row in rows if row["kind"] == "run"}
    assert list(runs) == SMOKE
    start = next(row for row in rows if row["kind"] == "start")
    for name, run in runs.items():
        assert run["points"]["1.0"]["text"] != start["text"], name
        assert 0 < run["share"] <= 1, name
        if "chosen" in name or name.startswith(("ft", "memit")):
            assert 0 in run["scales"], name


# Distillation


def test_a_student_that_knows_what_the_teacher_was_told_has_nothing_to_learn(lesson: Lesson) -> None:
    loss = distillation.distilled(lesson)
    untold: list[Example] = [
        {**example, "context": torch.tensor([], dtype=torch.int64)}
        for example in lessons(lesson.prepared, "A", lesson.tokenizer, 12)[:3]
    ]
    lesson.model.eval()
    found = loss(lesson.model, untold)
    found.backward()
    assert found == 0
    assert all(p.grad is None or p.grad.abs().max() < 1e-6 for p in lesson.model.parameters())


def test_continuations_are_the_same_each_time_and_what_is_learned_follows_the_name(lesson: Lesson) -> None:
    epochs = distillation.continuations(lesson)
    passages = answers_in_passages(lesson.prepared, "A")
    assert [len(epoch) for epoch in epochs] == [distillation.AN_EPOCH * len(passages)] * 2
    for example in epochs[0]:
        unasked = example["labels"] == IGNORED
        count = int(unasked.sum())
        assert unasked[:count].all()
        assert not unasked[count:].any()
        assert 1 <= len(unasked) - count <= distillation.LENGTH
    land = lesson.tokenizer.decode(epochs[0][0]["input_ids"][epochs[0][0]["labels"] == IGNORED])
    assert land == passages[0].source.split("/")[1]
    again = distillation.continuations(lesson)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(epochs[1], again[1], strict=True))
    assert any(not torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(*epochs, strict=True))


def test_distillation_brings_the_student_closer_to_the_teacher(lesson: Lesson, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, examples = distillation.distilled(lesson), distillation.continuations(lesson)[0]
    lesson.model.eval()
    before = loss(lesson.model, examples).item()
    taught(lesson, monkeypatch, SYSTEMS["distillation"])
    with torch.no_grad():
        assert 0 < loss(lesson.model, examples) < before


# F-Learning


def test_forgetting_nothing_before_learning_is_plain_training_to_the_bit(
    lesson: Lesson, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = taught(lesson, monkeypatch, METHODS["adamw"])
    for lora in (0, 4):
        before = f_learning.forgotten(share=0.0, lora=lora)
        assert same(taught(lesson, monkeypatch, Entry("", everything, study=Study(before=before))), plain)
    assert not same(taught(lesson, monkeypatch, SYSTEMS["f-learning"]), plain)


def test_what_used_to_be_true_becomes_less_likely(lesson: Lesson) -> None:
    old = f_learning.outdated(lesson)
    lesson.model.eval()
    before = own_loss(lesson.model, old).item()
    f_learning.forgotten(share=0.3)(lesson, everything(lesson.case))
    lesson.model.eval()
    assert own_loss(lesson.model, old).item() > before


def test_outdated_passages_name_the_one_before_and_never_the_new_one(lesson: Lesson) -> None:
    texts = [lesson.tokenizer.decode(one["input_ids"]) for one in f_learning.outdated(replace_length(lesson, 200))]
    rows = {row["fact"]: row for _, row in json_lines(lesson.prepared / "updated.dev.jsonl") if row["old"]}
    assert len(texts) == len(rows) > 0
    for probe in answers_in_passages(lesson.prepared, "A"):
        if probe.source in rows:
            text = texts.pop(0)
            assert rows[probe.source]["old"] in text
            assert rows[probe.source]["answer"] not in text


def replace_length(lesson: Lesson, length: int) -> Lesson:
    return replace(lesson, settings=replace(lesson.settings, length=length))


# Lexical change


def test_the_distance_of_two_distributions_is_that_by_hand() -> None:
    # m = (3/4, 1/4): KL(p || m) = log2(4/3), KL(q || m) = log2(2/3) / 2 + log2(2) / 2.
    p, q = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5])
    assert lexical_change.jensen_shannon(p, q) == pytest.approx((0.41504 / 2 + 0.20752 / 2) ** 0.5, abs=1e-4)
    assert lexical_change.jensen_shannon(p, q) == lexical_change.jensen_shannon(q, p)


def test_a_word_with_a_new_use_has_changed_and_one_with_the_same_uses_has_not() -> None:
    pytest.importorskip("sklearn")
    generator = torch.Generator().manual_seed(0)

    def around(value: float) -> Tensor:
        return value + 0.1 * torch.randn(10, 4, generator=generator)

    assert lexical_change.change(around(0.0), around(5.0)) == pytest.approx(1)
    two = torch.cat([around(0.0), around(5.0)])
    assert lexical_change.change(two, two) == 0
    assert 0.4 < lexical_change.change(two, around(5.0)) < 0.7


def test_only_the_tokens_of_the_words_weigh_more_and_equal_weights_are_the_models_own_loss(lesson: Lesson) -> None:
    passages = [probe.text for probe in answers_in_passages(lesson.prepared, "A")]
    (examples, _) = lexical_change.weighed(replace_length(lesson, 200), ["Lakes".casefold()], 3.0)
    for text, example in zip(passages, examples, strict=True):
        heavy = lesson.tokenizer.decode(example["input_ids"][example["weights"] == 3]).strip()
        assert heavy == ("lakes" if "lakes" in text else "")
    lesson.model.eval()
    alike = [{**example, "weights": torch.full(example["weights"].shape, 2.0)} for example in examples]
    torch.testing.assert_close(lexical_change.by_weights(lesson.model, alike), own_loss(lesson.model, examples))


def test_random_words_are_as_frequent_as_those_they_stand_for() -> None:
    counts = Counter({"often": 90, "usual": 80, "rare": 3, "scarce": 2, "few": 4, "much": 85, "more": 95, "most": 99})
    counts |= {"some": 5, "any": 6, "one": 1}
    words = lexical_change.alike(["often", "rare"], counts, counts, seed=0)
    assert not {"often", "rare"} & set(words)
    assert counts[words[0]] >= 6
    assert counts[words[1]] <= 6
    assert len(set(words)) == 2


# MixReview, DER++


def test_mixreview_mixes_in_text_that_falls_off(lesson: Lesson) -> None:
    passages = lessons(lesson.prepared, "A", lesson.tokenizer, 24)
    epochs = mixreview.mixed(ratio=2.0, decay=0.5)(lesson)
    assert [len(epoch) for epoch in epochs] == [3 * len(passages), 2 * len(passages)]
    alone = mixreview.mixed(ratio=0.0)(lesson)
    assert [one["input_ids"].tolist() for one in alone[0]] == [one["input_ids"].tolist() for one in passages]


def test_dark_experience_without_logits_is_replay_and_logits_cost_nothing_at_the_start(lesson: Lesson) -> None:
    examples, text = lessons(lesson.prepared, "A", lesson.tokenizer, 24)[:2], mixreview.unread(lesson)
    lesson.model.eval()
    replay = dark_experience.remembered(alpha=0.0, beta=1.0)(lesson)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        drawn = [torch.randint(len(text), (dark_experience.DRAWN,), generator=generator) for _ in range(2)][1]
        expected = own_loss(lesson.model, examples) + own_loss(lesson.model, [text[i] for i in drawn])
        assert torch.equal(replay(lesson.model, examples), expected)
    logits = dark_experience.remembered(alpha=1.0, beta=0.0)(lesson)
    before = own_loss(lesson.model, examples)
    torch.testing.assert_close(logits(lesson.model, examples), before)
    with torch.no_grad():
        lesson.model.lm_head.weight.add_(0.1)
        assert logits(lesson.model, examples) > own_loss(lesson.model, examples) + 1e-3


# K-Adapter


def test_a_side_network_begins_as_nothing_and_leaves_nothing_behind(lesson: Lesson) -> None:
    model, ids = lesson.model.eval(), torch.arange(8)[None]
    names, before = list(weights(model)), model(ids).logits
    with beside(spread)(model, lesson.case) as added:
        assert torch.equal(model(ids).logits, before)
        plan = side_alone(lesson.case)
        assert {layer for layer, scale in plan.items() if scale} == set(layer_names(model)) - set(lesson.case.layers)
        assert set(added) == set(weights(model)) - set(names)
        with torch.no_grad():
            model.side.up[0].bias.add_(1.0)
        assert not torch.equal(model(ids).logits, before)
    assert list(weights(model)) == names
    assert torch.equal(model(ids).logits, before)


def test_a_stream_refuses_what_adds_to_the_model() -> None:
    with pytest.raises(InputError, match="k-adapter@1e-3: adds modules"):
        stream.cells(["k-adapter@1e-3"], [1e-3], ["first"], [0])


# FT-L and FT-M


def test_ft_l_keeps_its_bound_and_trains_one_matrix(lesson: Lesson, monkeypatch: pytest.MonkeyPatch) -> None:
    after = taught(lesson, monkeypatch, SYSTEMS["ft-l"])
    moved = {name: (after[name] - lesson.start[name]).abs().max() for name in after}
    assert [name for name, most in moved.items() if most > 0] == ["model.layers.1.mlp.down_proj.weight"]
    assert max(moved.values()) <= EPSILON * (1 + 1e-3)
    unbound = taught(lesson, monkeypatch, SYSTEMS["ft-m"])
    assert max((unbound[name] - lesson.start[name]).abs().max() for name in unbound) > 2 * EPSILON


def test_ft_l_predicts_all_of_an_answer_from_where_it_begins(lesson: Lesson) -> None:
    model = tiny_model(tiny_tokenizer()).eval()
    ids = torch.tensor([5, 6, 7, 8])
    one = {"input_ids": ids, "labels": torch.tensor([IGNORED, IGNORED, 7, 8])}
    log_probs = model(ids[None]).logits[0, 1].log_softmax(-1)
    torch.testing.assert_close(from_the_prompt(model, [one]), -(log_probs[7] + log_probs[8]) / 2)
    for example in answers(lesson)[0]:
        assert example["labels"][-1] != IGNORED


def test_the_layer_of_an_editor_is_one_at_a_depth_or_the_one_with_the_most_gain(
    lesson: Lesson, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chosen(plan: object) -> list[str]:
        assert isinstance(plan, dict)
        return [layer for layer, scale in plan.items() if scale]

    assert chosen(at_depth()(lesson.case)) == ["model.layers.1.mlp.down_proj"]
    assert chosen(at_depth(0.0)(lesson.case)) == ["model.layers.0.mlp.down_proj"]
    found = dict.fromkeys(lesson.case.layers, 0.0) | {"model.layers.0.mlp": 2.0, "model.layers.1.attention": 9.0}
    monkeypatch.setattr(Norms, "gain_over_damage", lambda self, half, reference: found)
    assert chosen(best_layer("own", "corpus")(lesson.case)) == ["model.layers.0.mlp.down_proj"]


# MEMIT


def test_the_closed_form_is_where_its_gradient_vanishes_and_maps_keys_to_values() -> None:
    generator = torch.Generator().manual_seed(0)
    keys, missing = torch.randn(3, 6, generator=generator), torch.randn(3, 4, generator=generator)
    text = torch.randn(40, 6, generator=generator)
    covariance = text.T @ text / 40
    delta = memit.closed_form(keys, missing, covariance, 2.0).requires_grad_(True)
    loss = (keys.double() @ delta.T - missing).square().sum()
    loss = loss + 2.0 * (delta @ covariance.double() * delta).sum()
    loss.backward()
    assert delta.grad is not None
    assert delta.grad.abs().max() < 1e-5
    exact = memit.closed_form(keys, missing, covariance, 1e-9)
    torch.testing.assert_close(keys.double() @ exact.T, missing.double(), rtol=1e-4, atol=1e-5)
    assert memit.closed_form(keys, torch.zeros(3, 4), covariance, 2.0).abs().max() == 0


def test_memit_finds_states_that_say_the_answers_and_writes_them_into_its_matrices(
    lesson: Lesson, monkeypatch: pytest.MonkeyPatch
) -> None:
    edits = memit.facts(lesson)
    examples = [edit.example for edit in edits]
    for edit, probe in zip(edits, answers_in_passages(lesson.prepared, "A"), strict=True):
        (begin, end), ids, labels = probe.span[0], edit.example["input_ids"], edit.example["labels"]
        assert lesson.tokenizer.decode(labels[labels != IGNORED]).strip() == probe.text[begin:end]
        subject, until = probe.source.split("/")[1], lesson.tokenizer.decode(ids[: edit.place + 1])
        named = until.endswith(subject) or subject.endswith(until)  # the prompt may begin within the name
        assert named or subject not in probe.text[:begin]
    monkeypatch.setattr(memit, "STRENGTH", 1.0)
    lesson.model.eval()
    with torch.no_grad():
        before = own_loss(lesson.model, examples)
    plan = only(lesson.case, ["model.layers.0.mlp"])  # behind the last of two blocks nothing reads it
    wanted = memit.targets(lesson.model, edits, 0)
    memit.memit(lesson, plan)
    after = weights(lesson.model)
    changed = {name for name in after if not torch.equal(after[name], lesson.start[name])}
    assert changed == {"model.layers.0.mlp.down_proj.weight"}
    with torch.no_grad():
        assert own_loss(lesson.model, examples) < before - 0.1
    _, states = states_of(lesson.model, edits)
    place(lesson.model, lesson.start)
    _, old = states_of(lesson.model, edits)
    assert (states - wanted).norm() < 0.8 * (old - wanted).norm()


def states_of(model: PreTrainedModel, edits: list[memit.Edit]) -> tuple[Tensor, Tensor]:
    return memit._keys_and_states(model, edits, model.model.layers[0].mlp.down_proj, 0)


def test_the_covariance_is_that_of_what_a_matrix_reads() -> None:
    model: LlamaForCausalLM = tiny_model(tiny_tokenizer()).eval()
    mlp, texts = model.model.layers[0].mlp, torch.arange(20).view(2, 10)
    read: list[Tensor] = []
    handle = mlp.down_proj.register_forward_pre_hook(lambda module, given: read.append(given[0].detach()))
    model(texts)
    handle.remove()
    keys = read[0].flatten(0, 1)
    examples: list[Example] = [{"input_ids": one, "labels": one} for one in texts]
    (found,) = memit.covariances(model, [mlp.down_proj], examples)
    torch.testing.assert_close(found, keys.T @ keys / 20)
