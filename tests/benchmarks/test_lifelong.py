"""The benchmark from data to page: invented facts, a tiny model, real runs."""

from __future__ import annotations

import json
import lzma
import random
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.lifelong import prepare, start
from benchmarks.lifelong.__main__ import main
from benchmarks.lifelong.data.passages import answers_in_passages, lessons
from benchmarks.lifelong.exam.exam import Exam, Item, masked, unmasked
from benchmarks.lifelong.methods.methods import METHODS, layer_names, make_optimizer
from benchmarks.lifelong.methods.norms import Norms
from benchmarks.lifelong.methods.rules import Case
from benchmarks.lifelong.report import __main__ as report
from benchmarks.lifelong.report import search
from benchmarks.lifelong.report.records import Records, append
from benchmarks.lifelong.report.statistics import Scores
from benchmarks.lifelong.sweep import FEW, cells, finite
from benchmarks.lifelong.training import Settings
from localopt import LocalizedOptimizer
from localopt.errors import InputError
from localopt.pretraining.models import load_model
from tests.benchmarks.invented import save_learned_model, write_data

METHODS_RUN = ["adamw", "fp-text", "online", "fp-text-replay", "fp-text-lora", "gated"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    return save_learned_model(data, tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, data: Path, model: Path) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "p"
    prepare.main(["--data", str(data), "--out", str(folder), "--model", str(model)])
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, prepared: Path, model: Path) -> Path:
    """A finished sweep; only read."""
    folder = tmp_path_factory.mktemp("sweeps") / "sweep"
    main(arguments(prepared, model, folder))
    return folder


def arguments(prepared: Path, model: Path, out: Path, *more: str) -> list[str]:
    given = ["--data", str(prepared), "--model", str(model), "--out", str(out), "--smoke", "--lrs", "1e-2"]
    return [*given, "--methods", *METHODS_RUN, *more]


def lines(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]


def test_every_method_is_run_on_both_halves_and_each_run_is_a_line(out: Path) -> None:
    rows = lines(out)
    assert [row["kind"] for row in rows] == ["exam", "start"] + ["run"] * 12
    assert [(row["method"], row["half"]) for row in rows[2:]] == [(m, half) for half in "AB" for m in METHODS_RUN]
    assert {row["start"] for row in rows[2:]} == {rows[1]["id"]}


def test_a_sweep_cut_short_has_the_first_methods_on_both_halves_before_others_and_before_other_rates() -> None:
    planned = cells(list(METHODS), [1e-4, 2e-4], ["A", "B"], [0, 1])
    first = planned[: 2 * FEW]
    assert {(cell.method, cell.half) for cell in first} == {(m, half) for m in list(METHODS)[:FEW] for half in "AB"}
    assert {(cell.lr, cell.seed) for cell in planned[: 2 * len(METHODS)]} == {(1e-4, 0)}
    assert len(set(planned)) == len(planned) == 8 * len(METHODS)


def test_training_teaches_and_the_way_back_leads_to_the_start(out: Path) -> None:
    records = Records.read([out / "runs.jsonl"])
    scores_of = Scores(records, draws=2)
    path = scores_of.path(run for run in records.runs if run["method"] == "adamw")
    for curve in (path.uptake, path.near, path.text):
        assert curve.mean[0] == 0 < abs(curve.mean[1]) < abs(curve.mean[-1])


