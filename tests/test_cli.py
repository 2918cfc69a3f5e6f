"""The command line: what it prints and writes, and one clear message for every mistake."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.image
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from localopt.cli import main
from localopt.cli.export import _FORMATS
from localopt.errors import InputError
from localopt.layers import partition
from localopt.outside import plain
from localopt.pretraining.auto import TRACED, own_samples, whole
from localopt.pretraining.evaluate import evaluate, evaluate_text
from localopt.pretraining.history import History
from localopt.pretraining.lock import LOCK
from localopt.pretraining.models import load_model
from localopt.pretraining.probes import encode, encode_text, read_corpus, read_probes
from localopt.pretraining.textfiles import evenly
from localopt.pretraining.written import first_sentence
from localopt.tracing.layer_trace import LayerTrace
from localopt.tracing.trace import trace_layers
from tests.tiny_files import FACTS, contents, full_disk, write_inputs, write_lines
from tests.tiny_lm import SENTENCES, tiny_model, tiny_tokenizer, write_gguf


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_inputs(tmp_path_factory.mktemp("inputs"))
    call("trace", folder / "model", *tracing(folder), "--out", folder / "trace.safetensors")
    return folder


def call(*arguments: object) -> int:
    """Run a command in this process and return its exit code."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    code = stop.value.code
    assert isinstance(code, int)
    return code


def run(*arguments: object, stdout: int | None = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """Run a command as a user does, in a process of its own."""
    command = [str(Path(sys.executable).with_name("localopt")), *map(str, arguments)]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=120)


def scored(folder: Path) -> list[object]:
    return ["--probe", f"news={folder / 'facts.jsonl'}", "--reference", folder / "corpus.txt"]


def tracing(folder: Path) -> list[object]:
    return ["--probe", folder / "facts.jsonl", "--reference", folder / "corpus.txt", "--seq-len", 32]


def training(folder: Path, *more: object) -> list[object]:
    corpus = ["--corpus", folder / "corpus.txt", "--seq-len", 32, "--epochs", 1, "--lr", 1e-3]
    return [folder / "model", *corpus, "--method", "online", *more]  # the last of two methods counts


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in table.splitlines() if line[:1] == "│"]


def message(captured: pytest.CaptureFixture[str]) -> str:
    """What a failed command said: nothing but one message, on standard error."""
    out, err = captured.readouterr()
    assert out == ""
    assert re.fullmatch(r"localopt: [^\n]+\n", err), err
    return err


# -- as a user runs it ------------------------------------------------------------------------------------------------


def test_localopt_alone_shows_its_commands() -> None:
    result = run()
    assert re.findall(r"^│ (\w+) ", result.stdout + result.stderr, re.MULTILINE) == [
        "demo",
        "trace",
        "train",
        "compare",
        "eval",
        "export",
    ]


def test_eval_prints_json_and_nothing_else(inputs: Path) -> None:
    result = run("eval", inputs / "model", *scored(inputs), "--json")
    assert (result.returncode, result.stderr) == (0, "")
    model, tokenizer = load_model(str(inputs / "model"))
    assert json.loads(result.stdout) == {
        "news": evaluate(model, tokenizer, read_probes(inputs / "facts.jsonl")).as_dict(),
        "reference": evaluate_text(model, tokenizer, read_corpus(inputs / "corpus.txt")).as_dict(),
    }


def test_results_go_to_standard_output_and_progress_with_the_remaining_time_to_standard_error(
    inputs: Path, tmp_path: Path
) -> None:
    result = run("train", *training(inputs, *scored(inputs)), "--out", tmp_path / "out")
    assert result.returncode == 0
    assert [row[0] for row in cells(result.stdout)] == ["before", "epoch 1", "change"]
    assert re.search(r"^step 3 of 3, loss \d+\.\d+, 0:00:00 left$", result.stderr, re.MULTILINE)
    assert re.search(
        r"^epoch 1: news \d\.\d+ \([-+]\d\.\d+\), \d+% ranked first; reference", result.stderr, re.MULTILINE
    )
    assert "it/s" not in result.stdout + result.stderr
    assert "\r" not in result.stdout + result.stderr
    assert f"written: {tmp_path / 'out' / 'model'}" in result.stderr
    assert "Warning" not in result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_behind_standard_output_is_an_error(inputs: Path) -> None:
    with Path("/dev/full").open("w") as full:
        result = run("eval", inputs / "model", *scored(inputs), "--json", stdout=full.fileno())
    assert result.returncode == 2
    assert re.fullmatch(r"localopt: .*No space left on device\n", result.stderr)


