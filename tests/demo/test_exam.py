"""What a model knows is read off the probabilities it gives to answers, and what it writes is what it would write."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from localopt.demo.exam import Exam
from localopt.demo.lessons import Asked, Lessons
from localopt.demo.training import Effort, read_passages, teach
from localopt.pretraining.candidates import Question, answer_losses_apart
from localopt.pretraining.evaluate import evaluate_text
from tests.tiny_lm import SENTENCES, tiny_model, tiny_tokenizer

LESSONS = Lessons(
    passages=tuple(SENTENCES),
    taught=(
        Asked("The capital of Norland is", ("Westhaven", "Port Amber")),
        Asked("The capital of Sudania is", ("Port Amber", "Westhaven")),
    ),
    known=(Asked("Mira Osk plays the", ("violin", "river")),),
    page=" ".join(SENTENCES),
    shown=(0,),
)


def test_a_score_is_the_log_of_the_probability_among_the_answers_offered() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    marks = Exam(LESSONS, tokenizer).mark(model)
    for asked, score in zip(LESSONS.taught, marks.scores, strict=True):
        (nll,) = answer_losses_apart(model, tokenizer, [Question(asked.prompt, asked.answers)])
        likelihoods = [math.exp(-loss) for loss in nll.tolist()]
        assert score == pytest.approx(math.log(likelihoods[0] / sum(likelihoods)), abs=1e-4)
    assert marks.answered == sum(score > math.log(0.5) for score in marks.scores) / 2
    assert marks.page == pytest.approx(evaluate_text(model, tokenizer, [LESSONS.page], length=128).nll)


def test_a_model_of_another_family_gets_the_same_marks() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    beside = Exam(LESSONS, tokenizer).mark(model)
    model.config.model_type = "another"
    apart = Exam(LESSONS, tokenizer).mark(model)
    assert apart.scores == pytest.approx(beside.scores, abs=1e-4)
    assert replace(apart, scores=beside.scores) == beside


def test_a_model_that_was_taught_answers_and_writes_what_it_read() -> None:
    tokenizer = tiny_tokenizer()
    model, exam = tiny_model(tokenizer), Exam(LESSONS, tokenizer)
    before = exam.mark(model)
    rows = read_passages(LESSONS.passages, tokenizer)
    teach(model, rows, torch.optim.AdamW(model.parameters(), lr=1e-2), Effort(epochs=60, batch=4))
    after = exam.mark(model)
    assert after.score > before.score
    assert after.answered == after.known == 1
    assert after.page < before.page
    assert exam.write(model)[0].startswith("Westhaven.")
