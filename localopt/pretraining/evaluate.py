"""Model + probes -> loss on the spans, perplexity, answers ranked first, margins over distractors.

All losses are negative log-likelihoods in nats. The model is read, never changed: it runs in eval mode and
`torch.inference_mode`, and every module's own mode is put back afterwards, also after an exception.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from localopt.errors import InputError
from localopt.pretraining.probes import IGNORED, Example, Probe, completion, encode, encode_text
from localopt.pretraining.vocabulary import refuse_beyond
from localopt.tracing.progress import progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

POSITIONS = 1024  # labeled positions whose logits are in fp32 at a time: 200 MB for a vocabulary of 49,000


@dataclass(frozen=True)
class Score:
    """Loss of a model on a set of examples.

    `nll`: nats per labeled token, averaged over all tokens of all examples; `perplexity`: exp(nll); `tokens`,
    `examples`: how many; `ranked_first`: share of the prompt/answer probes whose whole answer greedy decoding would
    produce, None if there are no such probes.
    """

    nll: float
    perplexity: float
    tokens: int
    examples: int
    ranked_first: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Margins:
    """How much likelier each answer is than its distractors.

    `margins`: per probe, in nats, the mean over its distractors of NLL(distractor) - NLL(answer), where the NLL is
    *summed* over the tokens; so a margin is the mean log odds of the answer against a distractor, whatever pieces the
    tokenizer cuts them in. `first`: per probe, whether the answer is likelier than every distractor.
    """

    margins: tuple[float, ...]
    first: tuple[bool, ...]

    @property
    def mean(self) -> float:
        return math.fsum(self.margins) / len(self.margins)

    @property
    def ranked_first(self) -> float:
        return sum(self.first) / len(self.first)

    def as_dict(self) -> dict[str, Any]:
        return {"margin": self.mean, "ranked_first": self.ranked_first, "examples": len(self.margins)}


@dataclass(frozen=True)
class SpanLosses:
    """Per example, in the order given: `nll` (N,) fp64 summed over its labeled tokens, `tokens` (N,) int64 their
    number, `exact` (N,) bool whether every labeled token is the model's first choice."""

    nll: Tensor
    tokens: Tensor
    exact: Tensor


def evaluate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    probes: Sequence[Probe],
    *,
    batch_size: int = 8,
    max_length: int | None = None,
    progress: bool = False,
) -> Score:
    """Score a causal language model on the spans of probes.

    `max_length` (default: the model's number of positions) is where contexts are cut, see `probes.encode`.

    `ranked_first` needs no decoding: greedy decoding writes the answer a_1 ... a_n exactly when a_1 is the first
    choice after the prompt, a_2 after the prompt and a_1, and so on; these are the contexts of the teacher-forced
    pass, so it is enough that the argmax equals the answer's token at each of its positions (by induction over them).
    The tokens are those of prompt and answer written as one text.

    Raises:
        InputError: no probes, an encoder-decoder or other model without next-token logits, what `encode` raises.
    """
    if not probes:
        raise InputError("there are no probes to evaluate: give at least one.")
    limit = max_length or positions(model)
    losses = span_losses(model, encode(probes, tokenizer, limit), batch_size=batch_size, progress=progress)
    asked = torch.tensor([probe.answer is not None for probe in probes])
    ranked_first = losses.exact[asked].double().mean().item() if asked.any() else None
    return _score(losses, ranked_first)


def evaluate_text(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    length: int = 512,
    batch_size: int = 8,
    progress: bool = False,
) -> Score:
    """Score a causal language model on ordinary text, packed into chunks of `length` tokens (`probes.encode_text`)."""
    limit = positions(model)
    examples = encode_text(texts, tokenizer, min(length, limit) if limit else length)
    return evaluate_examples(model, examples, batch_size=batch_size, progress=progress)


def evaluate_examples(
    model: nn.Module, examples: Sequence[Example], *, batch_size: int = 8, progress: bool = False
) -> Score:
    """Score a causal language model on the labeled tokens of examples that are encoded already."""
    return _score(span_losses(model, examples, batch_size=batch_size, progress=progress), None)


