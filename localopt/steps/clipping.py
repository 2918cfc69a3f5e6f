"""Gradients that come clipped already, to an optimizer that clips them too.

Trainers clip before the step (Trainer's ``max_grad_norm``, Lightning's ``gradient_clip_val``, DeepSpeed's
``gradient_clipping``), over all layers; the optimizer's ``max_grad_norm`` then clips again over those it updates. Who
did it cannot be seen from here, but what was clipped to c has the norm c: so the norms of a few steps tell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

STEPS = 8  # looked at, then read at once
_ALIKE, _CLOSE = 4, 2e-3  # of which so many have the largest norm, up to the rounding of half precision


class ClippedBefore:
    """Looks at the norms of the first steps, and reads them once."""

    def __init__(self) -> None:
        self._seen: list[Tensor] | None = []

    def look(self, norms: Tensor, max_grad_norm: float) -> str:
        """Return what to warn of, once after the step that shows it, else nothing.

        Args:
            norms: float32 (L,), of the step's gradients as they came.
            max_grad_norm: what the optimizer clips to.
        """
        if self._seen is None:
            return ""
        self._seen.append(norms.detach().clone())
        if len(self._seen) < STEPS or len({seen.shape for seen in self._seen}) > 1:
            return ""
        rows, self._seen = torch.stack(self._seen).cpu().tolist(), None
        bound = clipped_to(rows)
        if bound is None:
            return ""
        return (
            f"the gradients of several steps came with the same norm, {bound:.4g}: they were clipped before the "
            "optimizer saw them (Trainer's max_grad_norm, Lightning's gradient_clip_val, DeepSpeed's gradient_clipping "
            f"or clip_grad_norm_), and are clipped again by the optimizer, to {max_grad_norm:g} over the layers it "
            "updates. Leave one of the two out (said once)"
        )


def clipped_to(rows: Sequence[Sequence[float]]) -> float | None:
    """Return the norm that gradients were clipped to, or None.

    Args:
        rows: the norms of the layers, a row a step; one that holds a NaN or an infinity tells nothing.

    Examples:
        >>> clipped_to([[3.0, 4.0], [4.0, 3.0], [0.0, 5.0], [5.0, 0.0], [float("nan"), 5.0]])
        5.0
    """
    rows = [row for row in rows if all(map(math.isfinite, row))]
    if not rows:
        return None
    totals = [sum(norm * norm for norm in row) ** 0.5 for row in rows]
    largest = max(totals)
    alike = [row for row, total in zip(rows, totals, strict=True) if abs(total - largest) <= _CLOSE * largest]
    # Equal totals of equal gradients (the same batch again, hardly moved) are no sign.
    first = alike[0]
    differ = [row for row in alike if max(abs(a - b) for a, b in zip(row, first, strict=True)) > 5 * _CLOSE * largest]
    return largest if largest > 0 and len(alike) >= _ALIKE and len(differ) >= _ALIKE // 2 else None
