"""Answers beside each other behind one prompt are as likely as each of them alone."""

from __future__ import annotations

import pytest
import torch

from localopt.pretraining.candidates import Question, answer_losses, answer_losses_apart, plant
from tests.tiny_lm import tiny_model, tiny_tokenizer

QUESTIONS = [
    Question("The capital of Norland is", ("Westhaven", "Port Amber", "West", "the capital of the capital")),
    Question("Mira", ("Osk", "Mira Osk lives in Westhaven", "Osk plays")),
    Question("The river", ("runs",)),
]


@pytest.mark.parametrize("style", ["bytes", "marked"])
@pytest.mark.parametrize("start", [False, True], ids=["bare", "with a start token"])
def test_losses_are_those_of_one_row_an_answer(style: str, start: bool) -> None:
    tokenizer = tiny_tokenizer(style, start)
    model = tiny_model(tokenizer).eval()
    beside = answer_losses(model, plant(QUESTIONS, tokenizer))
    apart = answer_losses_apart(model, tokenizer, QUESTIONS)
    for found, expected in zip(beside, apart, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_no_question_depends_on_those_it_is_asked_with() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer).eval()
    trees = plant(QUESTIONS, tokenizer)
    together = answer_losses(model, trees)
    for tree, expected in zip(trees, together, strict=True):
        torch.testing.assert_close(answer_losses(model, [tree])[0], expected, rtol=1e-5, atol=1e-5)


def test_answers_of_one_token_add_nothing_to_the_row() -> None:
    tokenizer = tiny_tokenizer()
    one, several = (plant([Question("The river", answers)], tokenizer)[0] for answers in (("Osk",), ("Osk", "runs")))
    long = plant([Question("The river", ("Osk", "Port Amber, and the river"))], tokenizer)[0]
    lengths = [len(tokenizer(f" {word}")["input_ids"]) for word in ("Osk", "runs")]
    assert len(several.ids) - len(one.ids) == lengths[1] - 1
    assert len(long.ids) < len(one.ids) + len(tokenizer(" Port Amber, and the river")["input_ids"])
