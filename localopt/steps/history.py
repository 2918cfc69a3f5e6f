"""What happened over a run: norms and scales of every layer, every so many steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class History:
    """Kept by a :class:`localopt.LocalizedOptimizer` from the moment it is asked for; see its ``history``.

    Nothing waits for the device until it is read. Where a run is longer than ``most`` times the interval, every second
    row goes and the interval doubles, so memory is bounded: 8 bytes a layer and row.

    Attributes:
        every: the steps between two rows, by now.
        names: the L layers.
        most: the rows kept.

    Examples:
        >>> history = History(every=2, names=("a", "b"))
        >>> for step in range(4):
        ...     history.add(torch.tensor([1.0, step]), torch.tensor([0.0, 1.0]))
        >>> history.steps, history.norms.tolist()
        ([1, 3], [[1.0, 0.0], [1.0, 2.0]])
    """

    every: int
    names: tuple[str, ...]
    most: int = 1024
    _taken: int = field(default=0, repr=False)
    _rows: list[tuple[int, Tensor | None, Tensor]] = field(default_factory=list, repr=False)

    def add(self, norms: Tensor | None, scales: Tensor) -> None:
        """Note a step, if its turn has come; the first always is."""
        self._taken += 1
        if (self._taken - 1) % self.every:
            return
        if len(self._rows) >= self.most:
            self._rows = self._rows[::2]
            self.every *= 2
            if (self._taken - 1) % self.every:
                return
        self._rows.append((self._taken, None if norms is None else norms.clone(), scales.clone()))

    def renamed(self, names: Sequence[str]) -> None:
        """Go on with other layers; rows of before have NaN for those that are new."""
        places = {name: i for i, name in enumerate(self.names)}

        def moved(row: Tensor) -> Tensor:
            old = [places.get(name, len(places)) for name in names]
            return torch.cat([row, row.new_full((1,), torch.nan)])[torch.tensor(old, device=row.device)]

        self._rows = [(step, None if n is None else moved(n), moved(s)) for step, n, s in self._rows]
        self.names = tuple(names)

    def saved(self) -> dict[str, Tensor]:
        """Return what was noted, to be given to :meth:`resume`; waits for the device."""
        counts = torch.tensor([self._taken, self.every])
        return {"counts": counts, "steps": torch.tensor(self.steps), "norms": self.norms, "scales": self.scales}

    def resume(self, saved: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`saved` returned, of the same layers.

        Raises:
            ValueError: it is of another number of layers.
        """
        rows, count = len(saved["steps"]), len(self.names)
        if any(saved[key].shape != (rows, count) for key in ("norms", "scales")):
            raise ValueError(f"the history was saved of {saved['scales'].shape[-1]} layers, and there are {count} now")
        self._taken, self.every = saved["counts"].tolist()
        self._rows = list(zip(saved["steps"].tolist(), saved["norms"], saved["scales"], strict=True))

    @property
    def steps(self) -> list[int]:
        """The steps there is a row of, counted from 1 where the history began."""
        return [step for step, _, _ in self._rows]

    @property
    def norms(self) -> Tensor:
        """Gradient norms, float32 on the CPU, (rows, L); NaN where none were taken."""
        unknown = torch.full((len(self.names),), torch.nan)
        return self._stacked([unknown if norms is None else norms for _, norms, _ in self._rows])

    @property
    def scales(self) -> Tensor:
        """What learning rates were multiplied by, float32 on the CPU, (rows, L); 0 is a frozen layer."""
        return self._stacked([scales for _, _, scales in self._rows])

    def _stacked(self, rows: Sequence[Tensor]) -> Tensor:
        if not rows:
            return torch.zeros(0, len(self.names))
        return torch.stack([row.to(rows[-1].device) for row in rows]).float().cpu()
