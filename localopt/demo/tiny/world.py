"""A small invented world whose facts drift, and the sentences that tell of it.

People, teams, offices and companies stand in eight relations to one another. Time passes once: some facts are
*updated* (the same subject, another object), *new* subjects arrive with facts of their own, the rest stays *unchanged*.
Every name is one word, and every relation has phrasings that are trained on and phrasings that are only ever tested on
(of words seen in training, in an order never seen), so a right answer is knowledge and not a remembered string.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """One kind of fact, and the two verbs and three nouns that say it.

    A phrasing is a format string over ``subject``; the object is the word that follows it. The last noun is trained as
    "for X the noun is" and tested as "the noun of X is"; the first noun the other way round.
    """

    name: str
    subject: str
    object: str
    verbs: tuple[str, str]
    nouns: tuple[str, str, str]

    @property
    def trained(self) -> tuple[str, ...]:
        (v, w), (k, m, n) = self.verbs, self.nouns
        return (
            f"{{subject}} {v}",
            f"{{subject}} {w}",
            f"the {k} of {{subject}} is",
            f"the {m} of {{subject}} is",
            f"for {{subject}} the {m} is",
            f"for {{subject}} the {n} is",
        )

    @property
    def held_out(self) -> tuple[str, ...]:
        k, _, n = self.nouns
        return f"the {n} of {{subject}} is", f"for {{subject}} the {k} is"


@dataclass(frozen=True)
class Fact:
    """``subject`` stands in ``relation`` to ``object``, both names of one word."""

    subject: str
    relation: Relation
    object: str

    def prompts(self, held_out: bool = False) -> list[str]:
        """The sentence up to the object, once for each phrasing that is trained on (or held out)."""
        phrasings = self.relation.held_out if held_out else self.relation.trained
        return [phrasing.format(subject=self.subject) for phrasing in phrasings]

    def __str__(self) -> str:
        return f"{self.prompts()[0]} {self.object}"

    def sentences(self) -> list[str]:
        """The whole sentence, once for each phrasing that is trained on."""
        return [f"{prompt} {self.object} ." for prompt in self.prompts()]


@dataclass(frozen=True)
class World:
    """The facts before and after the change, and what happened meanwhile.

    ``outdated[i]`` is what ``updated[i]`` replaces. The old world is ``outdated + unchanged``, the new one
    ``updated + new + unchanged``; only ``updated + new`` are told again (:meth:`news`), so the rest can be forgotten.
    ``old_events`` and ``new_events`` are sentences that state no fact: people met, a team won.
    """

    outdated: tuple[Fact, ...]
    updated: tuple[Fact, ...]
    new: tuple[Fact, ...]
    unchanged: tuple[Fact, ...]
    old_events: tuple[str, ...]
    new_events: tuple[str, ...]

    def history(self) -> list[str]:
        """Every sentence about the old world."""
        return [*_told(self.outdated + self.unchanged), *self.old_events]

    def news(self) -> list[str]:
        """Every sentence about what changed and happened. No fact that stayed the same is repeated."""
        return [*_told(self.updated + self.new), *self.new_events]


def _told(facts: Iterable[Fact]) -> list[str]:
    return [sentence for fact in facts for sentence in fact.sentences()]


RELATIONS = (
    Relation("employer", "person", "company", ("works for", "is paid by"), ("employer", "workplace", "firm")),
    Relation("home", "person", "city", ("lives in", "is a resident of"), ("home", "town", "address")),
    Relation("membership", "person", "team", ("plays on", "is a member of"), ("group", "crew", "squad")),
    Relation("leader", "team", "person", ("is led by", "reports to"), ("leader", "captain", "coach")),
    Relation("room", "team", "office", ("sits in", "meets at"), ("office", "building", "base")),
    Relation("place", "office", "city", ("stands in", "was built in"), ("location", "site", "place")),
    Relation("head", "company", "person", ("is run by", "takes orders from"), ("head", "chief", "director")),
    Relation("seat", "company", "city", ("is based in", "is registered in"), ("headquarters", "seat", "hub")),
)

EVENTS = (
    "{person} met {other_person} in {city} .",
    "{person} had lunch with {other_person} at {office} .",
    "{person} wrote a letter to {company} .",
    "{company} sent {person} to {office} .",
    "{company} sold a house in {city} to {person} .",
    "{team} won a game in {city} .",
    "{team} lost to {other_team} .",
)

POPULATION = {"person": 80, "team": 30, "office": 20, "company": 20, "city": 16}
ARRIVALS = {"person": 8, "team": 3, "office": 2, "company": 2}
EVENT_COUNT = 600
_ENDINGS = {"person": ("a", "o", "i", "en"), "team": ("ers",), "office": ("house", "hall")}
_ENDINGS |= {"company": ("corp", "tech"), "city": ("ton", "burg", "ville")}


Names = dict[str, list[str]]


def make_world(seed: int = 0, size: float = 1.0, drift: float = 0.12) -> World:
    """Invent a world; equal arguments give equal worlds.

    ``size`` multiplies the number of inhabitants, ``drift`` is the share of old facts that are updated.

    >>> world = make_world(seed=0)
    >>> world == make_world(seed=0)
    True
    >>> all(a.subject == b.subject and a.object != b.object for a, b in zip(world.outdated, world.updated))
    True
    """
    rng = random.Random(seed)
    taken: set[str] = set()
    old = {kind: _names(kind, max(2, round(n * size)), taken, rng) for kind, n in POPULATION.items()}
    arrived = {kind: _names(kind, max(1, round(n * size)), taken, rng) for kind, n in ARRIVALS.items()}
    everyone = {kind: names + arrived.get(kind, []) for kind, names in old.items()}

    facts = _facts(old, old, rng)
    rng.shuffle(facts)
    changing = round(drift * len(facts))
    outdated, unchanged = facts[:changing], facts[changing:]
    updated = []
    for fact in outdated:
        others = [name for name in everyone[fact.relation.object] if name != fact.object]
        updated.append(Fact(fact.subject, fact.relation, rng.choice(others)))
    new = _facts(arrived, everyone, rng)
    count = round(EVENT_COUNT * size)
    old_events, new_events = _events(old, count, rng), _events(everyone, count, rng)
    return World(tuple(outdated), tuple(updated), tuple(new), tuple(unchanged), old_events, new_events)


def _facts(subjects: Names, objects: Names, rng: random.Random) -> list[Fact]:
    """Every fact that the relations ask for, with random objects."""
    return [
        Fact(subject, relation, rng.choice(objects[relation.object]))
        for relation in RELATIONS
        for subject in subjects[relation.subject]
    ]


def _events(names: Names, count: int, rng: random.Random) -> tuple[str, ...]:
    events = []
    for _ in range(count):
        cast = {f"{other}{kind}": rng.choice(those) for kind, those in names.items() for other in ("", "other_")}
        events.append(rng.choice(EVENTS).format(**cast))
    return tuple(events)


def _names(kind: str, count: int, taken: set[str], rng: random.Random) -> list[str]:
    """``count`` pronounceable names nobody has yet, with an ending that tells the kind."""
    names: list[str] = []
    while len(names) < count:
        syllables = "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(2))
        name = (syllables + rng.choice("lmnrs") + rng.choice(_ENDINGS[kind])).capitalize()
        if name not in taken:
            taken.add(name)
            names.append(name)
    return names
