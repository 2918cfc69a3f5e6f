"""Batched measuring: when it may be done, and held to the loop over single examples."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from localopt.sums import squared_norm
from localopt.tracing.examples import Batch
from localopt.tracing.ghost.batch import Padded, grouped, losses, padded
from localopt.tracing.ghost.collected import Along, Collected, Squares
from localopt.tracing.ghost.uses import NotBatchable, Uses

Numbers = Mapping[str, Tensor]
"""Parameter name -> squared gradient norms or inner products, one an example; what has no gradient is absent."""

Measured = TypeVar("Measured")

TOLERANCE = 1e-3
"""Relative difference from the loop, for each parameter, that is let pass in float32."""


class Batched:
    """Measures batches for as long as the results are the loop's.

    The first batch of its kind (of one example, of several, with padding) is compared with the loop on one example,
    parameter by parameter. What no rule foresees (a loss that couples the rows, say) shows up there.

    Args:
        model: as :func:`localopt.tracing.lending.borrowed` lends it.
        names: the parameters to measure.
        size: examples in a batch; None for as many as fit in ``localopt.tracing.ghost.batch.TOKENS`` positions.
        refusal: why not to batch, if the caller knows a reason.

    Attributes:
        refusal: why examples are measured one by one, None while they are measured in batches.
    """

    def __init__(
        self, model: nn.Module, names: Iterable[str], size: int | None = None, refusal: str | None = None
    ) -> None:
        parameters = dict(model.named_parameters())
        self._model = model
        self._parameters = {name: parameters[name] for name in names}
        self._size = size
        self._checked: set[tuple[str, bool, bool]] = set()
        self.refusal = refusal or ("batch_size=1" if size == 1 else _refusal(model, self._parameters))

    @property
    def method(self) -> str:
        """``"batched"``, or ``"one by one: "`` and the reason."""
        return "batched" if self.refusal is None else f"one by one: {self.refusal}"

    def groups(self, examples: Iterable[Batch]) -> Iterator[list[Batch]]:
        """Yield the lists of examples to measure together."""
        return ([example] for example in examples) if self.refusal else grouped(examples, self._size)

    def squares(self, examples: Sequence[Batch], alone: Callable[[int], Numbers]) -> Numbers | None:
        """Return each parameter's squared gradient norms, (B,), or None where there is (now) a ``refusal``.

        Args:
            examples: B batches of one row.
            alone: position in ``examples`` -> what the loop finds, 0-d tensors.
        """
        return self._tried(lambda: self._squares(examples, alone))

    def products(
        self,
        examples: Sequence[Batch],
        directions: Mapping[str, Tensor],
        alone: Callable[[int], tuple[Numbers, Numbers]],
    ) -> Numbers | None:
        """Return the inner products of each parameter's gradients with its direction, (B,), or None likewise.

        Args:
            examples: B batches of one row.
            directions: by parameter; what has none is left out.
            alone: position in ``examples`` -> squared norms and inner products as the loop finds them, 0-d tensors.
        """
        return self._tried(lambda: self._products(examples, directions, alone))

    def gradients(self, examples: Sequence[Batch], alone: Callable[[int], Numbers]) -> dict[str, Tensor] | None:
        """Return each parameter's gradient, summed over the examples, or None likewise.

        It comes from an ordinary backward pass over the batch, which holds if the norms of single rows do; so those
        are what is compared with the loop.

        Args:
            examples: B batches of one row.
            alone: as for :meth:`squares`.
        """
        return self._tried(lambda: self._gradients(examples, alone))

    def _tried(self, measure: Callable[[], Measured]) -> Measured | None:
        if self.refusal is not None:
            return None
        try:
            return measure()
        except NotBatchable as reason:
            self.refusal = str(reason)
        except RuntimeError as error:  # out of memory, an activation changed in place, ...: the loop may do better
            self.refusal = f"the batch failed ({next(iter(str(error).splitlines()), type(error).__name__)})"
        return None

    def _squares(self, examples: Sequence[Batch], alone: Callable[[int], Numbers]) -> Numbers:
        batch = padded(examples, self._device)
        squares = self._measured(batch, Squares(len(examples)))
        kind = "squares", batch.even, len(examples) > 1
        if kind not in self._checked:
            shortest = _shortest(examples)
            self._compare_norms(shortest, squares, alone(shortest))
            self._checked.add(kind)
        return squares

    def _products(
        self,
        examples: Sequence[Batch],
        directions: Mapping[str, Tensor],
        alone: Callable[[int], tuple[Numbers, Numbers]],
    ) -> Numbers:
        batch = padded(examples, self._device)
        products = self._measured(batch, Along(len(examples), directions))
        kind = "products", batch.even, len(examples) > 1
        if kind not in self._checked:
            shortest = _shortest(examples)
            self._compare_products(shortest, products, *alone(shortest))
            self._checked.add(kind)
        return products

    def _gradients(self, examples: Sequence[Batch], alone: Callable[[int], Numbers]) -> dict[str, Tensor]:
        batch = padded(examples, self._device)
        if ("squares", batch.even, len(examples) > 1) not in self._checked:
            self._squares(examples, alone)
        try:
            self._backward(batch, self._model(**batch.inputs))
            found = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
        finally:
            for parameter in self._model.parameters():
                parameter.grad = None
        if not _all_finite(squared_norm(gradient) for gradient in found.values()):
            raise NotBatchable("a gradient is not finite")
        return found

    def _measured(self, batch: Padded, collected: Collected) -> Numbers:
        """What ``collected`` makes of one forward and one backward pass without gradients of parameters."""
        uses = Uses(self._parameters, batch.labels.shape, collected)
        with _without_gradients(self._model):
            with uses:
                output = self._model(**batch.inputs)
            self._backward(batch, output)
        numbers = collected.results()
        if not _all_finite(numbers.values()):
            raise NotBatchable("a gradient is not finite")
        return numbers

    def _backward(self, batch: Padded, output: Any) -> None:
        logits = getattr(output, "logits", None)
        if logits is None:
            raise NotBatchable("the model returns no logits by that name")
        each, gradient = losses(logits, batch.labels)
        if not logits.requires_grad or not each.isfinite().all():
            raise NotBatchable("a loss is not finite, or depends on nothing")  # the loop says which, and raises
        logits.backward(gradient)

    def _compare_norms(self, row: int, squares: Numbers, alone: Numbers) -> None:
        expected = {name: float(square) ** 0.5 for name, square in alone.items()}
        found = {name: float(square[row]) ** 0.5 for name, square in squares.items()}
        # A gradient that is zero but for rounding (of the bias of keys, say) cannot be told to three digits.
        tolerance = self._tolerance()
        noise = tolerance / 100 * max(expected.values(), default=0.0)
        for name in self._parameters:
            norm, batched = expected.get(name, 0.0), found.get(name, 0.0)
            if not abs(norm - batched) <= tolerance * norm + noise:
                raise NotBatchable(f"{name} has norm {batched:.4g} in a batch and {norm:.4g} in the loop")

    def _compare_products(self, row: int, products: Numbers, squares: Numbers, alone: Numbers) -> None:
        # What a product is of the order of, where gradient and direction have nothing to do with each other, is the
        # norm of the gradient: the entries of the direction are 1 or -1.
        norms = {name: float(square) ** 0.5 for name, square in squares.items()}
        tolerance = self._tolerance()
        noise = tolerance / 100 * max(norms.values(), default=0.0)
        for name in self._parameters:
            expected = float(alone.get(name, 0.0))
            found = float(products[name][row]) if name in products else 0.0
            if not abs(expected - found) <= tolerance * (abs(expected) + norms.get(name, 0.0)) + noise:
                raise NotBatchable(f"{name} moves by {found:.4g} in a batch and by {expected:.4g} in the loop")

    def _tolerance(self) -> float:
        return max(TOLERANCE, *(4 * torch.finfo(dtype).eps for dtype in self._dtypes()))

    @property
    def _device(self) -> torch.device:
        return next(self._model.parameters()).device

    def _dtypes(self) -> set[torch.dtype]:
        """What is computed in."""
        parameters = self._parameters.values()
        cast = {p.device.type for p in parameters if torch.is_autocast_enabled(p.device.type)}
        return {p.dtype for p in parameters} | {torch.get_autocast_dtype(device) for device in cast}


def _shortest(examples: Sequence[Batch]) -> int:
    """The example to compare: what goes wrong with padding shows where there is most of it."""
    return min(range(len(examples)), key=lambda row: examples[row]["input_ids"].shape[-1])


def _all_finite(values: Iterable[Tensor]) -> bool:
    return all(bool(value.isfinite().all()) for value in values)


@contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """No parameter requires a gradient inside, so the backward pass computes those of activations only."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _refusal(model: nn.Module, parameters: Mapping[str, Tensor]) -> str | None:
    """What can be said against a model before it has run."""
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        return "the model is an encoder-decoder"
    taken = inspect.signature(model.forward).parameters.values()
    if not any(parameter.name == "attention_mask" or parameter.kind is parameter.VAR_KEYWORD for parameter in taken):
        return "the model takes no attention_mask"
    loss = getattr(model, "loss_function", None)
    if getattr(loss, "__name__", "") != "ForCausalLMLoss" or not loss.__module__.startswith("transformers."):
        return "the model's loss is not the one of transformers' causal language models"
    if any(hasattr(module, "_orig_mod") or module._compiled_call_impl for module in model.modules()):
        return "the model is compiled"
    hooked = [name for name, parameter in parameters.items() if parameter._backward_hooks]
    if hooked:
        return f"hooks on the gradient of {', '.join(hooked)} have to see it"
    return None