def test_a_sweep_that_was_killed_goes_on_where_it_was(out: Path, prepared: Path, model: Path, tmp_path: Path) -> None:
    text = (out / "runs.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "runs.jsonl").write_text("".join(text[:6]) + text[6][:100])  # in the middle of a line
    main(arguments(prepared, model, tmp_path, "--resume"))
    ended = [row for row in lines(tmp_path) if row["kind"] == "run"]
    for row, whole in zip(ended, [row for row in lines(out) if row["kind"] == "run"], strict=True):
        assert (row["method"], row["half"], row["points"]) == (whole["method"], whole["half"], whole["points"])


def test_a_finished_sweep_is_not_made_again(out: Path, prepared: Path, model: Path) -> None:
    before = (out / "runs.jsonl").read_bytes()
    main(arguments(prepared, model, out, "--resume"))
    assert (out / "runs.jsonl").read_bytes() == before


def test_another_sweep_is_not_mixed_in(
    out: Path, prepared: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, because in ([], "exists: add --resume"), (["--resume", "--bf16"], "bf16 False, not True"):
        with pytest.raises(SystemExit) as stopped:
            main(arguments(prepared, model, out, *more))
        assert stopped.value.code == 2
        assert because in capsys.readouterr().err


def test_a_start_that_differs_by_more_than_rounding_is_refused() -> None:
    records = Records({"items": [{"tokens": [2, 1]}]}, {"one": {"nll": [[2.0, 3.0]]}})
    assert records.refuse_far({"nll": [[2.02, 3.0]]}) < 0.02
    with pytest.raises(InputError, match=r"NLL a token differs by 1\.00 nats"):
        records.refuse_far({"nll": [[4.0, 4.0]]})


def test_files_of_different_exams_are_not_mixed_in_a_report(out: Path, tmp_path: Path) -> None:
    other = tmp_path / "runs.jsonl"
    append(other, {"kind": "exam", "inputs": {"data": "another"}})
    with pytest.raises(InputError, match="another exam: data"):
        Records.read([out / "runs.jsonl", other])


def test_a_run_counts_once_and_questions_of_another_start_are_not_mixed_in(out: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is there twice"):
        Records.read([out / "runs.jsonl", out / "runs.jsonl"])
    exam = lines(out)[0]
    append(tmp_path / "other.jsonl", {**exam, "items": exam["items"][1:]})  # type: ignore[index]
    with pytest.raises(InputError, match="asked other questions"):
        Records.read([out / "runs.jsonl", tmp_path / "other.jsonl"])


def test_a_run_that_diverged_is_said_and_left_out(out: Path, tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    file.write_text((out / "runs.jsonl").read_text())
    append(file, {"kind": "run", "method": "lora", "lr": 9.0, "half": "A", "seed": 0})
    records = Records.read([file])
    assert len(records.runs) == 12
    assert [run["method"] for run in records.diverged] == ["lora"]
    assert not finite({"0.25": {"taught": [[1.0, float("nan")]]}})
    assert finite({"0.25": {"taught": [[1.0, 2.0]]}})


def test_packed_files_are_read_too(out: Path, tmp_path: Path) -> None:
    packed = tmp_path / "runs.jsonl.xz"
    packed.write_bytes(lzma.compress((out / "runs.jsonl").read_bytes()))
    assert Records.read([packed]) == Records.read([out / "runs.jsonl"])


def test_the_page_needs_nothing_beside_it_and_says_what_was_run(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report.main([str(out / "runs.jsonl"), "--out", str(tmp_path)])
    page = (tmp_path / "lifelong.html").read_text()
    assert "12 runs" in page
    assert 'src="data:image/png;base64,' in page
    assert "http" not in page
    for method in METHODS_RUN:
        assert METHODS[method].about.replace("`", "") in page
    table = (tmp_path / "lifelong-tables.md").read_text()
    assert table == capsys.readouterr().out
    assert "| AdamW on everything | 0.01 | A, B |" in table


def test_a_report_without_adamw_says_what_to_run(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs.jsonl").write_text("\n".join((out / "runs.jsonl").read_text().splitlines()[:2]))
    with pytest.raises(SystemExit):
        report.main([str(tmp_path / "runs.jsonl"), "--out", str(tmp_path / "page")])
    assert "no run of adamw yet" in capsys.readouterr().err


def test_another_seed_is_another_start_and_the_same_seed_the_same(
    prepared: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "SEQUENCES", 8)
    made = {}
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        network, tokenizer = load_model(str(model))
        file = tmp_path / f"{name}.safetensors"
        made[name] = start.start_weights(network, tokenizer, prepared, file, Settings(length=16), seed)[1]
    assert made["one"] == made["again"] != made["other"]


FICTIONAL = Path(__file__).parents[2] / "benchmarks" / "results" / "decay" / "fictional.jsonl.xz"


def test_the_search_shows_every_run_beside_adamw_of_the_rate_named_beforehand(tmp_path: Path) -> None:
    search.main([str(FICTIONAL), "--draws", "50", "--adamw", "6e-4", "--out", str(tmp_path / "search.md")])
    lines = (tmp_path / "search.md").read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    assert rows[0][:4] == ["method", "rate", "A, seed 0", "end: uptake, WikiText, near lost, F1"]
    runs = Records.read([FICTIONAL]).runs
    assert len(rows) - 2 == len({(run["method"], run["lr"]) for run in runs})
    [beside_itself] = [row for row in rows if row[:2] == ["AdamW on everything", "0.0006"]]
    assert beside_itself[2] == "1.00 (1.00-1.00)"
    first = ("adamw", 6e-4, "A", 0)
    [run] = [run for run in runs if (run["method"], run["lr"], run["half"], run["seed"]) == first]
    assert beside_itself[3].endswith(f", {run['end']['f1']:.0%}")


def test_the_search_without_that_adamw_says_what_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        search.main([str(FICTIONAL), "--adamw", "0.5", "--out", str(tmp_path / "search.md")])
    assert "no run of adamw at 0.5 in these files" in capsys.readouterr().err


# Methods


@pytest.fixture(scope="module")
def case(prepared: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    network, tokenizer = load_model(str(model))
    file = tmp_path_factory.mktemp("norms") / "norms.json"
    return Case(layer_names(network), "A", 0, Norms(file, prepared, network, tokenizer, 16, lambda: None))


def scales(name: str, case: Case) -> dict[str, float]:
    plan = METHODS[name].plan(case)
    assert isinstance(plan, dict)
    return plan


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_something(name: str, case: Case, model: Path) -> None:
    entry = METHODS[name]
    # What is added to a model is added to the one whose layers are known, and taken off again.
    network = case.norms.model if entry.extension else load_model(str(model))[0]
    with entry.extension(network, case) if entry.extension else nullcontext():
        before = {name: parameter.clone() for name, parameter in network.named_parameters()}
        optimizer = make_optimizer(network, 1e-3, entry.plan(case), entry.anchor, entry.layers)
        loss = network(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss
        loss.backward()
        if isinstance(optimizer, LocalizedOptimizer):
            optimizer.observe(loss.detach())
        optimizer.step()
        assert any(not torch.equal(parameter, before[name]) for name, parameter in network.named_parameters())
    network.requires_grad_(True)


def test_the_decay_may_decide_for_matrices_blocks_or_everything_at_once(case: Case, model: Path) -> None:
    counts = {}
    for name in ("selective", "selective-matrix", "selective-block", "selective-whole"):
        entry = METHODS[name]
        network, _ = load_model(str(model))
        optimizer = make_optimizer(network, 1e-2, entry.plan(case), entry.anchor, entry.layers)
        network(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
        optimizer.step()
        assert isinstance(optimizer, LocalizedOptimizer)
        counts[name] = len(optimizer.report().names)
        assert optimizer.report().share_updated == 1
    assert counts["selective-whole"] == 1
    assert 1 < counts["selective-block"] < counts["selective"] < counts["selective-matrix"]


def test_random_layers_match_the_trace_in_number_and_kind_and_differ_from_draw_to_draw(case: Case) -> None:
    def count(found: dict[str, float]) -> list[int]:
        return [sum(s > 0 for layer, s in found.items() if kind in layer) for kind in ("attention", "mlp", "embed")]

    draws = [scales(f"random{draw}", case) for draw in range(5)]
    assert all(count(draw) == count(scales("fp-text", case)) for draw in draws)
    assert len({tuple(draw.values()) for draw in draws}) > 1


def test_the_halves_of_the_depth_and_the_inverted_trace_are_complements(case: Case) -> None:
    deep, shallow = scales("deep", case), scales("shallow", case)
    blocks = [layer for layer in case.layers if ".layers." in layer]
    assert all(deep[layer] + shallow[layer] == 1 for layer in blocks)
    assert not any(deep[layer] or shallow[layer] for layer in case.layers if layer not in blocks)
    traced, inverted = scales("fp-text", case), scales("inverted", case)
    assert all(traced[layer] + inverted[layer] == 1 for layer in case.layers)


def test_the_uniform_rate_is_the_mean_of_the_adaptive_ones(case: Case) -> None:
    adaptive, uniform = scales("alr-text", case), scales("uniform", case)
    assert list(uniform.values()) == pytest.approx([sum(adaptive.values()) / len(adaptive)] * len(uniform))
    assert sum(scales("alr-text-mean", case).values()) / len(adaptive) == pytest.approx(1)


def test_every_passage_is_cut_so_that_its_answer_is_in_it(prepared: Path, model: Path) -> None:
    _, tokenizer = load_model(str(model))
    length = random.Random(0).randint(14, 20)
    for half in "AB":
        probes = answers_in_passages(prepared, half)
        for probe, lesson in zip(probes, lessons(prepared, half, tokenizer, length), strict=True):
            (begin, end), text = probe.span[0], tokenizer.decode(lesson["input_ids"])
            assert len(lesson["input_ids"]) <= length
            assert probe.text[begin:end].split()[-1] in text


def test_the_file_of_a_sweep_holds_no_text_of_others_and_its_questions_are_found_again(
    out: Path, prepared: Path, model: Path
) -> None:
    _, tokenizer = load_model(str(model))
    everything = Exam(prepared, tokenizer).items
    text = (out / "runs.jsonl").read_text()
    assert not any(item.prompt in text for item in everything)
    records = Records.read([out / "runs.jsonl"])
    assert records.exam is not None
    rows = [Item.restored(row) for row in records.exam["items"]]
    again = Exam(prepared, tokenizer, rows).items
    assert [masked(item) for item in again] == rows
    assert {item.prompt for item in again} <= {item.prompt for item in everything}
    with pytest.raises(InputError, match="is not in the prepared files"):
        unmasked([replace(rows[0], fact="0")], everything)
