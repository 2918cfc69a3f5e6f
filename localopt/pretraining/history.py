"""What a training run was asked and how it did so far, as a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from localopt.errors import InputError
from localopt.pretraining.lock import holds_nothing
from localopt.pretraining.textfiles import write_whole


@dataclass
class History:
    """One entry of ``scores`` before training and one after each epoch.

    Attributes:
        settings: how to train: the fields of :class:`localopt.pretraining.settings.Settings`.
        inputs: fingerprints of what the run reads (model, corpus, trace, scored sets), by name.
        scores: ``{"epoch": ..., "step": ..., "sets": {name: score}}``, in order; where an optimizer chose layers also
            ``updated_layers`` and ``share_updated`` (of the parameters), both of the last step.
        trained_parameters, all_parameters: how many weights could change, and how many there are.
        trained_layers: the names of the layers that could.
        rate: the peak learning rate, given or by rule.
        budget: where there was a forgetting budget, ``{"rise", "share", "path": [{"share", "sets"}, ...]}``: what was
            allowed, the share of the way that was kept, and the scores at every share that was tried, in order.
    """

    settings: dict[str, Any]
    inputs: dict[str, str] = field(default_factory=dict)
    scores: list[dict[str, Any]] = field(default_factory=list)
    trained_parameters: int = 0
    all_parameters: int = 0
    trained_layers: list[str] = field(default_factory=list)
    rate: float = 0.0
    budget: dict[str, Any] | None = None

    def save(self, path: Path) -> None:
        """Write as JSON, whole or not at all; InputError if that is impossible."""
        write_whole(path, json.dumps(asdict(self), indent=2, allow_nan=False))

    @classmethod
    def load(cls, path: Path) -> History:
        """Read what :meth:`save` wrote."""
        try:
            if not path.is_file():
                raise ValueError("no such file")
            history = cls(**json.loads(path.read_text(encoding="utf-8")))
            history._check()
            return history
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise InputError(f"{path}: is not the history of a run ({error}): name the folder of one.") from error

    def _check(self) -> None:
        """Raise ValueError unless the fields have the types this class says."""
        if not isinstance(self.settings, dict) or not {"method", "lr"} <= self.settings.keys():
            raise ValueError("its settings are not those of a run")
        if not isinstance(self.inputs, dict) or not isinstance(self.scores, list):
            raise ValueError("its inputs or scores are of another form")
        for entry in self.scores:
            if not isinstance(entry, dict) or not {"epoch", "step"} <= entry.keys():
                raise ValueError("an entry of its scores has no epoch or step")
            if not all(type(entry[name]) is int for name in ("epoch", "step")):
                raise ValueError("an epoch or step is not a whole number")
            sets = entry.get("sets")
            if not isinstance(sets, dict) or not all(
                isinstance(score, dict) and "nll" in score for score in sets.values()
            ):
                raise ValueError("an entry of its scores has none")

    def refuse_other(self, settings: dict[str, Any], inputs: dict[str, str], out: Path) -> None:
        """Raise InputError unless this is a run with these settings on these inputs; says which differ."""
        differ = [
            f"{name} {self.settings.get(name)}, not {settings.get(name)}"
            for name in dict.fromkeys([*self.settings, *settings])
            if self.settings.get(name) != settings.get(name)
        ]
        differ += [
            f"another {name}" if name in self.inputs and name in inputs else f"{name} on one side only"
            for name in dict.fromkeys([*self.inputs, *inputs])
            if self.inputs.get(name) != inputs.get(name)
        ]
        if differ:
            raise InputError(f"{out}: this run was started with {'; '.join(differ)}: resume it as it was started.")

    def uptake_and_forgetting(self, reference: str) -> dict[str, list[tuple[float, float]]]:
        """Return, for each set but the reference, its path of (rise of the reference's NLL, fall of its own NLL).

        One point an epoch, in nats, relative to the scores before training; epochs without a finite NLL are left out.
        """
        return _paths([entry["sets"] for entry in self.scores], reference)

    def way_back(self, reference: str) -> dict[str, list[tuple[float, float]]]:
        """Return the same along the way from the end of training to what the forgetting budget left of it."""
        if self.budget is None:
            return {}
        back = [entry["sets"] for entry in reversed(self.budget["path"]) if entry["share"] >= self.budget["share"]]
        return _paths([self.budget["path"][0]["sets"], *back], reference)


def _paths(sets: list[dict[str, dict[str, Any]]], reference: str) -> dict[str, list[tuple[float, float]]]:
    """(Rise of the reference, fall of its own) of every other set, relative to the first scores."""
    if not sets or reference not in sets[0]:
        return {}
    nll = [{name: score["nll"] for name, score in scores.items()} for scores in sets]
    return {
        name: [
            (now[reference] - nll[0][reference], nll[0][name] - now[name])
            for now in nll[1:]
            if None not in (now[reference], nll[0][reference], now[name], nll[0][name])
        ]
        for name in nll[0]
        if name != reference
    }


def refuse_taken(out: Path, resume: bool) -> None:
    """Raise InputError if a run can neither begin in this folder nor, with ``resume``, go on there."""
    if resume and (out / "history.json").is_file():
        if (out / "model").exists():
            raise InputError(f"{out}: this run is finished, its model is in {out / 'model'}: name a new folder.")
    elif out.exists() and (not out.is_dir() or not holds_nothing(out)):
        remedy = "name a new folder" if resume else "name a new folder, or add --resume to go on with the run in it"
        raise InputError(f"{out}: exists and is not empty: {remedy}.")


def fingerprint(parts: Iterable[object]) -> str:
    """Return 16 hexadecimal digits that differ where the parts do.

    >>> fingerprint(["one", 2]) == fingerprint(["one", 2]), fingerprint(["one"]) == fingerprint(["two"])
    (True, False)
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode("utf-8", "backslashreplace") + b"\n")
    return digest.hexdigest()[:16]
