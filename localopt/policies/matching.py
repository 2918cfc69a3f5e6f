"""Layers of a trace, or of scales written down -> the layers of an optimizer, where a prefix is all that differs.

A model that was traced by itself is trained as a part of another: `self.net` of a module, under the prefix of a wrapper
that is not known (:func:`localopt.layers.canonical` takes away those that are), or the other way round. One prefix, the
same for every layer, then tells which layer is which.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from localopt.layers import ROOT


class Matched(NamedTuple):
    """Which known layer each name is.

    Attributes:
        known_as: by name, for those names that are known.
        prefix: of the names, or of the known ones; "" where both are written alike.
        inside: whether the known layers are those of a module named ``prefix`` inside the one the names are of; else
            it is the other way round.
    """

    known_as: dict[str, str]
    prefix: str
    inside: bool

    def remedy(self) -> str:
        """Say which module to pass, where a prefix was found and yet some layers have no partner."""
        if not self.prefix:
            return ""
        if self.inside:
            return f" Those that are known lie in the module {self.prefix}: pass that one as the model"
        return f" The model is known as the part {self.prefix} of a larger one: pass that one"


def matched(known: Iterable[str], names: Iterable[str]) -> Matched:
    """Return the prefix under which most names are known, and what each of them is then; the same name wins.

    Args:
        known: layers of a trace, or of scales.
        names: layers of a model, or of an optimizer.

    Raises:
        ValueError: several prefixes do equally well.

    Examples:
        >>> matched(["layers.0.mlp", "head"], ["net.layers.0.mlp", "net.head"]).known_as
        {'net.layers.0.mlp': 'layers.0.mlp', 'net.head': 'head'}
    """
    known, names = dict.fromkeys(known), list(dict.fromkeys(names))
    same = {name: name for name in names if name in known}
    if len(same) == len(names):
        return Matched(same, "", True)
    found: Counter[tuple[str, bool]] = Counter()
    wanted = set(names)
    for name in names:
        found.update((prefix, True) for prefix, rest in _split(name) if rest in known)
    for name in known:
        found.update((prefix, False) for prefix, rest in _split(name) if rest in wanted)
    best = [way for way, count in found.items() if count == max(found.values()) and count > len(same)]
    if len(best) > 1:
        places = ", ".join(sorted(prefix for prefix, _ in best))
        raise ValueError(
            f"layers are known by other names here, and may be those of any of {places}: pass the module that is meant "
            "as the model, the same one that was traced"
        )
    if not best:
        return Matched(same, "", True)
    [(prefix, inside)] = best
    pairs = {_under(prefix, name): name for name in (known if inside else names)}
    if inside:
        return Matched({name: pairs[name] for name in names if name in pairs}, prefix, True)
    return Matched({pairs[name]: name for name in known if name in pairs}, prefix, False)


def _split(name: str) -> list[tuple[str, str]]:
    """Every prefix of a name with what is left; the layer of what a module itself owns leaves :data:`ROOT`."""
    parts = name.split(".")
    return [(".".join(parts[:i]), ".".join(parts[i:])) for i in range(1, len(parts))] + [(name, ROOT)]


def _under(prefix: str, name: str) -> str:
    return prefix if name == ROOT else f"{prefix}.{name}"
