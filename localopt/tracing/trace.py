"""Model + probe + reference -> LayerTrace: the layers that new knowledge lives in.

For an example x and a layer l let g_l(x) be the gradient of the loss for the layer's parameters, and over a set D

    N_l(D) = mean over x in D of ||g_l(x)||        R_l = N_l(probe) / N_l(reference)

R_l is the *relative gradient norm* of Fernandez, Bisk and Strubell 2024 (arXiv 2411.04448).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from operator import length_hint
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from localopt import __version__
from localopt.errors import InputError
from localopt.layers import Layers, partition
from localopt.outside import shown
from localopt.tracing.examples import one_by_one
from localopt.tracing.ghost import Batched
from localopt.tracing.layer_trace import LayerTrace
from localopt.tracing.measure import Average, Loss, average_norms, borrowed, refuse_wrapped

__all__ = ["LayerTrace", "trace_layers"]

logger = logging.getLogger(__name__)


def trace_layers(
    model: nn.Module,
    probe: Iterable[Any],
    reference: Iterable[Any],
    *,
    layers: Layers = "sublayer",
    average: Average = "norms",
    loss: Loss | None = None,
    batch_size: int | None = None,
    distributed: bool = False,
    progress: bool = False,
) -> LayerTrace:
    """Measure each layer's gradient norm on ``probe`` and on ``reference``, for every example apart.

    The model is run in evaluation mode and given back as it was: training modes, gradients, hooks and random state.

    A causal language model of transformers (and LoRA on one) is measured a batch at a time: one forward and one
    backward pass give the norm of every example's gradient without computing a gradient of any parameter (see
    :mod:`localopt.tracing.ghost`). That needs the memory of the weights and of one batch's activations. Its norms are
    those of the loop over single examples within 1e-3, which is checked on one example of the first batch of each kind
    (of one example, of several, with padding).

    Everything else is measured in that loop: other models and losses, parameters used in a way that has no rule (fused
    experts, convolutions), examples with more than ``input_ids``, ``labels`` and ``attention_mask``, and
    ``average="gradients"``. Every gradient is dropped as soon as it is measured, so the loop needs the memory of the
    weights and of one example's activations. The trace's ``metadata["method"]`` says which of the two it was, and why;
    so does the log, and the bar.

    Parameters with ``requires_grad=False`` are left out, and so are layers made of nothing else: a peft model is traced
    on its adapters, a model someone froze on what is still trained. Parameters without a gradient count as 0, and a
    weight used in several places counts once, with its whole gradient.

    Args:
        model: any module, on one device or several; not wrapped by DDP, FSDP or DeepSpeed.
        probe: knowledge to take in, the loss on the salient span only. An iterable, read once and never held, of
            examples (mapping with ``input_ids`` and ``labels``, both lists or tensors of shape (T,); -100 where no loss
            is taken) or of batches (whatever the model takes). A batch of B rows counts as B examples.
        reference: what to compare with: ordinary text with the loss on every token, as in the paper, or knowledge that
            must not be lost. Same form.
        layers: what a layer is; see :func:`localopt.layers.partition`.
        average: ``"norms"`` for the mean of the examples' norms, ``"gradients"`` for the norm of their mean gradient,
            which needs memory for one float32 gradient of the whole model.
        loss: ``loss(model, batch)`` -> scalar tensor; None for the ``loss`` the model itself returns.
        batch_size: examples measured together; None for as many as fit in 1024 positions, padding included. So many
            are read ahead and held, at most. 1 forces the loop.
        distributed: share the examples among the processes of the default process group. Every process calls this
            with the same model and examples, and gets the same trace; two all-reduces of L + 1 numbers.
        progress: show a bar with the remaining time on standard error.

    Returns:
        The trace, its norms on the CPU in float32.

    Raises:
        InputError: a set is empty, or an example has no loss, no labeled token, or a loss or gradient that is not
            finite; the message names the example.
        ValueError: ``distributed`` without a process group, or with ``average="gradients"``; ``batch_size`` is not
            positive; the model is wrapped, has nothing to train, or uses reentrant checkpointing on a shared weight.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> def squared_error(model, batch):
        ...     return (model(batch[0]) - batch[1]).square().mean()
        >>> probe, reference = [[(torch.randn(4, 2), torch.randn(4, 1))] for _ in range(2)]
        >>> trace = trace_layers(model, probe, reference, loss=squared_error)
        >>> trace.layers, trace.metadata["probe_examples"]
        (('0', '1'), 4)
    """
    if average not in ("norms", "gradients"):
        raise ValueError(f"average must be 'norms' or 'gradients', not {average!r}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, or None for a size that suits the examples, not {batch_size}")
    if distributed and (average == "gradients" or not torch.distributed.is_initialized()):
        why = "averages the gradients themselves" if average == "gradients" else "has no process group to share them in"
        raise ValueError(f"distributed=True shares out examples, but this run {why}: leave it out")
    trained = trained_layers(model, layers)
    with borrowed(model), progress_bar(progress) as bar:
        sets = opened(probe, reference)
        batched = Batched(model, trained, batch_size, _refusal(average, loss))
        norms, counts = {}, {}
        for of, (items, total) in sets.items():
            examples = one_by_one(bar.track(items, total=total, description=of), of)
            norms[of], counts[of] = average_norms(
                model, examples, trained, batched=batched, average=average, loss=loss, of=of, distributed=distributed
            )
        logger.info("method: %s", batched.method)
        if progress:
            bar.console.print(shown(f"method: {batched.method}"), highlight=False)
    about = described(model, layers, average, batched.method, counts)
    return LayerTrace(tuple(dict.fromkeys(trained.values())), norms["probe"], norms["reference"], about)


def trained_layers(model: nn.Module, layers: Layers) -> dict[str, str]:
    """The layer of every parameter that requires a gradient; ValueError where none does, or the model is wrapped."""
    refuse_wrapped(model, "trace")
    layer_of = partition((name for name, _ in model.named_parameters()), layers)
    trained = {name: layer_of[name] for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError("no parameter of the model requires a gradient: call model.requires_grad_(True) first")
    return trained


def described(model: nn.Module, layers: Layers, average: str, method: str, counts: Mapping[str, int]) -> dict[str, Any]:
    """A trace's metadata."""
    return {
        "model": _name(model),
        "partition": layers if isinstance(layers, str) else "custom",
        "average": average,
        "method": method,
        "probe_examples": counts["probe"],
        "reference_examples": counts["reference"],
        "dtype": ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})),
        "localopt": __version__,
        "torch": torch.__version__,
    }


