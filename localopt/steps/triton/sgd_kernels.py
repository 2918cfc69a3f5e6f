"""SGD, and the pull toward the start on its own: as :mod:`localopt.steps.triton.adam_kernels`."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator,attr-defined"

from __future__ import annotations

import triton
import triton.language as tl

from localopt.steps.triton.elements import part, pointer, pulled, scaled, write


@triton.jit
def sgd(
    parameters,
    gradients,
    momenta,
    starts,
    tensor,
    offset,
    size,
    layer_of,
    rates,
    idle,
    clip,
    shares,
    momentum,
    decay,
    P: tl.constexpr,
    G: tl.constexpr,
    M: tl.constexpr,
    S: tl.constexpr,
    DECAY: tl.constexpr,
    MOMENTUM: tl.constexpr,
    NESTEROV: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    CLIP: tl.constexpr,
    RULE: tl.constexpr,
    ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One chunk by SGD, then the pull; buffers of momentum begin at zero, so there is no dampening."""
    chunk = tl.program_id(0).to(tl.int64)
    row = tl.load(tensor + chunk)
    layer = tl.load(layer_of + row)
    if tl.load(idle + layer) == 0:
        begin = tl.multiple_of(tl.load(offset + chunk), 16)
        p = pointer(parameters, row, P, ALIGNED) + begin
        g = pointer(gradients, row, G, ALIGNED) + begin
        m = pointer(momenta, row, M, ALIGNED) + begin
        s = pointer(starts, row, S, ALIGNED) + begin
        rate = tl.load(rates + layer)
        share = tl.load(shares + layer)
        factor = tl.load(clip) if CLIP else 1.0
        left = tl.load(size + row) - begin
        # fmt: off
        if left >= CHUNK:
            _sgd(
                p, g, m, s, CHUNK, rate, share, factor, momentum, decay,
                DECAY, MOMENTUM, NESTEROV, MAXIMIZE, CLIP, RULE, False, BLOCK,
            )
        else:
            _sgd(
                p, g, m, s, left.to(tl.int32), rate, share, factor, momentum, decay,
                DECAY, MOMENTUM, NESTEROV, MAXIMIZE, CLIP, RULE, True, BLOCK,
            )
        # fmt: on


@triton.jit
def _sgd(
    parameter,
    gradient,
    buffer,
    start,
    count,
    rate,
    share,
    factor,
    momentum,
    decay,
    DECAY: tl.constexpr,
    MOMENTUM: tl.constexpr,
    NESTEROV: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    CLIP: tl.constexpr,
    RULE: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    for block in range(0, count, BLOCK):
        index = block + tl.arange(0, BLOCK)
        old = part(parameter, index, count, MASKED, tl.float32)
        g = scaled(gradient, index, count, factor, MAXIMIZE, CLIP, MASKED)
        if DECAY:
            g += decay * old
        if MOMENTUM:
            m = momentum * part(buffer, index, count, MASKED, tl.float32) + g
            write(buffer, index, count, m, MASKED)
            if NESTEROV:
                g += momentum * m
            else:
                g = m
        p = old - rate * g
        write(parameter, index, count, pulled(old, p, parameter, start, index, count, share, RULE, MASKED), MASKED)


@triton.jit
def pull(
    parameters,
    starts,
    tensor,
    offset,
    size,
    layer_of,
    shares,
    P: tl.constexpr,
    S: tl.constexpr,
    ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """w <- w + share (w0 - w) on one chunk, where the layer's share is not 0."""
    chunk = tl.program_id(0).to(tl.int64)
    row = tl.load(tensor + chunk)
    share = tl.load(shares + tl.load(layer_of + row))
    if share > 0:
        begin = tl.multiple_of(tl.load(offset + chunk), 16)
        p = pointer(parameters, row, P, ALIGNED) + begin
        s = pointer(starts, row, S, ALIGNED) + begin
        left = tl.load(size + row) - begin
        if left >= CHUNK:
            _pull(p, s, CHUNK, share, False, BLOCK)
        else:
            _pull(p, s, left.to(tl.int32), share, True, BLOCK)


@triton.jit
def _pull(parameter, start, count, share, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    for block in range(0, count, BLOCK):
        index = block + tl.arange(0, BLOCK)
        p = part(parameter, index, count, MASKED, tl.float32)
        s = part(start, index, count, MASKED, tl.float32)
        write(parameter, index, count, p + share * (s - p), MASKED)
