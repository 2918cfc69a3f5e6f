"""What all kernels read and write tensors by. With them the only files that import triton, loaded where asked for."""

# Triton compiles these functions, so they are in its dialect of Python and their arguments carry no types.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator,attr-defined"

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl

KINDS = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


def launching(device: torch.device) -> AbstractContextManager[object]:
    """Within it kernels are launched on ``device``; on a CPU they are interpreted."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@triton.jit
def pointer(table, row, KIND: tl.constexpr, ALIGNED: tl.constexpr):
    """Where tensor ``row`` begins; ALIGNED: at a multiple of 16 bytes, so that several elements are read at once."""
    found = tl.load(table + row).to(tl.pointer_type(KIND))
    if ALIGNED:
        found = tl.multiple_of(found, 16)
    return found


@triton.jit
def part(begin, index, count, MASKED: tl.constexpr, WIDE: tl.constexpr):
    """Some elements of a tensor of ``count``, widened; MASKED: zero past its end."""
    if MASKED:  # noqa: SIM108  # two statements, since Triton compiles the one that is meant
        found = tl.load(begin + index, mask=index < count, other=0.0)
    else:
        found = tl.load(begin + index)
    return found.to(WIDE)


@triton.jit
def pulled(old, new, parameter, start, index, count, share, RULE: tl.constexpr, MASKED: tl.constexpr):
    """The weights after the step and the pull; RULE: 0 none, 1 plain, 2 on what went toward the start."""
    if RULE > 0:
        # First rounded as a step of its own would round them.
        new = new.to(parameter.dtype.element_ty).to(tl.float32)
        s = part(start, index, count, MASKED, tl.float32)
        back = new + share * (s - new)
        if RULE == 2:
            back = tl.where((new - old) * (s - old) > 0, back, new)
        new = tl.where(share > 0, back, new)
    return new


@triton.jit
def scaled(gradient, index, count, factor, MAXIMIZE: tl.constexpr, CLIP: tl.constexpr, MASKED: tl.constexpr):
    g = part(gradient, index, count, MASKED, tl.float32)
    if CLIP:
        g *= factor
    if MAXIMIZE:
        g = -g
    return g


@triton.jit
def write(begin, index, count, value, MASKED: tl.constexpr):
    narrow = value.to(begin.dtype.element_ty)
    if MASKED:
        tl.store(begin + index, narrow, mask=index < count)
    else:
        tl.store(begin + index, narrow)
