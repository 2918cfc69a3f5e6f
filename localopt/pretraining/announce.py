"""What a run says of itself, in a line each, before it trains and while it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from localopt.layers import Layers, locate, partition
from localopt.pretraining.optimizers import RATE_TO_WEIGHTS
from localopt.pretraining.settings import FEW, Settings
from localopt.tracing.layer_trace import LayerTrace


def plan(settings: Settings, sequences: int, tokens: int) -> str:
    """Say how much there is to train on, in a line, and warn in a second one where that is little.

    >>> print(plan(Settings(epochs=3, batch_size=8), 2000, 500_000))
    corpus: 500,000 tokens in 2,000 sequences; 3 epochs of 250 steps, 750 in all
    """
    an_epoch = settings.steps_an_epoch(sequences)
    steps = an_epoch * settings.epochs
    said = (
        f"corpus: {tokens:,} tokens in {_counted(sequences, 'sequence')}; {_counted(settings.epochs, 'epoch')} of "
        f"{_counted(an_epoch, 'step')}, {steps:,} in all"
    )
    if steps < FEW:
        said += f"\nfew steps: under {FEW} little is learned; more text, more --epochs or a smaller --batch-size help"
    return said


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def trained(model: nn.Module, layers: Layers = "sublayer") -> str:
    """Say which layers a model trains, what share of its parameters that is, and whether embeddings and head do."""
    layer_of = partition((name for name, _ in model.named_parameters()), layers)
    every = list(dict.fromkeys(layer_of.values()))
    parameters = dict(model.named_parameters())
    chosen = list(dict.fromkeys(layer_of[name] for name, p in parameters.items() if p.requires_grad))
    share = sum(p.numel() for p in parameters.values() if p.requires_grad) / sum(p.numel() for p in parameters.values())
    what = "every layer" if chosen == every else f"{len(chosen)} of {len(every)} layers"
    where = "" if chosen == every else f" ({places(chosen)})"
    return f"trains {what}{where}, {share:.0%} of the parameters; {_outside(model)}"


def chosen(model: nn.Module, trace: LayerTrace) -> str:
    """Say which layers a trace chooses to train, what share of the model's parameters that is, and where they lie."""
    scales = trace.frozen_parameters().scales
    layer_of = partition((name for name, _ in model.named_parameters()), trace.partition())
    trained = [layer for layer in trace.layers if scales[layer] > 0]
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    share = sum(size for name, size in sizes.items() if scales[layer_of[name]] > 0) / sum(sizes.values())
    return f"to train: {len(trained)} of {len(scales)} layers, {share:.0%} of the weights ({places(trained)})"


def _outside(model: nn.Module) -> str:
    """Whether the embeddings and the head train."""

    def trains(getter: str) -> bool | None:
        module = getattr(model, getter, lambda: None)()
        weight = getattr(module, "weight", None)
        return None if weight is None else bool(weight.requires_grad)

    embeddings, head = trains("get_input_embeddings"), trains("get_output_embeddings")
    if embeddings == head:
        return f"embeddings and head {'train' if embeddings else 'do not'}"
    return f"embeddings {'train' if embeddings else 'do not'}, the head {'trains' if head else 'does not'}"


def places(layers: Sequence[str]) -> str:
    """Name layers by kind and block.

    >>> places(["h.1.mlp", "h.3.mlp", "h.4.mlp", "h.5.mlp", "h.4.attention", "wte"])
    'mlp 1, 3-5; attention 4; wte'
    """
    found: dict[str, list[int]] = {}
    for layer in layers:
        _, block, part = locate(layer)
        found.setdefault(part if block is not None and part else layer if block is None else "block", [])
        if block is not None:
            found[part or "block"].append(block)
    return "; ".join(f"{part} {_ranges(blocks)}" if blocks else part for part, blocks in found.items())


def _ranges(numbers: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def rate_rule(settings: Settings, rate: float) -> str:
    """Say the rate and where it comes from, and the decay toward the start."""
    if settings.lr is not None:
        said = f"peak learning rate {rate:g}, as given"
    elif settings.method == "auto":
        said = (
            f"peak learning rate {rate:g}: {RATE_TO_WEIGHTS:.2%} of the root mean square of the matrices that train "
            "(what was best for SmolLM2-135M; --lr sets another)"
        )
    else:
        said = f"peak learning rate {rate:g}, the default of this method"
    if settings.pull:
        said += f"\ndecay toward the start: selective (SPD, arXiv 2411.01713), strength {settings.pull:g}"
    return said


def scores(entry: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    """Say the scores after an epoch, with their change since the start.

    >>> before = {"epoch": 0, "sets": {"news": {"nll": 3.0, "ranked_first": None}}}
    >>> scores(before, before), scores({"epoch": 1, "sets": {"news": {"nll": 2.5, "ranked_first": None}}}, before)
    ('before: news 3.000', 'epoch 1: news 2.500 (-0.500)')
    """
    parts = []
    for name, score in entry["sets"].items():
        nll, begin = score["nll"], first["sets"][name]["nll"]
        said = f"{name} " + ("not finite" if nll is None else f"{nll:.3f}")
        if entry is not first and nll is not None and begin is not None:
            said += f" ({nll - begin:+.3f})"
        if score["ranked_first"] is not None:
            said += f", {score['ranked_first']:.0%} ranked first"
        parts.append(said)
    return ("before: " if entry["epoch"] == 0 else f"epoch {entry['epoch']:g}: ") + "; ".join(parts)