def margins(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    probes: Sequence[Probe],
    *,
    batch_size: int = 32,
    max_length: int | None = None,
    progress: bool = False,
) -> Margins:
    """Compare each answer with the probe's distractors (`extra["distractors"]`, a list of other answers).

    Raises:
        InputError: no probes, a probe without a prompt or without distractors.
    """
    if not probes:
        raise InputError("there are no probes to evaluate: give at least one.")
    candidates, sizes = [], []
    for probe in probes:
        distractors = probe.extra.get("distractors")
        if probe.prompt is None or probe.answer is None:
            raise InputError(f"{probe.source}: a margin needs a prompt and an answer.")
        if not isinstance(distractors, list) or not distractors or not all(isinstance(d, str) for d in distractors):
            raise InputError(f'{probe.source}: a margin needs "distractors", a list of other answers.')
        sizes.append(1 + len(distractors))
        candidates += [completion(probe.prompt, answer, probe.source) for answer in (probe.answer, *distractors)]
    examples = encode(candidates, tokenizer, max_length or positions(model))
    losses = torch.split(span_losses(model, examples, batch_size=batch_size, progress=progress).nll, sizes)
    values = tuple((nll[1:].mean() - nll[0]).item() for nll in losses)
    return Margins(values, tuple(bool((nll[1:] > nll[0]).all()) for nll in losses))


def span_losses(
    model: nn.Module, examples: Sequence[Example], *, batch_size: int = 8, progress: bool = False
) -> SpanLosses:
    """Loss and exactness of every example's labeled tokens, read off one forward pass a batch.

    Examples of like length share a batch, padded on the right behind an attention mask, so a causal model's result
    does not depend on its neighbors (beyond the rounding of differently shaped products). Softmax and loss are
    computed in fp32, at the labeled positions only, whatever the model's dtype or autocast.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}: it must be at least 1.")
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise InputError(f"{type(model).__name__} is an encoder-decoder: only causal language models can be evaluated.")
    refuse_beyond(examples, model)
    nll = torch.zeros(len(examples), dtype=torch.float64)
    tokens = torch.zeros(len(examples), dtype=torch.int64)
    exact = torch.ones(len(examples), dtype=torch.bool)
    order = sorted(range(len(examples)), key=lambda i: -len(examples[i]["input_ids"]))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    device = next(model.parameters()).device
    takes = inspect.signature(model.forward).parameters
    with _reading(model), progress_bar(progress, transient=True) as bar:
        for batch in bar.track(batches, description="evaluating"):
            ids, labels, attention = (part.to(device) for part in padded([examples[i] for i in batch]))
            # The logits at position t predict token t + 1. Only positions labeled in some row go through the head.
            columns = (labels[:, 1:] != IGNORED).any(0).nonzero().flatten()
            targets = labels[:, columns + 1]
            options = {"use_cache": False, "logits_to_keep": columns}
            options = {name: value for name, value in options.items() if name in takes}
            logits = model(input_ids=ids, attention_mask=attention, **options).logits
            logits = logits if "logits_to_keep" in options else logits[:, columns]
            # Sums are taken on the CPU: the same on every run.
            for where in torch.split((targets != IGNORED).nonzero(), POSITIONS):
                row, column = where.unbind(1)
                scores, wanted = logits[row, column].float(), targets[row, column]
                loss = nn.functional.cross_entropy(scores, wanted, reduction="none").cpu().double()
                index = torch.tensor(batch)[row.cpu()]
                nll.index_add_(0, index, loss)
                tokens.index_add_(0, index, torch.ones_like(index))
                exact[index[(scores.argmax(-1) != wanted).cpu()]] = False
    return SpanLosses(nll, tokens, exact)


def _score(losses: SpanLosses, ranked_first: float | None) -> Score:
    tokens = int(losses.tokens.sum())
    nll = losses.nll.sum().item() / tokens
    perplexity = math.exp(nll) if nll < 700 else math.inf
    return Score(nll, perplexity, tokens, len(losses.tokens), ranked_first)


def padded(examples: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """(input_ids, labels, attention_mask), each (B, T). What pads the ids is masked, so any id will do."""

    def stack(tensors: list[Tensor], value: int) -> Tensor:
        return nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)

    ids = [example["input_ids"] for example in examples]
    labels = stack([example["labels"] for example in examples], IGNORED)
    return stack(ids, 0), labels, stack([torch.ones_like(i) for i in ids], 0)


def positions(model: nn.Module) -> int | None:
    """The longest text a model can read, in tokens; None where its configuration does not say."""
    longest = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return int(longest) if longest else None


@contextmanager
def _reading(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes:
            module.training = training
