"""Evaluation: the numbers against independent ones, and the model left as it was."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from localopt.errors import InputError
from localopt.pretraining.evaluate import Score, evaluate, evaluate_text, margins, span_losses
from localopt.pretraining.probes import IGNORED, Probe, completion, encode, encode_text
from tests.tiny_lm import SENTENCES, tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
PROBES = [
    completion("The capital of Norland is", "Westhaven"),
    completion("The capital of Sudania is", "Port Amber"),
    completion("Mira Osk plays the", "violin"),
    completion("The chief of the Blue Mill company is", "Tomas Reed"),
    Probe(SENTENCES[2], ((15, 25),)),
]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    """Knows half of the probes by heart."""
    model = tiny_model(TOKENIZER)
    examples = encode([PROBES[0], PROBES[2]], TOKENIZER)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        for example in examples:
            model(**{name: ids[None] for name, ids in example.items()}).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model


def reference_nll(model: LlamaForCausalLM, probe: Probe) -> list[float]:
    """One probe alone, no padding, one token at a time."""
    (example,) = encode([probe], TOKENIZER)
    model.eval()
    with torch.no_grad():
        logits = model(example["input_ids"][None]).logits[0].double()
    pairs = [(i, int(label)) for i, label in enumerate(example["labels"]) if label != IGNORED]
    return [float(logits[i - 1].logsumexp(0) - logits[i - 1, token]) for i, token in pairs]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_loss_is_the_mean_over_all_span_tokens_whatever_the_batches(
    model: LlamaForCausalLM, batch_size: int
) -> None:
    expected = [nll for probe in PROBES for nll in reference_nll(model, probe)]
    score = evaluate(model, TOKENIZER, PROBES, batch_size=batch_size)
    assert score.nll == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert score.perplexity == pytest.approx(math.exp(score.nll))
    assert (score.tokens, score.examples) == (len(expected), 5)


def test_results_come_back_in_the_order_given(model: LlamaForCausalLM) -> None:
    losses = span_losses(model, encode(PROBES, TOKENIZER), batch_size=2)
    assert losses.nll.tolist() == pytest.approx(
        [sum(reference_nll(model, probe)) for probe in PROBES], rel=1e-5, abs=1e-5
    )


def test_answers_ranked_first_are_those_greedy_decoding_writes(model: LlamaForCausalLM) -> None:
    written = []
    for probe in PROBES[:4]:
        (example,) = encode([probe], TOKENIZER)
        prompt = example["input_ids"][example["labels"] == IGNORED]
        answer = example["input_ids"][len(prompt) :]
        model.eval()
        out = model.generate(prompt[None], max_new_tokens=len(answer), do_sample=False, pad_token_id=0)[0]
        written.append(torch.equal(out[len(prompt) :], answer))
    assert written == [True, False, True, False], "the model learned the first and the third by heart"
    assert evaluate(model, TOKENIZER, PROBES).ranked_first == 0.5


def test_spans_that_answer_no_prompt_have_no_ranking(model: LlamaForCausalLM) -> None:
    assert evaluate(model, TOKENIZER, PROBES[4:]).ranked_first is None


def test_the_model_keeps_its_modes_and_gradients_even_after_an_error(model: LlamaForCausalLM) -> None:
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    gradient = model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    evaluate(model, TOKENIZER, PROBES)
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(IndexError):
        span_losses(model, [{"input_ids": torch.tensor([1, 2]), "labels": torch.tensor([-100, 10**6])}])
    assert [module.training for module in model.modules()] == modes
    assert model.lm_head.weight.grad is gradient
    assert not torch.is_inference_mode_enabled()
    model.lm_head.weight.grad = None


def test_dropout_is_off_so_two_runs_agree_to_the_bit(model: LlamaForCausalLM) -> None:
    model.train()
    assert evaluate(model, TOKENIZER, PROBES) == evaluate(model, TOKENIZER, PROBES)


def test_under_bf16_autocast_the_softmax_is_still_in_fp32(model: LlamaForCausalLM) -> None:
    exact = evaluate(model, TOKENIZER, PROBES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = evaluate(model, TOKENIZER, PROBES)
        logits = model(torch.tensor([[1, 2]])).logits
    assert logits.dtype == torch.bfloat16
    assert rounded.nll == pytest.approx(exact.nll, rel=0.02)
    assert rounded.nll != float(torch.tensor(rounded.nll).bfloat16()), "a bf16 loss would have only 8 bits"


def test_labeled_positions_beyond_one_piece_are_all_counted(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(model, TOKENIZER, PROBES)
    monkeypatch.setattr("localopt.pretraining.evaluate.POSITIONS", 3)
    pieces = evaluate(model, TOKENIZER, PROBES)
    assert (pieces.tokens, pieces.ranked_first) == (whole.tokens, whole.ranked_first)
    assert pieces.nll == pytest.approx(whole.nll, rel=1e-6)


def test_text_is_scored_on_every_token_but_the_first_of_a_chunk(model: LlamaForCausalLM) -> None:
    score = evaluate_text(model, TOKENIZER, SENTENCES, length=16)
    chunks = encode_text(SENTENCES, TOKENIZER, 16)
    model.eval()
    with torch.no_grad():
        losses = [float(model(**{name: ids[None] for name, ids in chunk.items()}).loss) for chunk in chunks]
    total = sum(loss * (len(chunk["labels"]) - 1) for loss, chunk in zip(losses, chunks, strict=True))
    assert score.tokens == sum(len(chunk["labels"]) - 1 for chunk in chunks)
    assert score.nll == pytest.approx(total / score.tokens, rel=1e-5)
    assert score.ranked_first is None


def test_a_margin_is_the_mean_log_odds_of_the_answer_against_its_distractors(model: LlamaForCausalLM) -> None:
    others = {0: ["Port Amber", "Tomas Reed"], 1: ["Westhaven"]}
    asked = {i: (PROBES[i].prompt or "", PROBES[i].answer or "") for i in others}
    probes = [completion(*asked[i], extra={"distractors": others[i]}) for i in others]
    result = margins(model, TOKENIZER, probes)
    for i, margin, first in zip(others, result.margins, result.first, strict=True):
        answer = sum(reference_nll(model, PROBES[i]))
        rivals = [sum(reference_nll(model, completion(asked[i][0], other))) for other in others[i]]
        assert margin == pytest.approx(sum(rivals) / len(rivals) - answer, rel=1e-4)
        assert first == (answer < min(rivals))
    assert result.first == (True, False), "it knows Norland's capital and says it for Sudania too"
    assert result.as_dict() == {"margin": result.mean, "ranked_first": 0.5, "examples": 2}


def test_a_score_is_a_plain_record(model: LlamaForCausalLM) -> None:
    score = Score(nll=1.0, perplexity=math.e, tokens=3, examples=2)
    assert score.as_dict() == {"nll": 1.0, "perplexity": math.e, "tokens": 3, "examples": 2, "ranked_first": None}
    with pytest.raises(AttributeError):
        score.nll = 2.0  # type: ignore[misc]


def test_a_hopeless_model_has_infinite_perplexity_instead_of_an_overflow(model: LlamaForCausalLM) -> None:
    wild = tiny_model(TOKENIZER)
    with torch.no_grad():
        wild.lm_head.weight.mul_(1e4)
    score = evaluate(wild, TOKENIZER, PROBES)
    assert score.nll > 700
    assert score.perplexity == math.inf


def test_what_cannot_be_evaluated_is_said(model: LlamaForCausalLM) -> None:
    with pytest.raises(InputError, match="no probes to evaluate"):
        evaluate(model, TOKENIZER, [])
    with pytest.raises(InputError, match=r'probes\.jsonl:3: a margin needs "distractors"'):
        margins(model, TOKENIZER, [completion("The river is", "Amber", "probes.jsonl:3")])
    with pytest.raises(InputError, match="batch_size is 0"):
        evaluate(model, TOKENIZER, PROBES, batch_size=0)
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=300, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    with pytest.raises(InputError, match="T5ForConditionalGeneration is an encoder-decoder"):
        evaluate(t5, TOKENIZER, PROBES)
    with pytest.raises(InputError, match="more than the maximum of 4"):
        evaluate(model, TOKENIZER, [completion("The river", "Westhaven and Port Amber")], max_length=4)


def test_progress_is_written_to_the_error_stream_alone(
    model: LlamaForCausalLM, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    evaluate(model, TOKENIZER, PROBES, progress=True)
    assert capsys.readouterr().out == ""
