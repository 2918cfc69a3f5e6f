"""MEMIT, mass-editing memory in a transformer (Meng et al. 2023, arXiv 2210.07229): an edit without training.

For each fact, what the hidden state behind the last of some MLPs has to become at the last token of the subject is
found by gradient descent on what is added to it:

    z_i = h_i + argmin over d of NLL(answer | prompt, h_i + d) + decay * |d|^2 / |h_i|^2,    |d| <= clamp * |h_i|.

Then each of those MLPs in turn, the last but j of them, takes a share of what is missing, r_i = (z_i - h_i) / (j + 1),
into its second matrix W, which maps keys k_i (what it reads at that token) to values. With K and R of all facts as
columns and C = E[k k^T] over ordinary text, |Delta K - R|^2 + strength * tr(Delta C Delta^T) is least for

    Delta = R K^T (strength * C + K K^T)^(-1).

Settings, of MEMIT for LLaMA-2-7B in EasyEdit, by depth: blocks 4 to 8 of 32, 25 steps at a rate of 0.5, clamp 4, decay
1e-3, strength 15,000 for MLPs of 11,008 units; strength goes with the units, since k^T C^-1 k does. `best_layer` takes
as many MLPs with the most gain over damage instead. C is of 16,384 tokens of ordinary text (256 pieces of 64) that
neither the start nor a trace reads.

Departures: the prompt is what stands before the answer in its passage, its last 32 tokens; no random texts before it,
and no KL term on what the subject is; where the subject is not named there, the token before the answer stands for it.
The rate of a sweep has no meaning here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.lifelong.data.passages import answers_in_passages, subject_of
from benchmarks.lifelong.methods.fine_tuned_layer import only
from benchmarks.lifelong.methods.mixreview import unread
from benchmarks.lifelong.methods.norms import block_modules
from benchmarks.lifelong.methods.rules import Case, Online, Scales, kind_of
from benchmarks.lifelong.methods.study import Lesson
from localopt.layers import locate, partition
from localopt.pretraining.evaluate import padded
from localopt.pretraining.probes import IGNORED, Example

FIRST, LAST, OF = 4, 8, 32
STEPS, RATE, CLAMP, DECAY = 25, 0.5, 4.0, 1e-3
STRENGTH, UNITS = 15_000, 11_008
PROMPT = 32  # tokens, with the answer
PIECES = 256
AT_ONCE = 16


@dataclass(frozen=True)
class Edit:
    """A fact as a sequence with the loss on its answer, and where in it the last token of the subject is."""

    example: Example
    place: int


def early_mlps(case: Case) -> Scales:
    """The second matrices of the MLPs of the blocks that are to be edited."""
    blocks = 1 + max(index for layer in case.layers if (index := locate(layer)[1]) is not None)
    first, last = (min(blocks - 1, round(n / OF * blocks)) for n in (FIRST, LAST))
    chosen = [layer for layer in case.layers if kind_of(layer) == "mlp" and first <= (locate(layer)[1] or 0) <= last]
    return only(case, chosen)


def memit(lesson: Lesson, plan: Scales | Online) -> None:
    """Write the passages' facts into the matrices of the plan."""
    assert isinstance(plan, dict)
    model = lesson.model.eval()
    edits = facts(lesson)
    matrices = _linear_maps(model, plan)
    with lesson.settings.autocast():
        wanted = targets(model, edits, matrices[-1][0])
        second = covariances(model, [matrix for _, matrix in matrices], unread(lesson)[:PIECES])
        for number, (_, matrix) in enumerate(matrices):
            left = len(matrices) - number
            keys, states = _keys_and_states(model, edits, matrix, matrices[-1][0])
            strength = STRENGTH * matrix.in_features / UNITS
            with torch.no_grad():
                change = closed_form(keys, (wanted - states) / left, second[number], strength)
                matrix.weight.add_(change.to(matrix.weight.dtype))


def closed_form(keys: Tensor, missing: Tensor, covariance: Tensor, strength: float) -> Tensor:
    """Delta (d, m) of keys (n, m), of what is missing of their values (n, d), and of E[k k^T] (m, m).

    >>> closed_form(torch.tensor([[2.0, 0.0]]), torch.tensor([[6.0]]), torch.eye(2), 4.0)  # 6 * 2 / (4 + 4)
    tensor([[1.5000, 0.0000]], dtype=torch.float64)
    """
    keys, missing = keys.double(), missing.double()
    system = strength * covariance.double() + keys.T @ keys
    return torch.linalg.solve(system, keys.T @ missing).T


