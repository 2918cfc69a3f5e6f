"""A model -> text of its own: what it knows already, where there is no file to say it.

Tokens are drawn from the model's distribution p, at temperature T from p^(1/T), one after the other from its
beginning-of-text token on. Token t of sample i is the first one at which the cumulated probabilities exceed u_it, and
the uniform numbers u are drawn beforehand, so the samples depend on the model and the seed, not on how many are written
at a time, nor on the random state of the caller.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from math import inf
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from rich.progress import Progress
from torch import Tensor, nn

from localopt.errors import InputError
from localopt.tracing.lending import borrowed, refuse_wrapped
from localopt.tracing.measure import place
from localopt.tracing.progress import progress_bar
from localopt.tracing.together import shared_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerBase

AT_ONCE = 32
"""Samples that are written together."""

_REMEDY = "give the trace a reference= (ordinary text, or facts to keep)"


@dataclass(frozen=True)
class Samples:
    """How a model writes text of its own.

    Attributes:
        count: how many samples.
        length: tokens of each, behind the one it begins with; a sample also ends with the model's end-of-text token.
        temperature: 1 for what the model has learned; below 1 for what it is sure of.
        seed: another seed is other text.
        start: the token to begin with; None for the model's beginning-of-text token.

    Raises:
        InputError: a value that means nothing.

    Examples:
        >>> Samples(count=8).held_out()
        Samples(count=8, length=64, temperature=1.0, seed=1, start=None)
    """

    count: int = 64
    length: int = 64
    temperature: float = 1.0
    seed: int = 0
    start: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("count", 1), ("length", 1), ("seed", 0), ("start", 0)):
            value = getattr(self, name)
            if (type(value) is not int or value < least) and not (name == "start" and value is None):
                raise InputError(f"Samples({name}={value!r}): {name} has to be a whole number of at least {least}")
        if not 0 < self.temperature < inf:
            raise InputError(f"Samples(temperature={self.temperature!r}): a temperature is a finite number above 0")

    def held_out(self) -> Samples:
        """The same settings with another seed: text that no trace has seen, to measure forgetting on."""
        return replace(self, seed=self.seed + 1)

    def metadata(self) -> dict[str, Any]:
        """What a trace keeps of it."""
        return asdict(self)


def sample(
    model: nn.Module, samples: Samples | None = None, *, distributed: bool = False, progress: bool = False
) -> list[dict[str, Tensor]]:
    """Let a causal language model of transformers (or one with LoRA) write, and return what it wrote as examples.

    It writes with its key-value cache, in evaluation mode, without the settings it would generate with otherwise
    (repetition penalties, top-k and the like), and is given back as it was.

    Args:
        model: not wrapped by DDP, FSDP or DeepSpeed.
        samples: how many, how long, and so on; None for ``Samples()``.
        distributed: share the work among the processes of the default process group; all get the same samples.
        progress: show a bar with the remaining time on standard error.

    Returns:
        ``{"input_ids": (T,), "labels": (T,)}``, int64 on the CPU, for every sample; the loss is on every token.

    Raises:
        InputError: the model cannot generate (an encoder, an encoder-decoder, no model of transformers), knows no
            beginning-of-text token, or has not that many positions.
        ValueError: the model is wrapped.

    Examples:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> shape = dict(vocab_size=40, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
        >>> model = LlamaForCausalLM(LlamaConfig(**shape, bos_token_id=1, eos_token_id=None))
        >>> [len(example["input_ids"]) for example in sample(model, Samples(count=3, length=6))]
        [7, 7, 7]
    """
    refuse_wrapped(model, "sample from")
    with borrowed(model), progress_bar(progress) as bar:
        return written(model, samples or Samples(), bar, distributed=distributed)


def readable(examples: Iterable[Mapping[str, Tensor]], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Text of every example, without the tokens that stand for no text."""
    return [str(tokenizer.decode(example["input_ids"], skip_special_tokens=True)) for example in examples]


def written(model: nn.Module, samples: Samples, bar: Progress, *, distributed: bool = False) -> list[dict[str, Tensor]]:
    """What :func:`sample` returns, for the model as :func:`localopt.tracing.lending.borrowed` lends it."""
    start = first_token(model, samples)
    rank, processes = place(distributed)
    uniform = torch.rand(
        samples.count, samples.length, dtype=torch.float64, generator=torch.Generator().manual_seed(samples.seed)
    )
    mine: list[Tensor] = []
    with shared_errors(distributed):
        task = bar.add_task("samples", total=len(uniform[rank::processes]))
        for part in torch.split(uniform[rank::processes], AT_ONCE):
            mine += _rows(model, start, part, samples.temperature)
            bar.advance(task, len(part))
    rows: list[Tensor] = mine
    if distributed:
        shares: list[list[Tensor]] = [[] for _ in range(processes)]
        dist.all_gather_object(shares, mine)
        rows = [shares[i % processes][i // processes] for i in range(samples.count)]
    return [{"input_ids": row, "labels": row.clone()} for row in rows]


def first_token(model: nn.Module, samples: Samples) -> int:
    """The token every sample begins with. InputError if the model cannot write ``samples``, before it has run."""
    kind, config = type(_plain(model)).__name__, getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(f"{kind} is an encoder-decoder, which writes nothing without a text to read: {_REMEDY}")
    can_generate = getattr(_plain(model), "can_generate", None)
    if config is None or can_generate is None or not can_generate():
        raise InputError(f"{kind} cannot generate text, so it has no samples of its own: {_REMEDY}")
    positions, vocabulary = (getattr(config, name, None) for name in ("max_position_embeddings", "vocab_size"))
    if positions is not None and samples.length >= positions:
        raise InputError(
            f"Samples(length={samples.length}): with the token it begins with, a sample is longer than the {positions} "
            f"positions of {kind}: choose a smaller length"
        )
    start = samples.start if samples.start is not None else _token(model, "bos_token_id")
    if start is None:
        raise InputError(
            f"{kind} knows no beginning-of-text token (bos_token_id is None): {_REMEDY}, or the token to begin with "
            "as reference=Samples(start=...)"
        )
    if vocabulary is not None and not start < vocabulary:
        raise InputError(f"a sample would begin with token {start}, and {kind} has tokens up to {vocabulary - 1}")
    return start


def _rows(model: nn.Module, start: int, uniform: Tensor, temperature: float) -> list[Tensor]:
    """Samples of one batch, each (T,); ``uniform`` is (B, length)."""
    from transformers import GenerationConfig

    plain: Any = _plain(model)
    ends = _ends(model)
    begin = torch.full((len(uniform), 1), start, device=next(model.parameters()).device)

    def drawn(tokens: Tensor, scores: Tensor) -> Tensor:
        """Leave the token that u falls on as the only one that can follow. The prompt is one token long."""
        wide = torch.float32 if scores.device.type == "mps" else torch.float64
        cumulated = (scores.to(wide) / temperature).softmax(-1).cumsum(-1)
        reached = uniform[:, tokens.shape[1] - 1, None].to(scores.device, wide) * cumulated[:, -1:]
        token = torch.searchsorted(cumulated, reached, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -inf).scatter(-1, token, 0.0)

    how = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=uniform.shape[1],
        do_sample=False,  # greedy, among the one token that is left
        use_cache=True,
        bos_token_id=start,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
    )
    with _unset(plain):
        rows = plain.generate(
            begin, attention_mask=torch.ones_like(begin), generation_config=how, logits_processor=[drawn]
        )
    return [_ended(row, ends) for row in rows.cpu()]


def _ended(row: Tensor, ends: list[int]) -> Tensor:
    """The row up to its end-of-text token; the one it begins with may be the same."""
    stops = torch.isin(row[1:], torch.tensor(ends, dtype=row.dtype)).nonzero()
    return row[: int(stops[0]) + 2].clone() if len(stops) else row.clone()


@contextmanager
def _unset(model: Any) -> Iterator[None]:
    """Inside, the model has no settings of its own for generating, which would be mixed into those of the call."""
    from transformers import GenerationConfig

    kept = model.generation_config
    try:
        model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
        yield
    finally:
        model.generation_config = kept


def _plain(model: nn.Module) -> nn.Module:
    """The model of transformers that peft has put adapters into."""
    base = getattr(model, "get_base_model", None)
    return base() if callable(base) else model


def _ends(model: nn.Module) -> list[int]:
    found = _token(model, "eos_token_id")
    return [] if found is None else found if isinstance(found, list) else [found]


def _token(model: nn.Module, name: str) -> Any:
    """A special token by the settings for generating, or by the model's."""
    places = (getattr(_plain(model), "generation_config", None), getattr(model, "config", None))
    return next((value for place in places if (value := getattr(place, name, None)) is not None), None)
