"""Model + examples -> one gradient norm a layer.

The loop here is the readable way, and the one that :mod:`localopt.tracing.ghost` is held to: one example, one backward
pass, and every gradient measured and let go of the moment it is finished, so that two gradients of the whole model, or
one, are never alive at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, Literal, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from localopt.errors import InputError
from localopt.sums import squared_norm
from localopt.tracing.examples import Batch, moved
from localopt.tracing.ghost import Batched
from localopt.tracing.together import Counted, refuse_different, shared_errors

Average = Literal["norms", "gradients"]
Loss: TypeAlias = Callable[[nn.Module, Batch], Tensor]
Keep: TypeAlias = Callable[[str, Tensor], None]


def average_norms(
    model: nn.Module,
    examples: Iterable[Batch],
    layer_of: Mapping[str, str],
    *,
    batched: Batched,
    average: Average = "norms",
    loss: Loss | None = None,
    of: str = "examples",
    distributed: bool = False,
) -> tuple[Tensor, int]:
    """Return N_l over ``examples`` for each layer l, and the number of examples.

    Args:
        model: as :func:`localopt.tracing.lending.borrowed` lends it.
        examples: batches of one row.
        layer_of: parameter name -> layer name, for the parameters to measure; every one requires a gradient.
        batched: measures whole batches where it can; what it refuses is measured one by one.
        average: ``"norms"``, N_l = mean over x of ||g_l(x)||, or ``"gradients"``, N_l = ||mean over x of g_l(x)||. The
            second keeps one float32 sum of gradients for the whole model.
        loss: see :func:`localopt.tracing.trace.trace_layers`.
        of: what the examples are called in errors.
        distributed: measure every n-th example only, n the number of processes, and add up what all of them measured.

    Returns:
        A float32 CPU tensor of shape (L,), layers in the order in which ``layer_of`` first names them.

    Raises:
        InputError: an example has no loss, no labeled token, or a loss or gradient that is not finite.
        ValueError: ``distributed``, and the processes have other layers or another number of examples.
    """
    layers = list(dict.fromkeys(layer_of.values()))
    sums: dict[str, Tensor] = {}
    keep = partial(add_up, sums) if average == "gradients" else None
    total = torch.zeros(len(layers), dtype=torch.float64)
    count = 0
    rank, processes = place(distributed)
    if distributed:
        refuse_different(layers=layers)
    counted = Counted(examples)
    with shared_errors(distributed):
        for group in batched.groups(islice(counted, rank, None, processes)):

            def alone(row: int, group: Sequence[Batch] = group, first: int = count) -> dict[str, Tensor]:
                name = example_name((first + row) * processes + rank, of)
                return example_squares(model, group[row], layer_of, loss or own_loss, name, keep)

            together = batched.squares(group, alone)
            for squares in [together] if together is not None else map(alone, range(len(group))):
                norms = _layer_norms(squares, layer_of)
                _check_norms(norms, layers, [(count + i) * processes + rank for i in range(len(norms))], of)
                total += norms.sum(0)
                count += len(norms)
    if distributed:
        refuse_different(**{f"number of examples of the {of}": counted.given})
        total, count = _summed(total, count)
    if count == 0:
        raise InputError(f"the {of} holds no example")
    if average == "gradients":
        total = _layer_norms({name: squared_norm(value / count) for name, value in sums.items()}, layer_of)[0] * count
    return (total / count).float(), count


def place(distributed: bool) -> tuple[int, int]:
    """This process's number, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)


def example_name(number: int, of: str) -> str:
    """Name an example in an error."""
    return f"example {number} (from 0) of the {of}"


def _summed(total: Tensor, count: int) -> tuple[Tensor, int]:
    """Add up the sums of norms (L,) and the numbers of examples of all processes."""
    everything = torch.cat([total, torch.tensor([count], dtype=total.dtype)])
    if dist.get_backend() == "nccl":  # which sums on GPUs only
        everything = everything.cuda()
    dist.all_reduce(everything)
    return everything[:-1].cpu(), int(everything[-1])


def _check_norms(norms: Tensor, layers: Sequence[str], numbers: Sequence[int], of: str) -> None:
    for number, row in zip(numbers, norms.tolist(), strict=True):
        bad = [layer for layer, norm in zip(layers, row, strict=True) if not norm < float("inf")]
        if bad:
            raise InputError(_not_finite(example_name(number, of), bad))


