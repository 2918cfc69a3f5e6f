"""Compile the kernels for GPUs that are not there; run in a process of its own, without Triton's interpreter.

Prints a line a kernel and GPU: its name, the GPU's capability, and whether a thread reads 16 bytes at once (`wide`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from localopt.steps.triton.adam_kernels import adam, count_steps
from localopt.steps.triton.sgd_kernels import pull, sgd
from localopt.steps.triton.sum_kernels import sums_of_chunks, sums_of_tensors

SIZES = {"CHUNK": 16384, "BLOCK": 1024}
ROWS = {name: i for i, name in enumerate(("NORM", "L1", "WEIGHT", "DRIFT", "PULLBACK", "MOMENTUM", "AGREEMENT"))}
TABLES = {"tensor", "offset", "size", "layer_of", "first", "position", "steps"}
TABLES |= {"gradients", "weights", "starts", "momenta", "parameters", "averages", "squares", "largest"}
NUMBERS = {"rates", "idle", "clip", "shares", "corrections", "partial"}
COUNTS = {"stride", "tensors", "chunks", "columns"}


def cases() -> Iterator[tuple[Any, dict[str, Any]]]:
    """Kernels and their constants: bfloat16 weights and state in float32, aligned and not."""
    half, full = tl.bfloat16, tl.float32
    options = {"DECAY": True, "MAXIMIZE": False, "CLIP": True, "RULE": 2}
    for aligned in (True, False):
        common = {"ALIGNED": aligned, **SIZES}
        yield sums_of_chunks, {"G": half, "W": half, "S": half, "M": full, "WIDE": full, **ROWS, **common}
        kinds = {"P": half, "G": half, "M": full, "S": half}
        amsgrad = {"V": full, "X": full, "AMSGRAD": True, "DECOUPLED": True}
        yield adam, {**kinds, **amsgrad, **options, **common}
        yield sgd, {**kinds, **options, **common, "MOMENTUM": True, "NESTEROV": True}
        yield pull, {"P": half, "S": half, **common}
    yield sums_of_tensors, {"BLOCK": 1024}
    yield count_steps, {"BLOCK": 1024}


def kind_of(name: str) -> str:
    """What an argument that is no constant is."""
    if name in TABLES:
        return "*i64"
    return "*fp64" if name == "out" else "*fp32" if name in NUMBERS else "i32" if name in COUNTS else "fp32"


def main() -> None:
    """Compile all of them for all GPUs, and check that none adds atomically."""
    for capability in (80, 90):
        for kernel, fixed in cases():
            types = {name: "constexpr" if name in fixed else kind_of(name) for name in kernel.arg_names}
            made = triton.compile(ASTSource(kernel, types, constexprs=fixed), target=GPUTarget("cuda", capability, 32))
            assembly: str = made.asm["ptx"]
            assert len(made.asm["cubin"]) > 0
            assert "atom" not in assembly
            print(kernel.__name__, capability, *(["wide"] if "ld.global.v4" in assembly else []))


if __name__ == "__main__":
    main()