# -- eval -------------------------------------------------------------------------------------------------------------


def test_the_table_shows_the_numbers_of_the_json(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = [*scored(inputs), "--probe", inputs / "spans.jsonl"]
    assert call("eval", inputs / "model", *sets, "--json") == 0
    numbers = json.loads(capsys.readouterr().out)
    assert call("eval", inputs / "model", *sets) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert max(map(len, out.splitlines())) <= 80
    rows = {row[0]: row[1:] for row in cells(out)}
    assert rows == {
        name: [
            f"{score['nll']:.4f}",
            f"{score['perplexity']:.2f}",
            "" if score["ranked_first"] is None else f"{score['ranked_first']:.1%}",
            str(score["tokens"]),
            str(score["examples"]),
        ]
        for name, score in numbers.items()
    }
    assert list(rows) == ["news", "spans", "reference"]


# -- trace ------------------------------------------------------------------------------------------------------------


def test_trace_writes_the_trace_of_these_files(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, picture = tmp_path / "t.safetensors", tmp_path / "t.png"
    assert call("trace", inputs / "model", *tracing(inputs), "--out", out, "--plot", picture) == 0
    model, tokenizer = load_model(str(inputs / "model"))
    probe = encode(read_probes(inputs / "facts.jsonl"), tokenizer, 32)
    expected = trace_layers(model, probe, encode_text(read_corpus(inputs / "corpus.txt"), tokenizer, 32))
    trace = LayerTrace.load(out)
    assert trace.layers == expected.layers
    assert torch.equal(trace.relative_norms, expected.relative_norms)
    assert matplotlib.image.imread(picture).std() > 0
    printed, said = capsys.readouterr()
    assert [row[0] for row in cells(printed)] == list(trace.layers)
    assert max(map(len, printed.splitlines())) <= 80
    assert f"written: {out}, {picture}" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.png", "t.safetensors"]
    chosen = trace.freeze(model)
    share = sum(p.numel() for p in model.parameters() if p.requires_grad) / model.num_parameters()
    layers = {partition(name for name, _ in model.named_parameters())[name] for name in chosen}
    summary = f"to train: {len(layers)} of {len(trace.layers)} layers, {share:.0%} of the weights ("
    assert summary in " ".join(printed.split())


def test_a_trace_of_a_file_or_of_the_folder_one_stands_in_is_named_after_it(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_gguf(tiny_model(tiny_tokenizer()), tiny_tokenizer(), tmp_path / "tiny.gguf")
    for folder, model, name in ((tmp_path, "tiny.gguf", "tiny.gguf"), (inputs / "model", ".", "model")):
        monkeypatch.chdir(folder)
        out = tmp_path / f"{name}.safetensors"
        assert call("trace", model, *tracing(inputs), "--out", out) == 0
        assert LayerTrace.load(out).metadata["model"] == name
        assert f"{name}: relative gradient norms" in capsys.readouterr().out


def test_long_work_says_in_lines_how_far_it_is_where_there_is_no_terminal(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("localopt.tracing.progress.LINE_EVERY", 0.0)
    assert call("trace", inputs / "model", *tracing(inputs), "--out", tmp_path / "t.safetensors") == 0
    said = capsys.readouterr().err
    assert re.search(r"^probe: 1/2, 0:00:\d\d left$", said, re.MULTILINE)
    assert re.search(r"^reference: (\d+)/\1, 0:00:00 left$", said, re.MULTILINE)
    assert call("eval", inputs / "model", *scored(inputs), "--batch-size", 1) == 0
    assert "evaluating: 1/2, 0:00:0" in capsys.readouterr().err


def test_trace_takes_facts_to_keep_as_its_reference(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.safetensors"
    files = ["--probe", inputs / "spans.jsonl", "--reference", inputs / "facts.jsonl", "--seq-len", 32]
    assert call("trace", inputs / "model", *files, "--out", out) == 0
    assert LayerTrace.load(out).metadata["reference_examples"] == 2


def test_a_corpus_is_enough_for_a_trace_against_what_the_model_writes(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "t.safetensors"
    files = ["--corpus", inputs / "corpus.txt", "--seq-len", 32]
    assert call("trace", inputs / "model", *files, "--by", "gains", "--out", out) == 0
    assert "no --reference: against 64 texts that the model writes itself" in capsys.readouterr().err
    model, tokenizer = load_model(str(inputs / "model"))
    pieces = evenly(whole(encode_text(read_corpus(inputs / "corpus.txt"), tokenizer, 32)), TRACED)
    expected = trace_layers(model, pieces, own_samples(model), score="gains")
    trace = LayerTrace.load(out)
    assert torch.equal(trace.relative_norms, expected.relative_norms)
    assert trace.metadata["samples"] == expected.metadata["samples"]
    assert trace.metadata["probe_examples"] == len(pieces)


@pytest.mark.parametrize("given", [[], ["--probe", "facts.jsonl", "--corpus", "corpus.txt"]])
def test_a_trace_takes_either_a_probe_or_a_corpus(
    given: list[str], inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [inputs / name if "." in name else name for name in given]
    assert call("trace", inputs / "model", *files, "--out", tmp_path / "t.safetensors") == 2
    said = "both were given" if given else "neither was given"
    assert f"what is to be taken in is either --probe FILE or --corpus FILE, and {said}" in message(capsys)
    assert not list(tmp_path.iterdir())


def test_a_trace_by_gains_freezes_and_rescales_but_cannot_lead_the_online_rule(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "t.safetensors"
    assert call("trace", inputs / "model", *tracing(inputs), "--out", out, "--by", "gains") == 0
    assert LayerTrace.load(out).holds_gains
    for method in ("freeze", "rescale"):
        folder = tmp_path / method
        assert call("train", *training(inputs, "--method", method, "--trace", out, "--out", folder)) == 0
    capsys.readouterr()
    assert call("train", *training(inputs, "--method", "online", "--trace", out, "--out", tmp_path / "online")) == 2
    assert "holds gains, not norms" in message(capsys)
    assert not (tmp_path / "online").exists()


@pytest.mark.parametrize("layers", ["block", "matrix", "parameter"])
def test_trace_takes_other_layers(layers: str, inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.safetensors"
    assert call("trace", inputs / "model", *tracing(inputs), "--out", out, "--layers", layers) == 0
    assert LayerTrace.load(out).metadata["partition"] == layers
    for method in ("freeze", "rescale", "online"):
        folder = tmp_path / method
        assert call("train", *training(inputs, "--method", method, "--trace", out, "--out", folder)) == 0


def test_limit_spreads_over_the_files(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.safetensors"
    assert call("trace", inputs / "model", *tracing(inputs), "--out", out, "--limit", 1) == 0
    metadata = LayerTrace.load(out).metadata
    assert (metadata["probe_examples"], metadata["reference_examples"]) == (1, 1)


# -- export -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "key"),
    [
        ("unfrozen", "unfrozen_parameters"),
        ("axolotl", "lr_groups"),
        ("lr-multipliers", "multipliers"),
        ("peft", "target_modules"),
    ],
)
def test_a_trace_is_exported_for_other_trainers(inputs: Path, tmp_path: Path, format: str, key: str) -> None:
    out = tmp_path / "settings.json"
    more = ["--lr", "1e-4"] if format == "axolotl" else []
    assert call("export", inputs / "trace.safetensors", inputs / "model", "--format", format, "--out", out, *more) == 0
    model, _ = load_model(str(inputs / "model"))
    expected = LayerTrace.load(inputs / "trace.safetensors").export(
        tmp_path / "same.json", model, _FORMATS[format], lr=1e-4 if more else None
    )
    assert json.loads(out.read_text()) == expected
    assert expected[key]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--format", "toml"], "--format must be one of unfrozen, axolotl, lr-multipliers, peft, not 'toml'"),
        (["--format", "axolotl"], "axolotl needs the base learning rate"),
        (["--lr", "1e-4"], "--format unfrozen with --lr 0.0001"),
        (["--rank", "4"], "only adapters (peft) have a rank"),
    ],
)
def test_a_wrong_export_is_refused(
    inputs: Path, tmp_path: Path, arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [inputs / "trace.safetensors", inputs / "model", "--out", tmp_path / "out.yaml"]
    assert call("export", *where, *arguments) == 2
    assert expected in message(capsys)
    other = tmp_path / "other"
    tiny_model(tiny_tokenizer(), tied=False).save_pretrained(other)
    assert call("export", where[0], other, *where[2:]) == 2
    assert "do not have the same layers" in message(capsys)
    assert not (tmp_path / "out.yaml").exists()


# -- train ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["full", "freeze", "rescale", "online"])
def test_train_leaves_a_model_a_history_and_a_picture(method: str, inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    trace = [] if method == "full" else ["--trace", inputs / "trace.safetensors"]
    assert call("train", *training(inputs, *scored(inputs), "--method", method, *trace, "--out", out)) == 0
    pictures = {"learning-forgetting.png", *(["layers.png"] if method in ("rescale", "online") else [])}
    assert {path.name for path in out.iterdir()} == {"model", "history.json", *pictures}
    assert all(matplotlib.image.imread(out / picture).std() > 0 for picture in pictures)
    history = History.load(out / "history.json")
    assert history.settings["method"] == method
    model, tokenizer = load_model(str(out / "model"))
    last = history.scores[-1]["sets"]["news"]
    assert evaluate(model, tokenizer, read_probes(inputs / "facts.jsonl")).nll == pytest.approx(last["nll"], rel=1e-6)


def test_train_reads_several_corpora(inputs: Path, tmp_path: Path) -> None:
    more = write_lines(tmp_path / "more.jsonl", *({"text": f"The river runs through {n}."} for n in range(300)))
    for name, corpora in (("one", []), ("two", ["--corpus", more])):
        assert call("train", *training(inputs, *corpora, *scored(inputs), "--out", tmp_path / name)) == 0
    steps = [History.load(tmp_path / name / "history.json").scores[-1]["step"] for name in ("one", "two")]
    assert steps[1] > steps[0]


def test_train_without_a_reference_says_why_there_is_no_picture(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("train", *training(inputs, "--probe", inputs / "facts.jsonl", "--out", tmp_path / "out")) == 0
    assert "no picture: learning against forgetting needs --probe and --reference" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*.png")] == ["layers.png"]


def test_train_begins_anew_where_there_is_nothing_to_resume(inputs: Path, tmp_path: Path) -> None:
    assert call("train", *training(inputs, "--resume", "--out", tmp_path / "out")) == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")


def test_train_needs_nothing_but_a_model_and_a_corpus(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = [inputs / "model", "--corpus", inputs / "corpus.txt", "--out", out, "--seq-len", 64, "--epochs", 1]
    assert call("train", *arguments) == 0
    printed, said = capsys.readouterr()
    assert [row[0] for row in cells(printed)] == ["before", "epoch 1", "change"]
    history = History.load(out / "history.json")
    trace = LayerTrace.load(out / "trace.safetensors")
    assert history.settings["method"] == "auto"
    assert f"trains {len(history.trained_layers)} of {len(trace.layers)} layers (" in said
    assert f"peak learning rate {history.rate:g}: 1.24% of the root mean square" in said
    assert "decay toward the start: selective (SPD, arXiv 2411.01713), strength 1" in said
    for picture in ("trace.png", "layers.png", "learning-forgetting.png"):
        assert matplotlib.image.imread(out / picture).std() > 0
        assert str(out / picture) in said.replace("\n", "")


def test_a_budget_is_kept_to_and_the_way_back_shown(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    settings = ["--method", "full", "--lr", 1e-2, "--budget", 0.2, "--out", out]
    assert call("train", *training(inputs, *scored(inputs), *settings)) == 0
    history = History.load(out / "history.json")
    assert history.budget is not None
    printed, said = capsys.readouterr()
    rows = {row[0]: row for row in cells(printed)}
    assert f"{history.budget['share']:.1%}" in rows
    assert {"0.0%", "100.0%"} <= rows.keys()
    assert f"{out / 'model'}, " in said
    kept, tokenizer = load_model(str(out / "model"))
    start, _ = load_model(str(inputs / "model"))
    texts = read_corpus(inputs / "corpus.txt")
    rise = evaluate_text(kept, tokenizer, texts).nll - evaluate_text(start, tokenizer, texts).nll
    assert rise <= 0.2 + 1e-4


# -- compare, version, help -------------------------------------------------------------------------------------------


def test_compare_shows_runs_from_one_start(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, rate in (("slow", 1e-4), ("fast", 1e-3)):
        assert (
            call(
                "train", *training(inputs, *scored(inputs)), "--method", "full", "--lr", rate, "--out", tmp_path / name
            )
            == 0
        )
    capsys.readouterr()
    assert call("compare", tmp_path / "slow", tmp_path / "fast", "--plot", tmp_path / "both.png") == 0
    printed, said = capsys.readouterr()
    assert [row[1:3] for row in cells(printed) if row[1]] == [["full", "0.0001"], ["full", "0.001"]]
    assert f"written: {tmp_path / 'both.png'}" in said
    assert matplotlib.image.imread(tmp_path / "both.png").std() > 0


def test_a_choice_of_layers_is_compared_with_training_everything(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"Ordinary words, page {page}, " + "and more of them " * 40 for page in range(6)))
    for method in ("auto", "full"):
        given = ["--probe", f"facts={inputs / 'facts.jsonl'}", "--reference", text, "--method", method]
        assert call("train", *training(inputs, *given), "--lr", 1e-3, "--out", tmp_path / method) == 0
    capsys.readouterr()
    assert call("compare", tmp_path / "auto", tmp_path / "full") == 0
    assert [row[1] for row in cells(capsys.readouterr().out) if row[1]] == ["auto", "full"]


def test_the_version_and_help_need_nothing_heavy() -> None:
    code = (
        "import sys, localopt.cli\n"
        "try: localopt.cli.main(sys.argv[1:])\n"
        "except SystemExit as stop: code = stop.code\n"
        "print(code, [name for name in ('torch', 'numpy', 'transformers') if name in sys.modules])"
    )
    mistaken = ["train", "model", "--corpus", "missing.txt", "--out", "out"]
    for arguments, expected in ((["--version"], 0), (["-h"], 0), (["train", "-h"], 0), (mistaken, 2)):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
        assert done.stdout.splitlines()[-1] == f"{expected} []", done


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_says_how_it_goes_on(sent: signal.Signals, inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["train", *training(inputs, "--out", out, "--method", "full"), "--epochs", "10000"]
    command = [str(Path(sys.executable).with_name("localopt")), *map(str, arguments)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell's background ignores it
    )
    deadline = time.monotonic() + 200
    while not list(out.glob("checkpoints/checkpoint-*/trainer_state.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + sent
    assert errors.splitlines()[-1] == (
        f"localopt: {out}: the run was stopped; the same command with --resume goes on from its last checkpoint."
    )
    assert "Traceback" not in errors


def test_eval_scores_as_many_as_it_is_told(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("eval", inputs / "model", *scored(inputs), "--limit", 1, "--seq-len", 32, "--json") == 0
    scores = json.loads(capsys.readouterr().out)
    assert {name: score["examples"] for name, score in scores.items()} == {"news": 1, "reference": 1}
    assert scores["reference"]["tokens"] == 31


def test_eval_says_what_it_leaves_out(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("eval", inputs / "model", *scored(inputs), "--limit", 1, "--seq-len", 32) == 0
    said = capsys.readouterr().err.splitlines()
    _, tokenizer = load_model(str(inputs / "model"))
    pieces = len(encode_text(read_corpus(inputs / "corpus.txt"), tokenizer, 32))
    assert said == [
        "news: scores 1 of 2, spaced evenly; --limit 2 scores all",
        f"reference: scores 1 of {pieces}, spaced evenly; --limit {pieces} scores all",
    ]


def test_eval_shows_what_was_asked_written_and_wanted(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = [*scored(inputs), "--probe", inputs / "spans.jsonl", "--show", 2]
    assert call("eval", inputs / "model", *sets) == 0
    printed = capsys.readouterr().out
    assert "news: what the model writes" in printed
    assert "reference: what the model writes" not in printed
    assert call("eval", inputs / "model", *sets, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    model, tokenizer = load_model(str(inputs / "model"))
    for fact, answer in zip(FACTS, found["news"]["written"], strict=True):
        assert (answer["asked"], answer["wanted"]) == (fact["prompt"], fact["answer"])
        ids = tokenizer(fact["prompt"], return_tensors="pt")["input_ids"]
        for _ in range(3):  # the first words, one token after the other
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
        begun = first_sentence(tokenizer.decode(ids[0, -3:], skip_special_tokens=True))
        assert answer["written"].startswith(begun.rstrip("\ufffd"))
    assert [answer["wanted"] for answer in found["spans"]["written"]] == [SENTENCES[2][18:25]]
    assert found["spans"]["written"][0]["asked"] == SENTENCES[2][:18].rstrip()
    assert "written" not in found["reference"]


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([""], "bad.jsonl: the file is empty"),
        (['{"prompt": "a", "answer": "b"}', '{"prompt": '], "bad.jsonl:2: not valid JSON"),
        ([{"prompt": "The capital is"}], 'bad.jsonl:1: the field "answer" is missing'),
        ([{"text": "Mira Osk", "spans": [[5, 99]]}], "bad.jsonl:1: the span [5, 99] lies outside the text"),
        ([{"body": "Mira Osk"}], "bad.jsonl:1: not a probe, its fields are ['body']"),
    ],
    ids=["empty", "JSON", "field", "span", "form"],
)
@pytest.mark.parametrize("command", ["eval", "trace", "train"])
def test_a_bad_probe_file_is_named_with_its_line(
    command: str, lines: list[object], said: str, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, out = write_lines(tmp_path / "bad.jsonl", *lines), tmp_path / "out"
    arguments = {
        "eval": [inputs / "model", "--probe", f"news={bad}"],
        "trace": [inputs / "model", *tracing(inputs), "--probe", bad, "--out", out],
        "train": training(inputs, "--probe", bad, "--out", out),
    }
    assert call(command, *arguments[command]) == 2
    assert said in message(capsys)
    assert not out.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "corpus.jsonl: the file is empty"), ('{"text": "a"}\n{"title": "b"}\n', 'corpus.jsonl:2: the field "text"')],
)
def test_a_bad_corpus_is_named_with_its_line(
    content: str, said: str, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "corpus.jsonl").write_text(content)
    files = ["--corpus", tmp_path / "corpus.jsonl", "--out", tmp_path / "out"]
    assert call("train", inputs / "model", *files) == 2
    assert said in message(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["no such model", "missing/folder/of/models", "missing.gguf"])
def test_an_unknown_model_is_named(name: str, inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("eval", name, *scored(inputs)) == 2
    assert message(capsys).startswith(f"localopt: {name}: no such")


def test_a_folder_that_is_no_model_is_named(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("eval", tmp_path, *scored(inputs)) == 2
    assert f"{tmp_path}: has no config.json" in message(capsys)


def test_eval_wants_something_to_score(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("eval", inputs / "model") == 2
    assert "nothing to score: give --probe NAME=FILE or --reference FILE" in message(capsys)


def test_two_sets_of_one_name_are_refused(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("eval", inputs / "model", *scored(inputs), "--probe", f"news={inputs / 'spans.jsonl'}") == 2
    assert "several sets are named news" in message(capsys)


@pytest.mark.parametrize("exists", ["t.safetensors", "t.png"])
def test_trace_overwrites_nothing(
    exists: str, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / exists).write_text("mine")
    files = ["--out", tmp_path / "t.safetensors", "--plot", tmp_path / "t.png"]
    assert call("trace", inputs / "model", *tracing(inputs), *files) == 2
    assert f"{tmp_path / exists}: exists already" in message(capsys)
    assert contents(tmp_path) == {exists: b"mine"}


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--by", "luck"], "--by must be norms or gains, not 'luck'"),
        (["--layers", "heads"], "--layers must be one of sublayer, block, matrix, parameter, not 'heads'"),
        (["--plot", "t.word"], "t.word: pictures are written as"),
        (["--plot", "missing/t.png"], "missing/t.png: there is no folder missing"),
        (["--seq-len", "999"], "the model reads at most 128 tokens at once, not 999: set --seq-len 128"),
    ],
)
def test_bad_options_of_trace_are_refused(
    option: list[str], said: str, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("trace", inputs / "model", *tracing(inputs), "--out", tmp_path / "t.safetensors", *option) == 2
    assert said in message(capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("trace", ["--limit", "0"]),
        ("trace", ["--seq-len", "1"]),
        ("train", ["--epochs", "0"]),
        ("train", ["--batch-size", "0"]),
        ("train", ["--lr", "much"]),
        ("eval", ["--batch-size", "0"]),
    ],
)
def test_numbers_out_of_range_are_refused(
    command: str, option: list[str], inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(command, inputs / "model", *option) == 2
    said = capsys.readouterr().err
    assert f"Invalid value for '{option[0]}'" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--method", "freeze"], 'method "freeze" needs a trace'),
        (["--method", "rescale"], 'method "rescale" needs a trace'),
        (["--method", "full", "--trace", "TRACE"], 'method "full" trains every layer and has no use for a trace'),
        (["--method", "lora"], "the method must be one of auto, full, freeze, rescale, online, not 'lora'"),
        (["--lr", "0"], "the learning rate must be a number above 0, not 0.0"),
        (["--anchor-decay", "2"], "the anchor decay must be a strength from 0 (none) to 1, not 2.0"),
        (["--budget", "0"], "the forgetting budget must be a number of nats a token above 0, not 0.0"),
        (["--lr", "nan"], "the learning rate must be a number above 0, not nan"),
        (["--method", "freeze", "--trace", "missing.safetensors"], "missing.safetensors cannot be read"),
        (["--seq-len", "129"], "the model reads at most 128 tokens at once, not 129"),
    ],
)
def test_bad_options_of_train_are_refused(
    options: list[str], said: str, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [inputs / "trace.safetensors" if option == "TRACE" else option for option in options]
    assert call("train", *training(inputs, *given), "--out", tmp_path / "out") == 2
    assert said in message(capsys)
    assert not list(tmp_path.iterdir())


def test_a_truncated_or_foreign_trace_is_named(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (inputs / "trace.safetensors").read_bytes()
    (tmp_path / "truncated").write_bytes(whole[: len(whole) // 2])
    save_file({"weight": torch.ones(2)}, tmp_path / "foreign")
    (tmp_path / "text").write_text("no trace at all")
    torch.save({"probe_norms": torch.ones(2)}, tmp_path / "pickle")
    for path in sorted(tmp_path.iterdir()):
        trace = ["--method", "freeze", "--trace", path, "--out", tmp_path / "out"]
        assert call("train", *training(inputs, *trace)) == 2
        assert f"{path} is " in message(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["freeze", "rescale", "online"])
def test_the_trace_of_another_model_is_refused_naming_both_sides(
    method: str, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer, tied=False).save_pretrained(tmp_path / "untied")
    tokenizer.save_pretrained(tmp_path / "untied")
    trace = inputs / "trace.safetensors"
    files = ["--corpus", inputs / "corpus.txt", "--trace", trace, "--out", tmp_path / "out", "--seq-len", 32]
    assert call("train", tmp_path / "untied", *files, "--method", method) == 2
    said = message(capsys)
    assert f"{trace}: the trace" in said
    assert "Only in the trace: none. Only in the model: lm_head" in said
    assert not (tmp_path / "out").exists()


def test_a_trace_that_cannot_choose_is_refused(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = LayerTrace.load(inputs / "trace.safetensors")
    silent = torch.zeros_like(trace.reference_norms)
    LayerTrace(trace.layers, trace.probe_norms, silent, trace.metadata).save(tmp_path / "t")
    files = ["--method", "rescale", "--trace", tmp_path / "t", "--out", tmp_path / "out"]
    assert call("train", *training(inputs, *files)) == 2
    assert f"{tmp_path / 't'}: the reference gives model.embed_tokens" in message(capsys)


def test_train_overwrites_nothing(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert call("train", *training(inputs, "--out", tmp_path)) == 2
    assert f"{tmp_path}: exists and is not empty: name a new folder, or add --resume" in message(capsys)
    assert contents(tmp_path) == {"thesis.txt": b"mine"}


def test_a_finished_run_is_not_resumed(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("train", *training(inputs, "--out", tmp_path / "out")) == 0
    capsys.readouterr()
    before = contents(tmp_path)
    (tmp_path / "out" / LOCK).touch()  # of a process that was killed after the last thing it had to write
    assert call("train", *training(inputs, "--out", tmp_path / "out", "--resume")) == 2
    assert "this run is finished" in message(capsys)
    assert contents(tmp_path) == before


def test_a_disk_too_full_for_a_trace_is_named_and_nothing_half_written(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "t.safetensors"
    with full_disk(100):
        assert call("trace", inputs / "model", *tracing(inputs), "--out", out) == 2
    assert f"localopt: {out}: cannot be written: File too large." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_disk_too_full_for_the_picture_leaves_the_whole_trace(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, picture = tmp_path / "t.safetensors", tmp_path / "t.png"
    with full_disk(5000):
        assert call("trace", inputs / "model", *tracing(inputs), "--out", out, "--plot", picture) == 2
    assert f"localopt: {picture}: cannot be written: File too large." in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["t.safetensors"]
    assert LayerTrace.load(out).layers


def test_a_disk_too_full_for_a_checkpoint_is_named_and_the_run_goes_on_when_there_is_room(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = training(inputs, *scored(inputs), "--out", tmp_path / "out")
    with full_disk(20_000):
        assert call("train", *arguments) == 2
    assert "no checkpoint can be written there" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out" / "model").exists()
    assert call("train", *arguments, "--resume") == 0
    assert load_model(str(tmp_path / "out" / "model"))


# -- what comes from outside ------------------------------------------------------------------------------------------

ODD_NAMES = ["x[/]y", "[/x]", "[bold]", "a\x1b[31mb", "c\u202ed", "$x^{$"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_set_may_have_any_name(inputs: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("eval", inputs / "model", "--probe", f"{name}={inputs / 'facts.jsonl'}") == 0
    out, err = capsys.readouterr()
    assert plain(name) in out
    assert not any(character in out + err for character in "\x1b\u202e")


def test_a_run_with_odd_names_ends_with_table_and_picture(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probes = [part for name in ODD_NAMES for part in ("--probe", f"{name}={inputs / 'facts.jsonl'}")]
    odd = tmp_path / "[/]\x1b[31m"
    assert call("train", *training(inputs), *probes, "--reference", inputs / "corpus.txt", "--out", odd) == 0
    out, err = capsys.readouterr()
    assert (odd / "learning-forgetting.png").is_file()
    assert "[/]\\x1b[31m/model" in err
    assert "\x1b" not in out


def test_a_message_names_a_file_by_its_characters(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = tmp_path / "[/]\x1b]0;x\x07\n.jsonl"
    assert call("eval", inputs / "model", "--probe", odd) == 2
    assert "[/]\\x1b]0;x\\x07 .jsonl: no such file" in message(capsys)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad\nvalue"),
        RecursionError("deep"),
        EOFError(),
        MemoryError(),
        OverflowError("large"),
        IndexError("7"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] not enough memory"),
        UnicodeEncodeError("ascii", "é", 0, 1, "no"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_reading_raises_is_one_line(
    inputs: Path, error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("localopt.pretraining.scoring.read_sets", fails)
    assert call("eval", inputs / "model", *scored(inputs)) == 2
    assert "Traceback" not in message(capsys)


def test_where_an_error_comes_from_is_shown_if_asked(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCALOPT_TRACEBACK", "1")
    with pytest.raises(InputError, match="no such file"):
        main(["eval", str(inputs / "model"), "--probe", str(tmp_path / "none")])


def test_the_end_of_a_run_killed_after_its_model_was_saved_is_done_again(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = training(inputs, *scored(inputs), "--out", tmp_path / "out")

    def killed(*_: object) -> None:
        raise SystemExit(137)

    with monkeypatch.context() as patched:
        patched.setattr("localopt.pretraining.results.history_table", killed)
        assert call("train", *arguments) == 137
    assert (tmp_path / "out" / "model").is_dir()
    before = contents(tmp_path / "out" / "model")
    capsys.readouterr()
    assert call("train", *arguments, "--resume") == 0
    out, err = capsys.readouterr()
    assert "epoch 1" in out
    assert "learning-forgetting.png" in err
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"model", "history.json", "learning-forgetting.png", "layers.png"}
    assert contents(tmp_path / "out" / "model") == before
    assert call("train", *arguments, "--resume") == 2
    assert "this run is finished" in message(capsys)


def test_checkpoints_are_kept_if_asked(inputs: Path, tmp_path: Path) -> None:
    assert call("train", *training(inputs, "--out", tmp_path / "out", "--keep-checkpoints")) == 0
    assert list((tmp_path / "out" / "checkpoints").glob("checkpoint-*"))


def test_a_run_that_diverges_ends_with_an_error(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = training(inputs, "--out", tmp_path / "out")
    assert call("train", *[1e38 if argument == 1e-3 else argument for argument in arguments]) == 2
    assert "the run has diverged" in capsys.readouterr().err
    assert not (tmp_path / "out" / "model").exists()


def test_a_trace_and_its_picture_need_two_names(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = tmp_path / "t.png"
    assert call("trace", inputs / "model", *tracing(inputs), "--out", both, "--plot", both) == 2
    assert "is both the trace and its picture: name two files" in message(capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["png", "jpg", "svg", "pdf", "tif"])
def test_a_picture_is_whole_or_not_there_where_the_disk_is_full(
    inputs: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--out", tmp_path / "t", "--plot", tmp_path / f"t.{suffix}"]
    with full_disk(4000):
        assert call("trace", inputs / "model", *tracing(inputs), *files) == 2
    assert f"t.{suffix}: cannot be written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["t"]
