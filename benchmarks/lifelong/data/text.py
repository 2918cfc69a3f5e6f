"""Words, shared n-grams, connected components: what keeps training text and probes apart."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

SHARED = 6  # no run of this many words may be in both the corpus and a probe


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def ngrams(text: str, n: int = SHARED) -> set[tuple[str, ...]]:
    """Every run of n words, case-folded, punctuation left out.

    >>> sorted(ngrams("The mill, THE mill!", 3))
    [('mill', 'the', 'mill'), ('the', 'mill', 'the')]
    """
    found = words(text)
    return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)}


def components(sets: Sequence[Iterable[Hashable]]) -> list[int]:
    """For each set, the number of its connected component: sets that share an element are connected.

    Numbered in order of first appearance.

    >>> components([{"a", "b"}, {"c"}, {"b", "d"}, {"d"}])
    [0, 1, 0, 0]
    """
    parent: dict[Hashable, Hashable] = {}

    def root(item: Hashable) -> Hashable:
        while parent.setdefault(item, item) != item:
            item = parent[item]
        return item

    for index, items in enumerate(sets):
        for item in items:
            parent[root(("item", item))] = root(("set", index))
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(root(("set", index)), len(numbers)) for index in range(len(sets))]


def balanced(sizes: Counter[int], rng: random.Random) -> dict[int, str]:
    """Components dealt to dev and test at random, the largest first, each to the side that has less."""
    order = list(sizes)
    rng.shuffle(order)
    order.sort(key=lambda group: -sizes[group])
    filled = Counter({"dev": 0, "test": 0})
    side = {}
    for group in order:
        side[group] = min(filled, key=lambda name: filled[name])
        filled[side[group]] += sizes[group]
    return side


def untokenize(text: str) -> str:
    """Undo WikiText's spacing: `1 @,@ 000 ( one ) .` -> `1,000 (one).`; its `<unk>` marks stay."""
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    text = re.sub(r" ([,.:;!?%)\]}]|'s|'t|'re|'ve|'ll|'d|'m)(?=\s|$)", r"\1", text)
    text = re.sub(r"([(\[{$]) ", r"\1", text)
    return re.sub(r'" ([^"\n]*?) "', r'"\1"', text)
