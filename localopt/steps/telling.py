"""Saying what was done: the report of a step, the history of a run, and what is said once of its own accord."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence

from torch import Tensor

from localopt.policies.protocol import Policy, check_period
from localopt.steps.checks import refuse_scales
from localopt.steps.clipping import ClippedBefore
from localopt.steps.history import History
from localopt.steps.report import Report, report, summary
from localopt.steps.saved import SavedOptimizer
from localopt.steps.watch import Watch

logger = logging.getLogger(__name__)
_MOVED = (
    "before its first step the weights are no longer those that the optimizer was wrapped with, toward which they "
    "decay: load a model before its optimizer is wrapped, or say what to decay toward: AnchorDecay(..., start=...)"
)


class TellingOptimizer(SavedOptimizer):
    """A localized optimizer as far as what it tells goes; a step leaves here what it did."""

    max_grad_norm: float | None
    _scales: Tensor | None
    _signals: dict[str, Tensor]
    _shares: Tensor | None
    _present: list[bool]
    _overflowed: Tensor | None
    _history: History | None
    _watch: Watch
    _clipped: ClippedBefore

    @property
    def policy(self) -> Policy:
        """What chooses the layers."""
        return self._policy.policy

    def _tell(self, scales: Sequence[float] | None) -> None:
        """Say once what trains, that nothing does, that gradients come clipped already; note the step down."""
        if scales is not None and not any(scales):
            self._watch.warn_once("all frozen", self._all_frozen(), stacklevel=8)  # to the line that called the step
        if self._watch.first("summary") and logger.isEnabledFor(logging.INFO) and scales is not None:
            logger.info(summary(self.policy, self.report(), self._layout, self.param_groups))
        norms = self._signals.get("norm")
        if norms is not None and self.max_grad_norm is not None and self.max_grad_norm < math.inf:
            twice = self._clipped.look(norms, self.max_grad_norm)
            if twice:
                warnings.warn(twice, stacklevel=8)
        drift = self._signals.get("drift") if self._anchor is not None and self._anchor.as_wrapped else None
        if scales is not None and drift is not None and self._watch.first("drift") and bool((drift > 0).any()):
            warnings.warn(_MOVED, stacklevel=8)
        if self._history is not None and self._scales is not None:
            self._history.add(norms, self._scales)

    def _all_frozen(self) -> str:
        return f"{self.policy!r} freezes every layer: nothing was updated (said once)"

    def report(self) -> Report:
        """Say what the last step did. Waits for the device.

        Raises:
            RuntimeError: there was no step yet.
            ValueError: the policy returned a scale that is not finite and >= 0.
        """
        if self._scales is None:
            raise RuntimeError("report() tells what the last step did, and there was none yet: call step() first")
        names, scales = self._layout.names, tuple(self._scales.tolist())
        refuse_scales(self.policy, names, scales)
        norms = self._signals.get("norm")
        overflowed = self._overflowed is not None and bool(self._overflowed)
        if not any(scales) and not overflowed and (norms is None or norms.isfinite().all()):
            self._watch.warn_once("all frozen", self._all_frozen(), stacklevel=2)
        skipped = int(self._skipped)
        return report(self._layout, self.param_groups, self._present, scales, self._signals, self._shares, skipped)

    def history(self, every: int = 1) -> History:
        """Begin to note norms and scales of every so many steps; return what holds them, and waits only when read.

        Examples:
            >>> import torch
            >>> from torch import nn
            >>> from localopt import LocalizedOptimizer
            >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
            >>> optimizer = LocalizedOptimizer(torch.optim.AdamW(model.parameters()), model)
            >>> history = optimizer.history(every=10)
            >>> model(torch.ones(8, 4)).square().mean().backward()
            >>> optimizer.step()
            >>> history.steps, tuple(history.norms.shape)
            ([1], (1, 2))
        """
        check_period("every", every)
        self._history = History(every, self._layout.names)
        return self._history
