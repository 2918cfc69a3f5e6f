"""The invented facts: what is asked is what was read, in other words, and no wrong answer gives itself away."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from localopt.demo.lessons import PASSAGES, Lessons, Part, read_lessons

PARTS: tuple[Part, ...] = ("test", "tuning")


def of_fact(lessons: Lessons, place: int) -> tuple[str, ...]:
    return lessons.passages[PASSAGES * place : PASSAGES * (place + 1)]


@pytest.mark.parametrize(("part", "count"), [("test", 40), ("tuning", 20)])
def test_every_fact_has_its_passages_and_a_question_with_five_answers(part: Part, count: int) -> None:
    lessons = read_lessons(part)
    assert len(lessons.taught) == count
    assert len(lessons.passages) == PASSAGES * count
    assert {len(asked.answers) for asked in lessons.taught} == {5}
    assert all(len(set(asked.answers)) == 5 for asked in (*lessons.taught, *lessons.known))


@pytest.mark.parametrize("part", PARTS)
def test_each_passage_states_its_own_right_answer_once_and_none_of_the_wrong_ones(part: Part) -> None:
    """So all answers are read equally often."""
    lessons = read_lessons(part)
    for place, asked in enumerate(lessons.taught):
        for passage in of_fact(lessons, place):
            said = [answer for answer in asked.answers for _ in re.findall(rf"\b{re.escape(answer)}\b", passage)]
            assert said == [asked.answers[0]]


@pytest.mark.parametrize("part", PARTS)
def test_a_question_is_asked_in_words_that_stand_before_no_answer(part: Part) -> None:
    lessons = read_lessons(part)
    text = "\n".join(lessons.passages)
    for asked in lessons.taught:
        for length in (2, 3):
            words = " ".join(asked.prompt.split()[-length:])
            said = [answer for answer in asked.answers if f"{words} {answer}" in text]
            assert not said, "that would be a string to remember, not a fact"


def test_rates_are_chosen_on_facts_that_share_no_name_and_no_answer_with_those_compared_on() -> None:
    test, tuning = (read_lessons(part) for part in PARTS)
    names = [set(re.findall(r" ([A-Z]\w+)", "".join(asked.prompt for asked in one.taught))) for one in (test, tuning)]
    assert {"Ostrivale", "Varnholt"} < names[0]
    assert names[0] & names[1] <= {"The"}
    answers = [{asked.answers[0] for asked in one.taught} for one in (test, tuning)]
    assert not answers[0] & answers[1]
    assert not {asked.prompt for asked in test.known} & {asked.prompt for asked in tuning.known}
    assert test.page != tuning.page


def test_the_page_is_plain_prose_of_three_to_four_hundred_words() -> None:
    assert 300 <= len(read_lessons().page.split()) <= 400


def test_the_questions_shown_are_of_different_kinds() -> None:
    lessons = read_lessons()
    shown = [set(lessons.taught[place].answers) for place in lessons.shown]
    assert len(shown) == 5
    assert all(not one & other for one, other in pairwise(shown))
