"""Model + probe + reference -> LayerTrace: the layers that new knowledge lives in.

For an example x and a layer l let g_l(x) be the gradient of the loss for the layer's parameters, and over a set D

    N_l(D) = mean over x in D of ||g_l(x)||        R_l = N_l(probe) / N_l(reference)

R_l is the *relative gradient norm* of Fernandez, Bisk and Strubell 2024 (arXiv 2411.04448). ``score="gains"`` puts what
a first step of Adam wins on the probe over what it costs the reference in its place; see `gains.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from localopt import __version__
from localopt.layers import Layers
from localopt.outside import shown
from localopt.tracing.examples import one_by_one, opened
from localopt.tracing.gains import first_step
from localopt.tracing.ghost import Batched
from localopt.tracing.layer_trace import LayerTrace
from localopt.tracing.lending import borrowed, trained_layers
from localopt.tracing.measure import Average, Loss, average_norms
from localopt.tracing.progress import progress_bar
from localopt.tracing.samples import Samples, first_token, written

__all__ = ["LayerTrace", "Samples", "trace_layers"]

Score = Literal["norms", "gains"]

logger = logging.getLogger(__name__)


def trace_layers(
    model: nn.Module,
    probe: Iterable[Any],
    reference: Iterable[Any] | Samples | None = None,
    *,
    score: Score = "norms",
    layers: Layers = "sublayer",
    average: Average = "norms",
    loss: Loss | None = None,
    batch_size: int | None = None,
    distributed: bool = False,
    progress: bool = False,
) -> LayerTrace:
    """Measure what each layer has to do with ``probe``, relative to ``reference``, for every example apart.

    By ``score="norms"`` that is the norm of the layer's gradient. By ``"gains"`` it is what a first step of Adam on the
    layer would win on the probe, over what it would cost the reference (see :mod:`localopt.tracing.gains`): norms do
    not see whether two gradients point the same way. The model is run in evaluation mode and given back as it was:
    training modes, gradients, hooks and random state.

    A corpus is enough: with its pieces as the probe, the loss on every token, and no reference, the model is asked
    which layers the corpus needs more than what it would write itself.

    A causal language model of transformers (and LoRA on one) is measured a batch at a time: one forward and one
    backward pass give the norm of every example's gradient, or how far a step moves its loss, without computing a
    gradient of any parameter (see :mod:`localopt.tracing.ghost`). That needs the memory of the weights and of one
    batch's activations. The numbers are those of the loop over single examples within 1e-3, which is checked on one
    example of the first batch of each kind (of one example, of several, with padding).

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
        probe: knowledge to take in: the loss on the salient span only, as in the paper, or raw text with the loss on
            every token (``labels`` equal to ``input_ids``). An iterable, read once and never held, of examples (mapping
            with ``input_ids`` and ``labels``, both lists or tensors of shape (T,); -100 where no loss is taken) or of
            batches (whatever the model takes). A batch of B rows counts as B examples.
        reference: what to compare with: ordinary text with the loss on every token, as in the paper, or knowledge that
            must not be lost, in the same form. None for text that the model writes itself, before anything is measured;
            :class:`~localopt.Samples` says how much and how.
        score: ``"norms"`` or ``"gains"``. The latter keeps one float32 gradient of the whole model, and that of one
            batch while it is added; the trace then holds gains and damages in place of norms, and cannot serve
            :class:`~localopt.RelativeTo`.
        layers: what a layer is; see :func:`localopt.layers.partition`.
        average: of norms: ``"norms"`` for the mean of the examples' norms, ``"gradients"`` for the norm of their mean
            gradient, which needs memory for one float32 gradient of the whole model.
        loss: ``loss(model, batch)`` -> scalar tensor; None for the ``loss`` the model itself returns.
        batch_size: examples measured together; None for as many as fit in 1024 positions, padding included. So many
            are read ahead and held, at most. 1 forces the loop.
        distributed: share the examples among the processes of the default process group. Every process calls this
            with the same model and examples, and gets the same trace; two all-reduces of L + 1 numbers, or by gains
            one of the whole gradient.
        progress: show a bar with the remaining time on standard error.

    Returns:
        The trace, its norms on the CPU in float32.

    Raises:
        InputError: a set is empty, or an example has no loss, no labeled token, or a loss or gradient that is not
            finite; the message names the example. No reference, and the model cannot write one.
        ValueError: ``distributed`` without a process group, or with ``average="gradients"``; ``average`` with
            gains; ``batch_size`` is not positive; the model is wrapped, has nothing to train, or uses reentrant
            checkpointing on a shared weight.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> def squared_error(model, batch):
        ...     return (model(batch[0]) - batch[1]).square().mean()
        >>> probe, reference = [[(torch.randn(4, 2), torch.randn(4, 1))] for _ in range(2)]
        >>> trace = trace_layers(model, probe, reference, loss=squared_error)
        >>> trace.layers, trace.metadata["probe_examples"]
        (('0', '1'), 4)
    """
    _check(score, average, batch_size, distributed)
    if probe is reference and isinstance(probe, Iterator):
        raise ValueError("probe and reference are the same iterator, which can be read only once: give two")
    own = Samples() if reference is None else reference if isinstance(reference, Samples) else None
    trained = trained_layers(model, layers)
    if own is not None:
        first_token(model, own)
    with borrowed(model), progress_bar(progress) as bar:
        sets = {"probe": opened(probe, "probe")}
        given: Any = reference if own is None else written(model, own, bar, distributed=distributed)
        sets["reference"] = opened(given, "reference")
        examples = {
            of: one_by_one(bar.track(items, total=total, description=of), of) for of, (items, total) in sets.items()
        }
        batched = Batched(model, trained, batch_size, _refusal(average, loss))
        values, counts = {}, {}
        if score == "gains":
            step = first_step(
                model,
                examples["probe"],
                examples["reference"],
                trained,
                batched=batched,
                loss=loss,
                distributed=distributed,
            )
            values = {"probe": step.gains.float(), "reference": step.damages.float()}
            counts = {"probe": step.examples, "reference": len(step.moves)}
        else:
            for of, some in examples.items():
                values[of], counts[of] = average_norms(
                    model, some, trained, batched=batched, average=average, loss=loss, of=of, distributed=distributed
                )
        logger.info("method: %s", batched.method)
        if progress:
            bar.console.print(shown(f"method: {batched.method}"), highlight=False)
    about = {
        "model": _name(model),
        "partition": layers if isinstance(layers, str) else "custom",
        "score": score,
        **({"average": average} if score == "norms" else {}),
        "method": batched.method,
        "probe_examples": counts["probe"],
        "reference_examples": counts["reference"],
        **({"samples": own.metadata()} if own is not None else {}),
        "dtype": ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})),
        "localopt": __version__,
        "torch": torch.__version__,
    }
    return LayerTrace(tuple(dict.fromkeys(trained.values())), values["probe"], values["reference"], about)


def _check(score: Score, average: Average, batch_size: int | None, distributed: bool) -> None:
    for name, value, known in (("score", score, Score), ("average", average, Average)):
        if value not in get_args(known):
            raise ValueError(f"{name} must be {' or '.join(map(repr, get_args(known)))}, not {value!r}")
    if score == "gains" and average != "norms":
        raise ValueError(f"average={average!r} is a way to average norms, and score is 'gains': leave it out")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, or None for a size that suits the examples, not {batch_size}")
    if distributed and (average == "gradients" or not torch.distributed.is_initialized()):
        why = "averages the gradients themselves" if average == "gradients" else "has no process group to share them in"
        raise ValueError(f"distributed=True shares out examples, but this run {why}: leave it out")


def _refusal(average: Average, loss: Loss | None) -> str | None:
    if average == "gradients":
        return "average='gradients' needs the gradients themselves"
    return None if loss is None else "a loss of one's own may join the rows of a batch"


def _name(model: nn.Module) -> str:
    """A hub id, or the last part of a path: traces are shared, the folders of a machine need not be."""
    name = str(getattr(getattr(model, "config", None), "_name_or_path", ""))
    here = name and (Path(name).is_absolute() or Path(name).exists())
    return (Path(name).resolve().name if here else name) or type(model).__name__
