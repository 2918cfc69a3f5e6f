"""What is known of a start's layers: gradient norms on the sets that traces are made of, measured when first asked for.

Sets: `A`, `B`: the passages of a half, the loss on the answer alone (what a user has before training; no question of
the exam). `corpusA`, `corpusB`: the same passages, the loss on every token. `own`: what the start itself writes.
`text`: ordinary text that the start has not read. `near`, `far`: facts to keep, never tested; `kept`: both. A number at
the end (`kept16`) takes that many examples.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.lifelong.data.passages import SPLITS, answers_in_passages, lessons
from benchmarks.lifelong.start import plain_text
from localopt import trace_layers
from localopt.layers import locate, partition
from localopt.pretraining.evaluate import span_losses
from localopt.pretraining.probes import Example, Probe, encode, read_probes
from localopt.tracing.examples import one_by_one
from localopt.tracing.gains import first_step
from localopt.tracing.ghost import Batched
from localopt.tracing.layer_trace import LayerTrace
from localopt.tracing.lending import borrowed, trained_layers
from localopt.tracing.measure import add_up, example_name, example_squares, own_loss

EXAMPLES = 64
FEW = 16  # for what takes a pass an example and block, or is measured anew in every run
SIDES = ("gain", "damage")


class Norms:
    """N_l by set, in a file beside the start's weights.

    `at_start` puts the model back to the start's weights; it is called before anything is measured.
    """

    def __init__(
        self,
        file: Path,
        prepared: Path,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        length: int,
        at_start: Callable[[], None],
    ) -> None:
        self.file, self.prepared, self.length = file, prepared, length
        self.model, self.tokenizer, self.at_start = model, tokenizer, at_start
        self.known: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.is_file() else {}

    def remembered(self, key: str, measured: Callable[[], dict[str, float]]) -> dict[str, float]:
        """What `measured` finds of the model at the start; known the next time."""
        if key not in self.known:
            self.at_start()
            self._keep(key, measured())
        return self.known[key]

    def trace(self, half: str, reference: str) -> LayerTrace:
        """R of a half's passages relative to a set, or to several joined by "+", each divided by its mean over layers.

        So `text+kept` weighs what ordinary text needs and what facts to keep need alike.
        """
        parts = [self[name] for name in reference.split("+")]
        probe = self[half]
        joined = torch.stack([torch.tensor(list(part.values())) for part in parts])
        joined = joined / joined.mean(1, keepdim=True) if len(parts) > 1 else joined
        return LayerTrace(tuple(probe), torch.tensor(list(probe.values())), joined.mean(0))

    def __getitem__(self, name: str) -> dict[str, float]:
        if name not in self.known:
            self.at_start()
            examples = self.examples(name)
            trace = trace_layers(self.model, examples, examples[:1])
            self._keep(name, dict(zip(trace.layers, trace.probe_norms.tolist(), strict=True)))
        return self.known[name]

    def gain_over_damage(
        self, half: str, reference: str, layers: Literal["sublayer", "matrix"] = "sublayer"
    ) -> dict[str, float]:
        """What a step on each layer wins on a half's news over what it costs a set to keep.

        Of several sets joined by "+" it is the harmonic mean, each first divided by its own: costs add up.
        """
        if "+" in reference:
            found = [self.gain_over_damage(half, part, layers) for part in reference.split("+")]
            parts = [torch.tensor(list(part.values())) for part in found]
            costs = torch.stack([part.reciprocal() / part.reciprocal().mean() for part in parts])
            return dict(zip(found[0], costs.mean(0).reciprocal().tolist(), strict=True))
        key = f"gain/damage {half} {reference}" + (" by matrix" if layers == "matrix" else "")
        if key not in self.known:
            self.at_start()
            sets = self.examples(half), self.examples(reference)
            trace = trace_layers(self.model, *sets, score="gains", layers=layers)
            self._keep(key, dict(zip(trace.layers, trace.relative_norms.tolist(), strict=True)))
        return self.known[key]

    def damages(self, half: str, reference: str) -> LayerTrace:
        """Gains and damages apart, as a trace holds them."""
        key = f"gains and damages {half} {reference}"
        if key not in self.known:
            self.at_start()
            trace = trace_layers(self.model, self.examples(half), self.examples(reference), score="gains")
            pairs = zip(trace.layers, trace.probe_norms.tolist(), trace.reference_norms.tolist(), strict=True)
            self._keep(
                key,
                {f"{side} {layer}": value for layer, *pair in pairs for side, value in zip(SIDES, pair, strict=True)},
            )
        known = self.known[key]
        layers = tuple(name.removeprefix("gain ") for name in known if name.startswith("gain "))
        gains, damages = (torch.tensor([known[f"{side} {layer}"] for layer in layers]) for side in SIDES)
        return LayerTrace(layers, gains, damages, {"score": "gains"})

    def joint_rates(self, half: str, reference: str) -> dict[str, float]:
        """The rates of layers that win most on a half's news for what they cost a set to keep, as one step.

        Unlike `gain_over_damage` it knows that what one layer does to an example another may undo. With gains g and
        moves M, of E examples, the rates are the s >= 0 that maximize <g, s> - s^T C s / 2, C = M^T M / E, of which
        what is beside the diagonal is halved: it is not well known from so few examples.
        """
        key = f"joint rates {half} {reference}"
        if key not in self.known:
            self.at_start()
            with borrowed(self.model):
                sets = (one_by_one(self.examples(name), name) for name in (half, reference))
                layer_of = trained_layers(self.model, "sublayer")
                step = first_step(self.model, *sets, layer_of, batched=Batched(self.model, layer_of))
            cost = step.moves.T @ step.moves / len(step.moves)
            cost = (cost + cost.diag().diag()) / 2
            self._keep(key, dict(zip(step.layers, best_rates(step.gains, cost).tolist(), strict=True)))
        return self.known[key]

    def sizes(self) -> dict[str, float]:
        """Root mean square of the weights of each layer at the start."""
        self.at_start()
        found: dict[str, list[Tensor]] = {}
        parameters = dict(self.model.named_parameters())
        for name, layer in partition(parameters, "sublayer").items():
            found.setdefault(layer, []).append(parameters[name].detach().flatten())
        return {layer: torch.cat(parts).square().mean().sqrt().item() for layer, parts in found.items()}

    def condition_numbers(self) -> dict[str, float]:
        """Largest over smallest singular value of every weight matrix of the blocks at the start."""
        key = "condition numbers"
        if key not in self.known:
            self.at_start()
            parameters = dict(self.model.named_parameters())
            found = {}
            for name, layer in partition(parameters, "matrix").items():
                if parameters[name].dim() == 2 and locate(layer)[1] is not None:
                    values = torch.linalg.svdvals(parameters[name].detach().float())
                    found[layer] = float(values[0] / values[-1].clamp(min=1e-12))
            self._keep(key, found)
        return self.known[key]

    def missed(self, name: str) -> dict[int, float]:
        """How far the loss on a set rises at the start, nats a token, when a block is left out, by block."""
        key = f"missed {name}"
        if key not in self.known:
            self.at_start()
            examples = self.examples(name)[:FEW]
            blocks = block_modules(self.model)
            whole = self._loss(examples)
            found = {}
            for number, block in enumerate(blocks):
                handle = block.register_forward_hook(_skipped, with_kwargs=True)
                found[str(number)] = self._loss(examples) - whole
                handle.remove()
            self._keep(key, found)
        return {int(block): rise for block, rise in self.known[key].items()}

    def importance(self, name: str) -> dict[str, float]:
        """Mean of |w * dL/dw| over the entries of every matrix of the model, L the mean loss on a set at the start."""
        key = f"importance {name}"
        if key not in self.known:
            gradients = self.mean_gradient(name)
            parameters = dict(self.model.named_parameters())
            sums: dict[str, list[float]] = {}
            for one, layer in partition(parameters, "matrix").items():
                p = parameters[one]
                if p.dim() < 2:
                    continue
                total = sums.setdefault(layer, [0.0, 0.0])
                total[0] += float((p.detach() * gradients[p]).abs().sum())
                total[1] += p.numel()
            self._keep(key, {layer: total / count for layer, (total, count) in sums.items()})
        return self.known[key]

    def moves(self, name: str, change: Mapping[str, Tensor]) -> Tensor:
        """How far a change of the start's weights moves the loss of each example, layer by layer: <g, change>, (E, L).

        To first order; in the order of the layers' names.
        """
        self.at_start()
        parameters = dict(self.model.named_parameters())
        layer_of = partition(parameters, "sublayer")
        layers = list(dict.fromkeys(layer_of.values()))
        rows = []
        with borrowed(self.model):
            for example in one_by_one(self.examples(name)[:FEW], name):
                loss = self.model(**example, use_cache=False).loss
                gradients = torch.autograd.grad(loss, list(parameters.values()))
                row = torch.zeros(len(layers), dtype=torch.float64)
                for (one, _), gradient in zip(parameters.items(), gradients, strict=True):
                    row[layers.index(layer_of[one])] += float((gradient * change[one]).sum())
                rows.append(row)
        return torch.stack(rows)

    @torch.inference_mode()
    def _loss(self, examples: Sequence[Example]) -> float:
        losses = span_losses(self.model, examples, batch_size=FEW)
        return float(losses.nll.sum() / losses.tokens.sum())

    def mean_gradient(self, name: str) -> dict[Tensor, Tensor]:
        """The mean gradient of the loss over a set at the start, by parameter."""
        self.at_start()
        parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        layer_of = partition(parameters, "sublayer")
        sums: dict[str, Tensor] = {}
        examples = list(one_by_one(self.examples(name), name))
        with borrowed(self.model):
            for number, example in enumerate(examples):
                where = example_name(number, name)
                example_squares(self.model, example, layer_of, own_loss, where, partial(add_up, sums))
        return {parameters[name]: value / len(examples) for name, value in sums.items()}

    def _keep(self, name: str, values: dict[str, float]) -> None:
        self.known[name] = values
        self.file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps(self.known))
        partial.rename(self.file)

    def examples(self, name: str) -> list[Example]:
        kind, number = re.fullmatch(r"(\w+?)(\d*)", name).groups()  # type: ignore[union-attr]
        count = int(number or EXAMPLES)
        if kind in SPLITS:
            return encode(answers_in_passages(self.prepared, kind)[:count], self.tokenizer, self.length)
        if kind.removeprefix("corpus") in SPLITS:
            return lessons(self.prepared, kind.removeprefix("corpus"), self.tokenizer, self.length)[:count]
        if kind == "own":
            from localopt.tracing.samples import Samples, sample

            return sample(self.model, Samples(count=count, length=self.length - 1))
        if kind == "text":
            return plain_text(self.tokenizer, self.prepared, self.length)[-count:]
        return encode(kept_facts(self.prepared, kind, count), self.tokenizer)


def block_modules(model: nn.Module) -> nn.ModuleList:
    """The stack of blocks of a model: its longest list of modules."""
    return max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len)


def _skipped(module: nn.Module, given: tuple[Tensor, ...], named: dict[str, Any], output: Any) -> Any:
    """In place of a block's output what it was given."""
    hidden = given[0] if given else named["hidden_states"]
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def kept_facts(prepared: Path, kind: str, count: int) -> list[Probe]:
    """Facts to keep that are never tested, in their first phrasing: "near", "far", or "kept" for half of each."""
    probes = [p for p in read_probes(prepared / "retained.trace.jsonl") if p.extra["phrasing"] == 0]
    sides = [[p for p in probes if p.extra["near"] is near] for near in (True, False)]
    order = torch.Generator().manual_seed(0)
    near, far = ([side[int(i)] for i in torch.randperm(len(side), generator=order)] for side in sides)
    return {"near": near[:count], "far": far[:count], "kept": near[: count - count // 2] + far[: count // 2]}[kind]


def best_rates(gains: Tensor, cost: Tensor) -> Tensor:
    """The s >= 0 that maximize <gains, s> - s^T cost s / 2, (L,), by coordinate ascent.

    >>> best_rates(torch.tensor([1.0, 1.0]), torch.tensor([[1.0, 2.0], [2.0, 8.0]]))
    tensor([1., 0.])
    """
    rates = torch.zeros_like(gains)
    for _ in range(1000):
        for i in range(len(rates)):
            rest = gains[i] - cost[i] @ rates + cost[i, i] * rates[i]
            rates[i] = (rest / cost[i, i]).clamp(min=0.0)
    return rates