def opened(probe: Iterable[Any], reference: Iterable[Any]) -> dict[str, tuple[Iterator[Any], int | None]]:
    """Both sets with their lengths, if these are known; opened first, as an empty one should not cost a pass.

    Raises InputError for an empty set, ValueError for one iterator given twice.
    """
    if probe is reference and isinstance(probe, Iterator):
        raise ValueError("probe and reference are the same iterator, which can be read only once: give two")
    sets = {"probe": probe, "reference": reference}
    return {of: (_opened(items, of), length_hint(items) or None) for of, items in sets.items()}


def _refusal(average: Average, loss: Loss | None) -> str | None:
    if average == "gradients":
        return "average='gradients' needs the gradients themselves"
    return None if loss is None else "a loss of one's own may join the rows of a batch"


def _name(model: nn.Module) -> str:
    """A hub id, or the last folder of a path: traces are shared, the folders of a machine need not be."""
    name = str(getattr(getattr(model, "config", None), "_name_or_path", ""))
    return (Path(name).name if Path(name).is_absolute() else name) or type(model).__name__


def progress_bar(shown: bool) -> Progress:
    """A bar with the remaining time, on standard error."""
    columns = TextColumn("{task.description:>9}"), BarColumn(), MofNCompleteColumn()
    remaining = TimeRemainingColumn(elapsed_when_finished=True)
    return Progress(*columns, remaining, console=Console(stderr=True), disable=not shown)


def _opened(items: Iterable[Any], of: str) -> Iterator[Any]:
    iterator = iter(items)
    try:
        first = next(iterator)
    except StopIteration:
        raise InputError(f"the {of} is empty: there is nothing to trace") from None
    return chain([first], iterator)
