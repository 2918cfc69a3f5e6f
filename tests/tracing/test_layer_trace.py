"""LayerTrace: what to train because of the norms, files, and freezing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from rich.console import Console
from safetensors.torch import save_file
from torch import nn

from localopt.errors import InputError
from localopt.tracing import tracefile
from localopt.tracing.trace import LayerTrace, trace_layers
from tests import tiny_models


def made(relative: dict[str, float], **metadata: Any) -> LayerTrace:
    probe = torch.tensor(list(relative.values()), dtype=torch.float32) * 2
    return LayerTrace(tuple(relative), probe, torch.full_like(probe, 2.0), metadata)


def test_relative_norms_are_the_ratio_and_one_where_nothing_was_measured() -> None:
    trace = LayerTrace(("a", "b", "c"), torch.tensor([3.0, 0.0, 0.0]), torch.tensor([2.0, 4.0, 0.0]))
    assert trace.relative_norms.tolist() == [1.5, 0.0, 1.0]


def test_a_layer_that_only_the_probe_reaches_is_named() -> None:
    trace = LayerTrace(("a", "b"), torch.tensor([3.0, 1.0]), torch.tensor([2.0, 0.0]))
    with pytest.raises(InputError, match="the reference gives b no gradient but the probe does"):
        _ = trace.relative_norms


def test_frozen_parameters_train_the_layers_above_the_mean() -> None:
    trace = made({"a": 1.0, "b": 2.0, "c": 6.0, "d": 3.0})  # mean 3
    assert trace.frozen_parameters().scales == {"a": 0.0, "b": 0.0, "c": 1.0, "d": 1.0}


def test_equal_layers_are_all_trained() -> None:
    assert set(made(dict.fromkeys("abc", 0.1)).frozen_parameters().scales.values()) == {1.0}
    assert made({"a": 0.3}).frozen_parameters().scales == {"a": 1.0}


@given(st.lists(st.floats(2**-10, 2**10, width=32), min_size=1, max_size=9))
def test_some_layer_is_always_trained_and_none_below_the_mean(relative: list[float]) -> None:
    trace = made({f"layer {i}": value for i, value in enumerate(relative)})
    scales = trace.frozen_parameters().scales
    assert max(scales.values()) == 1.0
    mean = sum(relative) / len(relative)
    assert all(scale == 0 for scale, value in zip(scales.values(), relative, strict=True) if value < mean * (1 - 1e-5))


def test_adaptive_learning_rates_are_relative_norms_over_their_maximum_or_mean() -> None:
    trace = made({"a": 1.0, "b": 2.0, "c": 6.0})
    assert trace.adaptive_learning_rates().scales == pytest.approx({"a": 1 / 6, "b": 1 / 3, "c": 1.0})
    assert trace.adaptive_learning_rates("mean").scales == pytest.approx({"a": 1 / 3, "b": 2 / 3, "c": 2.0})
    with pytest.raises(ValueError, match="normalize must be"):
        trace.adaptive_learning_rates("sum")  # type: ignore[arg-type]


def test_norms_of_the_wrong_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 layers need norms of that length"):
        LayerTrace(("a", "b"), torch.ones(2), torch.ones(3))


def llama_trace(model: nn.Module, **chosen: float) -> LayerTrace:
    data = tiny_models.examples(1)
    layers = trace_layers(model, data, data).layers
    return made({layer: chosen.get(layer.rpartition(".")[2], 1.0) for layer in layers}, partition="sublayer")


def test_freezing_leaves_exactly_the_chosen_layers() -> None:
    model = tiny_models.llama()
    kept = llama_trace(model, mlp=9.0).freeze(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert set(kept) == trained
    assert trained == {
        f"model.layers.{i}.{part}.weight"
        for i in (0, 1)
        for part in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "post_attention_layernorm")
    }


def test_freezing_twice_is_freezing_once() -> None:
    model = tiny_models.llama()
    trace = llama_trace(model, mlp=9.0)
    assert trace.freeze(model) == trace.freeze(model)


def test_frozen_parameters_keep_no_gradient_that_an_optimizer_could_use() -> None:
    model = tiny_models.llama()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    llama_trace(model, mlp=9.0).freeze(model)
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_a_trace_of_the_whole_model_chooses_among_its_adapters() -> None:
    trace = llama_trace(tiny_models.llama(), mlp=9.0)
    kept = trace.freeze(tiny_models.lora())
    assert len(kept) == 4
    assert all("mlp.down_proj.lora_" in name for name in kept)


def unchanged(model: nn.Module) -> bool:
    return all(p.requires_grad for p in model.parameters())


def test_freezing_another_model_names_the_layers_of_both_sides() -> None:
    trace = llama_trace(tiny_models.llama(3), mlp=9.0)
    smaller, other = tiny_models.llama(2), tiny_models.gpt2()
    with pytest.raises(ValueError, match=r"Only in the trace: model\.layers\.2\.attention.*Only in the model: none"):
        trace.freeze(smaller)
    with pytest.raises(ValueError, match=r"Only in the trace: model\.embed.*Only in the model: transformer\.h\.0"):
        trace.freeze(other)
    assert unchanged(smaller)
    assert unchanged(other)


def test_check_takes_names_in_any_order() -> None:
    trace = made({"a": 1.0, "b": 2.0})
    trace.check(["b", "a"])
    with pytest.raises(ValueError, match=r"Only in the trace: b\. Only in the model: c"):
        trace.check(["a", "c"])


def test_a_trace_by_function_freezes_by_the_same_function() -> None:
    def halves(name: str) -> str:
        return "head" if "lm_head" in name else "body"

    model = tiny_models.llama()
    trace = made({"body": 1.0, "head": 2.0}, partition="custom")
    with pytest.raises(ValueError, match="pass it as layers="):
        trace.freeze(model)
    assert unchanged(model)
    assert trace.freeze(model, layers=halves) == ["lm_head.weight"]


def test_freezing_everything_is_refused() -> None:
    model = tiny_models.llama()
    trace = llama_trace(model, mlp=9.0)
    for block in model.model.layers:
        block.requires_grad_(False)
    with pytest.raises(ValueError, match=r"model\.layers\.0\.mlp, model\.layers\.1\.mlp requires a gradient"):
        trace.freeze(model)
    assert model.lm_head.weight.requires_grad


def test_a_wrapped_model_is_refused(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(tiny_models.llama())
        with pytest.raises(ValueError, match=r"cannot freeze .* DistributedDataParallel.*wrap it afterwards"):
            llama_trace(model.module).freeze(model)
        assert unchanged(model)
    finally:
        torch.distributed.destroy_process_group()


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    trace = made({"a": 1.0, "b": 2.5}, model="someone/tiny", partition="block", probe_examples=3)
    trace.save(tmp_path / "trace")
    loaded = LayerTrace.load(tmp_path / "trace")
    assert (loaded.layers, loaded.metadata) == (trace.layers, trace.metadata)
    assert torch.equal(loaded.probe_norms, trace.probe_norms)
    assert torch.equal(loaded.reference_norms, trace.reference_norms)
    assert loaded.probe_norms.dtype == torch.float32


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "trace"
    made({"a": 1.0}).save(path)

    def full(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        made({"b": 2.0}).save(path)
    assert os.listdir(tmp_path) == ["trace"]
    assert LayerTrace.load(path).layers == ("a",)


def test_every_truncation_of_a_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    made({"a": 1.0, "b": 2.0}).save(path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=str(path)):
            LayerTrace.load(path)


def test_files_of_others_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"lm_head.weight": torch.ones(2)}, path)
    with pytest.raises(InputError, match=r"model\.safetensors is a safetensors file but not a trace.*lm_head\.weight"):
        LayerTrace.load(path)
    path.write_text('{"layers": []}')
    with pytest.raises(InputError, match="is not a trace, or a damaged one"):
        LayerTrace.load(path)
    with pytest.raises(InputError, match=r"nowhere cannot be read"):
        LayerTrace.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="cannot be read"):
        LayerTrace.load(tmp_path)


@pytest.mark.parametrize(
    "header", ["{", "[]", "{}", '{"format": 1, "layers": ["a"], "metadata": {}}', '{"format": "x"}']
)
def test_a_header_that_does_not_fit_is_a_damaged_file(tmp_path: Path, header: str) -> None:
    tensors = {"probe_norms": torch.ones(2), "reference_norms": torch.ones(2)}
    save_file(tensors, tmp_path / "trace", {"localopt.tracing.trace": header})
    with pytest.raises(InputError, match="is not a trace, or a damaged one"):
        LayerTrace.load(tmp_path / "trace")


def test_a_newer_file_is_refused_with_both_versions(tmp_path: Path) -> None:
    header = {"format": tracefile.FORMAT + 1, "anything": "else"}
    save_file({"x": torch.ones(1)}, tmp_path / "trace", {"localopt.tracing.trace": json.dumps(header)})
    with pytest.raises(InputError, match=r"trace is a trace of format 2, and localopt .* up to 1: upgrade localopt"):
        LayerTrace.load(tmp_path / "trace")


def test_the_table_has_a_row_a_layer_and_says_what_is_trained() -> None:
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(made({"model.layers.10.cross_attention": 1.0, "b": 3.0}, model="someone/tiny").table())
    text = console.export_text()
    first, second = (line for line in text.splitlines() if "cross_attention" in line or " b " in line)
    assert "someone/tiny" in text
    assert "yes" in second
    assert "yes" not in first
    assert "3.000" in second
    assert "0.333" in first
    assert "model.layers.10.cross_attention" in first


def test_a_trace_prints_as_its_table() -> None:
    lines = str(made({"h.0.mlp": 1.0, "h.1.mlp": 3.0}, model="[a]\x1b")).splitlines()
    assert lines[0].strip() == "[a]\\x1b: relative gradient norms"
    assert [[cell.strip() for cell in line.strip("│").split("│")][::4] for line in lines if line[:1] == "│"] == [
        ["h.0.mlp", ""],
        ["h.1.mlp", "yes"],
    ]
    assert lines[-1].strip() == "FP trains 1 of 2 layers"
    many = made({f"model.layers.{'x' * 90}.{i}.attention": 1.0 for i in range(3)})
    assert sum("x" * 90 in line for line in str(many).splitlines()) == 3  # nothing is cut off


def test_a_trace_that_cannot_choose_prints_why() -> None:
    trace = LayerTrace(("a", "b"), torch.tensor([3.0, 1.0]), torch.tensor([2.0, 0.0]))
    assert str(trace).startswith("a, b: the reference gives b no gradient")


def test_the_plot_is_written_where_asked(tmp_path: Path) -> None:
    trace = made({"embed": 1.0, "h.0.attention": 2.0, "h.0.mlp": 0.5}, model="someone/tiny")
    figure = trace.plot(tmp_path / "trace.png")
    assert isinstance(figure, Figure)
    assert (tmp_path / "trace.png").read_bytes().startswith(b"\x89PNG")
    assert figure.axes[0].get_title(loc="left") == "someone/tiny"
    assert trace.plot(title="mine").axes[0].get_title(loc="left") == "mine"
