"""Adam and AdamW: each layer's numbers are read by the index of the tensor, and idle layers are left alone."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator,attr-defined"

from __future__ import annotations

import triton
import triton.language as tl

from localopt.steps.triton.elements import part, pointer, pulled, scaled, write


@triton.jit
def count_steps(steps, layer_of, idle, corrections, tensors, log_beta1, log_beta2, BLOCK: tl.constexpr):
    """t <- t + 1 where the layer is not idle; 1 - beta1^t and sqrt(1 - beta2^t) go to ``corrections`` (2, T)."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = row < tensors
    layer = tl.load(layer_of + row, mask=here, other=0)
    moves = here & (tl.load(idle + layer, mask=here, other=1.0) == 0)
    step = tl.load(steps + row, mask=here, other=0).to(tl.pointer_type(tl.float32))
    count = tl.load(step, mask=moves, other=0.0) + 1
    tl.store(step, count, mask=moves)
    # In float64: 1 - 0.999^t would lose four digits of float32's seven in the first steps.
    wide = count.to(tl.float64)
    tl.store(corrections + row, (1 - tl.exp(wide * log_beta1)).to(tl.float32), mask=moves)
    tl.store(corrections + tensors + row, tl.sqrt(1 - tl.exp(wide * log_beta2)).to(tl.float32), mask=moves)


@triton.jit
def adam(
    parameters,
    gradients,
    averages,
    squares,
    largest,
    starts,
    tensor,
    offset,
    size,
    layer_of,
    rates,
    idle,
    clip,
    shares,
    corrections,
    tensors,
    beta1,
    beta2,
    rest1,
    rest2,
    eps,
    decay,
    P: tl.constexpr,
    G: tl.constexpr,
    M: tl.constexpr,
    V: tl.constexpr,
    X: tl.constexpr,
    S: tl.constexpr,
    DECAY: tl.constexpr,
    DECOUPLED: tl.constexpr,
    AMSGRAD: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    CLIP: tl.constexpr,
    RULE: tl.constexpr,
    ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One chunk by Adam or AdamW: with rest = 1 - beta, the step of torch's fused kernels, then the pull."""
    chunk = tl.program_id(0).to(tl.int64)
    row = tl.load(tensor + chunk)
    layer = tl.load(layer_of + row)
    if tl.load(idle + layer) == 0:
        begin = tl.multiple_of(tl.load(offset + chunk), 16)
        p = pointer(parameters, row, P, ALIGNED) + begin
        g = pointer(gradients, row, G, ALIGNED) + begin
        m = pointer(averages, row, M, ALIGNED) + begin
        v = pointer(squares, row, V, ALIGNED) + begin
        x = pointer(largest, row, X, ALIGNED) + begin
        s = pointer(starts, row, S, ALIGNED) + begin
        rate = tl.load(rates + layer)
        share = tl.load(shares + layer)
        factor = tl.load(clip) if CLIP else 1.0
        bias1 = tl.load(corrections + row)
        bias2 = tl.load(corrections + tensors + row)
        left = tl.load(size + row) - begin
        # fmt: off
        if left >= CHUNK:
            _adam(
                p, g, m, v, x, s, CHUNK, rate, share, factor, bias1, bias2, beta1, beta2, rest1, rest2, eps, decay,
                DECAY, DECOUPLED, AMSGRAD, MAXIMIZE, CLIP, RULE, False, BLOCK,
            )
        else:
            _adam(
                p, g, m, v, x, s, left.to(tl.int32), rate, share, factor, bias1, bias2, beta1, beta2, rest1, rest2,
                eps, decay, DECAY, DECOUPLED, AMSGRAD, MAXIMIZE, CLIP, RULE, True, BLOCK,
            )
        # fmt: on


@triton.jit
def _adam(
    parameter,
    gradient,
    average,
    square,
    largest,
    start,
    count,
    rate,
    share,
    factor,
    bias1,
    bias2,
    beta1,
    beta2,
    rest1,
    rest2,
    eps,
    decay,
    DECAY: tl.constexpr,
    DECOUPLED: tl.constexpr,
    AMSGRAD: tl.constexpr,
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
        m = part(average, index, count, MASKED, tl.float32)
        v = part(square, index, count, MASKED, tl.float32)
        p = old
        if DECAY and DECOUPLED:
            p -= rate * decay * p
        if DECAY and not DECOUPLED:
            g += decay * p
        m += rest1 * (g - m)
        v = beta2 * v + rest2 * g * g
        most = v
        if AMSGRAD:
            most = tl.maximum(part(largest, index, count, MASKED, tl.float32), v)
            write(largest, index, count, most, MASKED)
        p -= (rate / bias1) * m / (tl.sqrt(most) / bias2 + eps)
        write(average, index, count, m, MASKED)
        write(square, index, count, v, MASKED)
        write(parameter, index, count, pulled(old, p, parameter, start, index, count, share, RULE, MASKED), MASKED)