def facts(lesson: Lesson) -> list[Edit]:
    """The facts of a half's passages, each read up to its answer."""
    edits = []
    for probe in answers_in_passages(lesson.prepared, lesson.case.half):
        begin, end = probe.span[0]
        encoded = lesson.tokenizer(probe.text[:end], return_offsets_mapping=True, verbose=False)
        ids, offsets = encoded["input_ids"][-PROMPT:], encoded["offset_mapping"][-PROMPT:]
        answer = [b > begin for _, b in offsets]
        answer[0] = False
        subject = subject_of(probe)
        named = probe.text.rfind(subject, 0, begin)
        places = [i for i, (a, b) in enumerate(offsets) if a < named + len(subject) <= b] if named >= 0 else []
        place = places[0] if places else answer.index(True) - 1
        labels = [one if asked else IGNORED for one, asked in zip(ids, answer, strict=True)]
        edits.append(Edit({"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}, place))
    return edits


def targets(model: PreTrainedModel, edits: Sequence[Edit], block: int) -> Tensor:
    """What the hidden state behind a block has to be at the subject of each edit, (n, d), fp32."""
    found = []
    for some in _batches(edits):
        ids, labels, attention = padded([edit.example for edit in some])
        rows, places = torch.arange(len(some)), torch.tensor([edit.place for edit in some])
        more = torch.zeros(len(some), model.config.hidden_size, requires_grad=True)
        optimizer = torch.optim.Adam([more], lr=RATE)
        begin: list[Tensor] = []

        def added(
            module: nn.Module,
            given: Any,
            output: Any,
            rows: Tensor = rows,
            places: Tensor = places,
            more: Tensor = more,
            begin: list[Tensor] = begin,
        ) -> Any:
            hidden: Tensor = output[0] if isinstance(output, tuple) else output
            if not begin:
                begin.append(hidden[rows, places].detach().float())
            hidden = hidden.index_put((rows, places), more.to(hidden.dtype), accumulate=True)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        with _hooked(block_modules(model)[block], added):
            for _ in range(STEPS):
                logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits[:, :-1].float()
                nll = nn.functional.cross_entropy(
                    logits.transpose(1, 2), labels[:, 1:], ignore_index=IGNORED, reduction="none"
                )
                each = nll.sum(1) / (labels[:, 1:] != IGNORED).sum(1)
                size = begin[0].norm(dim=1)
                loss = (each + DECAY * more.norm(dim=1).square() / size.square()).sum()  # edits do not touch each other
                (more.grad,) = torch.autograd.grad(loss, [more])
                optimizer.step()
                with torch.no_grad():
                    more.mul_((CLAMP * size / more.norm(dim=1).clamp(min=1e-12)).clamp(max=1)[:, None])
        found.append(begin[0] + more.detach())
    return torch.cat(found)


@torch.no_grad()
def covariances(model: PreTrainedModel, matrices: Sequence[nn.Linear], texts: Sequence[Example]) -> list[Tensor]:
    """E[k k^T] of what each matrix reads, over all tokens of the texts, (m, m)."""
    sums = [torch.zeros(matrix.in_features, matrix.in_features) for matrix in matrices]
    count = 0
    for some in _batches(texts):
        ids, _, attention = padded(some)
        read: list[list[Tensor]] = [[] for _ in matrices]
        with ExitStack() as hooks:
            for kept, matrix in zip(read, matrices, strict=True):
                hooks.enter_context(_hooked(matrix, _keeper(kept)))
            model(input_ids=ids, attention_mask=attention, use_cache=False)
        here = attention.bool()
        count += int(here.sum())
        for total, kept in zip(sums, read, strict=True):
            keys = kept[0][here].float()
            total += keys.T @ keys
    return [total / count for total in sums]


@torch.no_grad()
def _keys_and_states(
    model: PreTrainedModel, edits: Sequence[Edit], matrix: nn.Linear, block: int
) -> tuple[Tensor, Tensor]:
    """What a matrix reads, and the hidden state behind a block, at the subject of each edit: (n, m), (n, d), fp32."""
    keys, states = [], []
    for some in _batches(edits):
        ids, _, attention = padded([edit.example for edit in some])
        rows, places = torch.arange(len(some)), torch.tensor([edit.place for edit in some])
        read: list[Tensor] = []
        behind: list[Tensor] = []

        def keep(module: nn.Module, given: Any, output: Any, behind: list[Tensor] = behind) -> None:
            behind.append(output[0] if isinstance(output, tuple) else output)

        with _hooked(matrix, _keeper(read)), _hooked(block_modules(model)[block], keep):
            model(input_ids=ids, attention_mask=attention, use_cache=False)
        keys.append(read[0][rows, places].float())
        states.append(behind[0][rows, places].float())
    return torch.cat(keys), torch.cat(states)


def _linear_maps(model: nn.Module, plan: Scales) -> list[tuple[int, nn.Linear]]:
    """The matrices of a plan with the block each is in, by depth."""
    names = partition([name for name, _ in model.named_parameters()], "matrix")
    chosen = {layer for layer, scale in plan.items() if scale > 0}
    found = []
    for name, layer in names.items():
        module = model.get_submodule(name.rpartition(".")[0])
        if layer in chosen and isinstance(module, nn.Linear):
            found.append((locate(layer)[1] or 0, module))
    return sorted(found, key=lambda pair: pair[0])


def _keeper(kept: list[Tensor]) -> Callable[..., None]:
    def keep(module: nn.Module, given: tuple[Tensor, ...], output: Any) -> None:
        kept.append(given[0])

    return keep


@contextmanager
def _hooked(module: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _batches(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[i : i + AT_ONCE] for i in range(0, len(items), AT_ONCE))
