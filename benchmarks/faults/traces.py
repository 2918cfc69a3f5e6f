"""Any bytes, and any JSON, as a trace file: a trace whose every number is one that can be, or one clear refusal."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from benchmarks.faults.count import Clock, Count
from benchmarks.faults.generate import ANYTHING, damaged, examples
from localopt.errors import InputError
from localopt.outside import plain
from localopt.tracing.layer_trace import LayerTrace

_KEY = "localopt.tracing.trace"
_NAMES = ["h.0.attn", "h.0.mlp", "h.1.attn"]
_METADATA = {"model": "tiny", "partition": "sublayer", "average": "norms", "score": "norms", "probe_examples": 3}
_NORM = st.sampled_from([0.0, 1.0, 1e-45, 2.0**100]) | st.floats(0, 2.0**100, width=32)
_ANY_NORM = _NORM | st.floats(width=32) | st.sampled_from([-0.0, -1.0, math.nan, math.inf])


def safetensors(header: object, tensors: dict[str, list[float]], dtype: str = "F32") -> bytes:
    """The bytes of a safetensors file, whatever is in it."""
    data, about = b"", {}
    for name, values in tensors.items():
        raw = struct.pack(f"<{len(values)}f", *values)
        about[name] = {"dtype": dtype, "shape": [len(values)], "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    outer = {"__metadata__": {_KEY: header if isinstance(header, str) else json.dumps(header)}, **about}
    text = json.dumps(outer).encode()
    return struct.pack("<Q", len(text)) + text + data


GOOD = safetensors(
    {"format": 1, "layers": _NAMES, "metadata": _METADATA},
    {"probe_norms": [1.0, 2.0, 3.0], "reference_norms": [1.0, 1.0, 1.0]},
)


def a_trace(count: Count, number: int, seed: int, folder: Path, clock: Clock) -> None:
    """Try so many files."""
    headers = st.fixed_dictionaries(
        {
            "format": st.just(1) | ANYTHING,
            "layers": st.just(_NAMES) | st.lists(st.text(max_size=3), max_size=4) | ANYTHING,
            "metadata": st.fixed_dictionaries(
                {}, optional={key: st.just(value) | ANYTHING for key, value in _METADATA.items()}
            )
            | ANYTHING,
        },
        optional={"more": ANYTHING},
    )
    three = st.lists(_NORM, min_size=3, max_size=3)
    norms = three | st.lists(_ANY_NORM, max_size=4)
    tensors = st.fixed_dictionaries({"probe_norms": norms, "reference_norms": norms}, optional={"third": norms})
    whole = st.fixed_dictionaries({"probe_norms": three, "reference_norms": three})
    dtypes = st.sampled_from(["F32", "F32", "F32", "I32", "U32", "BOOL", "Q9"])
    made = st.builds(safetensors, headers | ANYTHING | st.text(max_size=30), tensors, dtypes)
    fine = st.builds(safetensors, st.just({"format": 1, "layers": _NAMES, "metadata": _METADATA}), tensors)
    fine |= st.builds(safetensors, st.just({"format": 1, "layers": _NAMES, "metadata": _METADATA}), whole)
    path = folder / "any.safetensors"

    def one(data: bytes) -> None:
        path.write_bytes(data)
        with count.one(repr(data[:400]), expected=(InputError,)):
            trace = LayerTrace.load(path)
            _ = trace.relative_norms
            problem = _problem(trace, data)
            if problem:
                count.note("wrong", f"{problem}: {data[:400]!r}")
            count.add("traces that are one")

    examples(st.binary(max_size=300) | made | fine | damaged(GOOD), one, number, seed, clock)


def _problem(trace: LayerTrace, data: bytes) -> str:
    """What is wrong with a trace that was accepted, read from the file's bytes by other means."""
    length = struct.unpack("<Q", data[:8])[0]
    outer = json.loads(data[8 : 8 + length])
    header = json.loads(outer["__metadata__"][_KEY])
    for name, held in (("probe_norms", trace.probe_norms), ("reference_norms", trace.reference_norms)):
        start, stop = outer[name]["data_offsets"]
        if outer[name]["dtype"] != "F32":
            return f"{name} are {outer[name]['dtype']}"
        body = data[8 + length :]
        values = list(struct.unpack(f"<{(stop - start) // 4}f", body[start:stop]))
        if values != held.tolist():
            return f"{name} are not those of the file"
        if not all(math.isfinite(value) and value >= 0 for value in values) or len(values) != len(trace.layers):
            return f"{name} hold what no norm is, or too many"
    if list(trace.layers) != header["layers"] or len(set(trace.layers)) < len(trace.layers) or not trace.layers:
        return "the layers are not those of the file, or come twice"
    if any(not name or plain(name) != name for name in trace.layers) or header["format"] != 1:
        return "a name or a format that is none"
    known: dict[str, tuple[Any, ...]] = {"average": ("norms", "gradients"), "score": ("norms", "gains")}
    if any(key in trace.metadata and trace.metadata[key] not in values for key, values in known.items()):
        return "a score or an average that is none"
    return ""
