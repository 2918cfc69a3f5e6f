"""Trace files from anyone: whatever they hold, a trace that is one, or an InputError, at once and in little memory."""

from __future__ import annotations

import json
import math
import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from localopt.errors import InputError
from localopt.tracing.layer_trace import LayerTrace
from localopt.tracing.tracefile import _KEY

GOOD: dict[str, Any] = {
    "layers": ["a", "b"],
    "format": 1,
    "metadata": {"model": "tiny", "partition": "sublayer", "average": "norms", "score": "norms", "probe_examples": 3},
}
ONES = {"probe_norms": torch.ones(2), "reference_norms": torch.ones(2)}


def write(path: Path, header: object, tensors: dict[str, torch.Tensor] = ONES) -> Path:
    text = header if isinstance(header, str) else json.dumps(header)
    save_file(tensors, path, {_KEY: text})
    return path


def refusal(path: Path) -> str:
    before = time.perf_counter()
    with pytest.raises(InputError) as caught:
        LayerTrace.load(path)
    assert time.perf_counter() - before < 20
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000
    return str(caught.value)


def test_the_file_these_tests_damage_is_a_trace_as_it_is(tmp_path: Path) -> None:
    assert LayerTrace.load(write(tmp_path / "t", GOOD)).layers == ("a", "b")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -1.0, -1e-30])
@pytest.mark.parametrize("of", ONES)
def test_a_norm_that_is_none_is_named_with_its_layer(tmp_path: Path, of: str, bad: float) -> None:
    norms = {**ONES, of: torch.tensor([1.0, bad])}
    assert f"{of} of b is " in refusal(write(tmp_path / "t", GOOD, norms))
    with pytest.raises(InputError, match=f"{of} of b is "):
        LayerTrace(("a", "b"), norms["probe_norms"], norms["reference_norms"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_norms_are_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    assert "float32" in refusal(write(tmp_path / "t", GOOD, {**ONES, "probe_norms": torch.ones(2, dtype=dtype)}))


@pytest.mark.parametrize(
    "layers",
    [[], ["a", "a"], ["a"], ["a", 1], ["a", None], ["a", ""], "ab", {"a": 1, "b": 2}, 7, None]
    + [["a", name] for name in ("b\n", "\x1b[31mb", "b\u202e", "\ud800", "b" * 100_000)]
    + [["a" * 100_000, "b"], ["a"] * 1_000_000],
)
def test_layers_are_different_names_that_can_be_printed(tmp_path: Path, layers: object) -> None:
    refusal(write(tmp_path / "t", {**GOOD, "layers": layers}))


def test_a_million_layers_are_refused_and_so_is_an_endless_file(tmp_path: Path) -> None:
    many = torch.ones(1_000_000)
    names = [f"{i}" for i in range(1_000_000)]
    refusal(write(tmp_path / "t", {**GOOD, "layers": names}, {"probe_norms": many, "reference_norms": many + 1}))
    with pytest.raises(InputError, match="1000000 layers are more than"):
        LayerTrace(tuple(names), many, many)
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(1 << 40)
    assert "more than 16 MiB" in refusal(tmp_path / "hole")


@pytest.mark.parametrize("number", [0, -1, 2, 1.0, True, "1", None, [1], 10**400])
def test_the_format_is_exactly_one_that_is_known(tmp_path: Path, number: object) -> None:
    refusal(write(tmp_path / "t", {**GOOD, "format": number}))


@pytest.mark.parametrize(
    "metadata",
    [
        {"partition": "columns"}, {"partition": None}, {"partition": ["block"]}, {"average": "sum"}, {"score": 1},
        {"score": "gain"}, {"probe_examples": -1}, {"probe_examples": 1.5}, {"reference_examples": True},
        {"model": 7}, [], "tiny", None,
    ],
)  # fmt: skip
def test_metadata_is_what_a_trace_has(tmp_path: Path, metadata: object) -> None:
    refusal(write(tmp_path / "t", {**GOOD, "metadata": metadata}))


@pytest.mark.parametrize(
    "header",
    ["", "null", "[]", "{", '{"format": NaN}', "[" * 200_000, '{"format":' * 100_000, "1" * 10_000, '"\\ud800"'],
    ids=range(9),
)
def test_a_header_that_is_no_header_is_refused(tmp_path: Path, header: str) -> None:
    refusal(write(tmp_path / "t", header))


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_a_header_holds_json_and_nothing_beyond(tmp_path: Path, constant: str) -> None:
    text = json.dumps({**GOOD, "metadata": {"dtype": "?"}}).replace('"?"', constant)
    assert constant in refusal(write(tmp_path / "t", text))


def test_missing_and_additional_fields_and_tensors_are_refused(tmp_path: Path) -> None:
    for field in GOOD:
        refusal(write(tmp_path / "t", {key: value for key, value in GOOD.items() if key != field}))
    refusal(write(tmp_path / "t", {**GOOD, "more": 1}))
    for name in ONES:
        refusal(write(tmp_path / "t", GOOD, {key: value for key, value in ONES.items() if key != name}))
    refusal(write(tmp_path / "t", GOOD, {**ONES, "more": torch.ones(1)}))
    refusal(write(tmp_path / "t", GOOD, {**ONES, "probe_norms": torch.ones(2, 1)}))


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "missing"])
def test_what_is_not_a_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = Path("/dev/zero") if kind == "device" else tmp_path / kind
    if kind == "pipe":
        os.mkfifo(path)
    if kind == "folder":
        path.mkdir()
    assert "cannot be read" in refusal(path)


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_damage_to_a_file_is_an_error_or_leaves_a_trace(tmp_path: Path, data: st.DataObject) -> None:
    good = bytearray(write(tmp_path / "good", GOOD).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(good) - 1))
        good[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
        if not good:
            break
    path = tmp_path / "damaged"
    path.write_bytes(good)
    try:
        trace = LayerTrace.load(path)
    except InputError:
        return
    for norms in (trace.probe_norms, trace.reference_norms):
        assert norms.dtype == torch.float32
        assert bool((norms.isfinite() & (norms >= 0)).all())
    assert len(set(trace.layers)) == len(trace.layers) == 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=9,
)


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    changed=st.fixed_dictionaries({}, optional=dict.fromkeys(GOOD, JSON)),
    more=st.dictionaries(st.text(), JSON, max_size=2),
)
def test_any_json_in_a_header_is_an_error_or_leaves_a_trace(tmp_path: Path, changed: Any, more: Any) -> None:
    path = write(tmp_path / "t", {**more, **GOOD, **changed})
    try:
        trace = LayerTrace.load(path)
    except InputError:
        return
    assert trace.layers == tuple({**GOOD, **changed}["layers"])
    trace.table()


def test_a_saved_trace_has_the_mode_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    LayerTrace(("a",), torch.ones(1), torch.ones(1)).save(tmp_path / "t")
    assert stat.S_IMODE((tmp_path / "t").stat().st_mode) == stat.S_IMODE((tmp_path / "new").stat().st_mode)


def test_one_tensor_may_serve_as_both_norms(tmp_path: Path) -> None:
    ones = torch.ones(2)
    LayerTrace(("a", "b"), ones, ones).save(tmp_path / "t")
    assert LayerTrace.load(tmp_path / "t").relative_norms.tolist() == [1, 1]
