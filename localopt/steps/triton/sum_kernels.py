"""The kernels that sum: each chunk of a tensor is read once for all sums, then the chunks are added up."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator,attr-defined"

from __future__ import annotations

import triton
import triton.language as tl

from localopt.steps.triton.elements import part, pointer


@triton.jit
def sums_of_chunks(
    gradients,
    weights,
    starts,
    momenta,
    tensor,
    offset,
    size,
    partial,
    stride,
    G: tl.constexpr,
    W: tl.constexpr,
    S: tl.constexpr,
    M: tl.constexpr,
    NORM: tl.constexpr,
    L1: tl.constexpr,
    WEIGHT: tl.constexpr,
    DRIFT: tl.constexpr,
    PULLBACK: tl.constexpr,
    MOMENTUM: tl.constexpr,
    AGREEMENT: tl.constexpr,
    ALIGNED: tl.constexpr,
    WIDE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums of one chunk; NORM and so on are their rows in ``partial`` (S, C), or -1: not taken."""
    chunk = tl.program_id(0).to(tl.int64)
    row = tl.load(tensor + chunk)
    begin = tl.multiple_of(tl.load(offset + chunk), 16)
    count = tl.load(size + row)
    # Addresses of what is not taken are never followed.
    g = pointer(gradients, row, G, ALIGNED) + begin
    w = pointer(weights, row, W, ALIGNED) + begin
    s = pointer(starts, row, S, ALIGNED) + begin
    m = pointer(momenta, row, M, ALIGNED) + begin
    out = partial + chunk
    left = count - begin
    if left >= CHUNK:
        _sums(
            g, w, s, m, CHUNK, out, stride, NORM, L1, WEIGHT, DRIFT, PULLBACK, MOMENTUM, AGREEMENT, False, WIDE, BLOCK
        )
    else:
        end = left.to(tl.int32)
        _sums(g, w, s, m, end, out, stride, NORM, L1, WEIGHT, DRIFT, PULLBACK, MOMENTUM, AGREEMENT, True, WIDE, BLOCK)


@triton.jit
def _sums(
    gradient,
    weight,
    start,
    momentum,
    count,
    out,
    stride,
    NORM: tl.constexpr,
    L1: tl.constexpr,
    WEIGHT: tl.constexpr,
    DRIFT: tl.constexpr,
    PULLBACK: tl.constexpr,
    MOMENTUM: tl.constexpr,
    AGREEMENT: tl.constexpr,
    MASKED: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums of ``count`` elements, all from one read."""
    zeros = tl.zeros([BLOCK], dtype=WIDE)
    norm, l1, weight_, drift, pullback, momentum_, agreement = zeros, zeros, zeros, zeros, zeros, zeros, zeros
    for block in range(0, count, BLOCK):
        index = block + tl.arange(0, BLOCK)
        if (NORM >= 0) or (L1 >= 0) or (PULLBACK >= 0) or (AGREEMENT >= 0):
            g = part(gradient, index, count, MASKED, WIDE)
        if (WEIGHT >= 0) or (DRIFT >= 0) or (PULLBACK >= 0):
            w = part(weight, index, count, MASKED, WIDE)
        if (DRIFT >= 0) or (PULLBACK >= 0):
            away = w - part(start, index, count, MASKED, WIDE)
        if (MOMENTUM >= 0) or (AGREEMENT >= 0):
            m = part(momentum, index, count, MASKED, WIDE)
        if NORM >= 0:
            norm += g * g
        if L1 >= 0:
            l1 += tl.abs(g)
        if WEIGHT >= 0:
            weight_ += w * w
        if DRIFT >= 0:
            drift += away * away
        if PULLBACK >= 0:
            pullback += g * away
        if MOMENTUM >= 0:
            momentum_ += m * m
        if AGREEMENT >= 0:
            agreement += g * m
    if NORM >= 0:
        tl.store(out + NORM * stride, tl.sum(norm))
    if L1 >= 0:
        tl.store(out + L1 * stride, tl.sum(l1))
    if WEIGHT >= 0:
        tl.store(out + WEIGHT * stride, tl.sum(weight_))
    if DRIFT >= 0:
        tl.store(out + DRIFT * stride, tl.sum(drift))
    if PULLBACK >= 0:
        tl.store(out + PULLBACK * stride, tl.sum(pullback))
    if MOMENTUM >= 0:
        tl.store(out + MOMENTUM * stride, tl.sum(momentum_))
    if AGREEMENT >= 0:
        tl.store(out + AGREEMENT * stride, tl.sum(agreement))


@triton.jit
def sums_of_tensors(partial, first, position, out, chunks, columns, BLOCK: tl.constexpr):
    """Add up the chunks of one tensor for one sum, always in the same order, in float64."""
    row = tl.program_id(0).to(tl.int64)
    name = tl.program_id(1).to(tl.int64)
    begin = tl.load(first + row)
    end = tl.load(first + row + 1)
    total = tl.zeros([BLOCK], dtype=tl.float64)
    while begin < end:
        index = begin + tl.arange(0, BLOCK)
        total += tl.load(partial + name * chunks + index, mask=index < end, other=0.0).to(tl.float64)
        begin += BLOCK
    tl.store(out + name * columns + tl.load(position + row), tl.sum(total))