def example_squares(
    model: nn.Module, example: Batch, layer_of: Mapping[str, str], loss: Loss, where: str, keep: Keep | None = None
) -> dict[str, Tensor]:
    """Squared norm of one example's gradient for each parameter, 0-d; every gradient goes to ``keep`` too.

    ``where`` names the example in errors.
    """
    squares: dict[str, Tensor] = {}
    again: set[str] = set()

    def take(name: str, parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        if gradient is None:
            return
        if name in squares:
            again.add(name)
        squares[name] = squared_norm(gradient)
        if keep is not None:
            keep(name, gradient)

    parameters = dict(model.named_parameters())
    handles = [_on_gradient(parameters[name], partial(take, name)) for name in layer_of]
    try:
        value = loss(model, moved(example, next(iter(parameters.values())).device))
        _check_loss(value, example, where)
        value.backward()  # type: ignore[no-untyped-call]
    finally:
        for handle in handles:
            handle.remove()
    if again:
        raise ValueError(
            f"{where}: the gradient of {', '.join(sorted(again))} came in parts, so its norm cannot be taken. "
            "Reentrant gradient checkpointing does this to a weight used in several segments: switch checkpointing "
            "off, or use use_reentrant=False"
        )
    _check_squares(squares, layer_of, where)
    return squares


def _check_squares(squares: Mapping[str, Tensor], layer_of: Mapping[str, str], where: str) -> None:
    for device in {square.device for square in squares.values()}:  # one transfer from each
        here = {name: square for name, square in squares.items() if square.device == device}
        finite = torch.stack(list(here.values())).isfinite().tolist()
        bad = {layer_of[name] for name, good in zip(here, finite, strict=True) if not good}
        if bad:  # in the order of the parameters; they were measured from the last to the first
            raise InputError(_not_finite(where, [layer for layer in dict.fromkeys(layer_of.values()) if layer in bad]))


def _not_finite(where: str, layers: Iterable[str]) -> str:
    return f"{where}: the gradient of {', '.join(layers)} is not finite; trace in float32 or bfloat16"


def _on_gradient(parameter: nn.Parameter, hook: Callable[[Tensor], None]) -> RemovableHandle:
    handle: RemovableHandle = parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
    return handle


def _layer_norms(squares: Mapping[str, Tensor], layer_of: Mapping[str, str]) -> Tensor:
    """Squared norms of parameters, as for :func:`layer_sums` -> norms of layers, (B, L) float64."""
    examples = next((square.numel() for square in squares.values()), 1)
    return layer_sums(squares, layer_of, examples).sqrt()


def layer_sums(values: Mapping[str, Tensor], layer_of: Mapping[str, str], examples: int = 1) -> Tensor:
    """Numbers of parameters, for each of B ``examples`` (absent ones are 0) -> their sums by layer, (B, L) float64.

    There is one transfer from each device.
    """
    position = {layer: index for index, layer in enumerate(dict.fromkeys(layer_of.values()))}
    total = torch.zeros(examples, len(position), dtype=torch.float64)
    for device in {value.device for value in values.values()}:
        here = {name: value for name, value in values.items() if value.device == device}
        index = torch.tensor([position[layer_of[name]] for name in here])
        total.index_add_(1, index, torch.stack(list(here.values()), dim=-1).cpu().double().reshape(len(total), -1))
    return total


def add_up(sums: dict[str, Tensor], name: str, gradient: Tensor) -> None:
    """Add a parameter's gradient to its float32 sum."""
    # In half precision a sum over many examples would stop growing.
    wide = gradient.to_dense() if gradient.is_sparse else gradient
    wide = wide.to(torch.promote_types(wide.dtype, torch.float32))
    sums[name] = sums[name].add_(wide) if name in sums else wide


def own_loss(model: nn.Module, batch: Batch) -> Any:
    """The loss the model itself returns, or None."""
    if isinstance(batch, Mapping):
        output = model(**batch)
    elif isinstance(batch, (tuple, list)):
        output = model(*batch)
    else:
        output = model(batch)
    return output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)


def _check_loss(value: Any, example: Batch, where: str) -> None:
    if value is None:
        raise InputError(f"{where}: the model returned no loss; give the examples `labels`, or pass loss=")
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
        raise InputError(f"{where}: the loss has to be a scalar tensor, not of {shape}")
    if not torch.isfinite(value):
        labels = example.get("labels") if isinstance(example, Mapping) else None
        # The first token of a causal model is never predicted, so a label there is none.
        if isinstance(labels, Tensor) and labels.dim() > 1 and bool((labels[..., 1:] == -100).all()):
            raise InputError(f"{where}: no token is labeled (every label that counts is -100), so there is no loss")
        raise InputError(f"{where}: the loss is {value.item()}")
    if not value.requires_grad:
        raise InputError(f"{where}: the loss does not depend on any parameter that requires a gradient")
