"""Which torch functions take a parameter, and what each of them means for the parameter's gradient.

Every torch function that runs inside ``with Uses(...)`` passes through it. So no use of a parameter stays unseen,
wherever in the model it is, and one without a rule is an error, not a wrong norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from localopt.tracing.ghost.collected import Collected
from localopt.tracing.ghost.rules import Rows

Measure = Callable[[Tensor], None]


class NotBatchable(Exception):
    """Why a model, or what it is given, has to be measured one example at a time."""


class Uses(TorchFunctionMode):
    """Measures each example's gradient of ``parameters`` in the backward pass of what runs inside.

    Args:
        parameters: by name; none of them (nor any other of the model) requires a gradient, so that none is computed.
        shape: (B, T) of the token ids the model is called with.
        collected: takes what is measured.
    """

    def __init__(self, parameters: Mapping[str, Tensor], shape: torch.Size, collected: Collected) -> None:
        super().__init__()
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._batch, self._tokens = shape
        self._derived: list[Tensor] = []  # kept alive: a tensor is known by its id
        self._inputs: dict[tuple[int, int], Rows] = {}
        self._looked_up: set[str] = set()
        self._multiplied: set[str] = set()
        self.collected = collected

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        used = next((self._names[id(x)] for x in _flat([*args, *kwargs.values()]) if id(x) in self._names), None)
        if used is None:
            return func(*args, **kwargs)
        rule = _RULES.get(func)
        if rule is None:
            result = func(*args, **kwargs)
            if func in _WITHOUT_GRADIENT or not any(isinstance(x, Tensor) for x in _flat([result])):
                return result
            raise NotBatchable(f"{used} is used by {resolve_name(func)}, for which there is no rule")
        if not torch.is_grad_enabled():
            raise NotBatchable(f"{used} is used where no gradient is recorded, as in gradient checkpointing")
        try:
            return rule(self, *args, **kwargs)
        except _Unruled as problem:
            raise NotBatchable(f"{used} is used by {resolve_name(func)} {problem}") from None
        except TypeError as problem:  # if it is the model's fault, the loop will meet it too
            raise NotBatchable(f"{used} is used by {resolve_name(func)} with other arguments: {problem}") from problem

    def _name(self, value: Any) -> str | None:
        return self._names.get(id(value))

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return self._affine(F.linear(input, weight, bias), input, weight, bias)

    def _addmm(self, bias: Tensor, input: Tensor, weight: Tensor) -> Tensor:
        # Hugging Face's Conv1D. Its weight is the transpose of a linear map's.
        return self._affine(torch.addmm(bias, input, weight), input, weight, bias, transposed=True)

    def _affine(
        self, output: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool = False
    ) -> Tensor:
        name, bias_name = self._name(weight), self._name(bias)
        if self._name(input) or weight.dim() != 2 or (bias is not None and bias.dim() != 1):
            raise _Unruled("in a form for which there is no rule")
        inputs = self._read(name, input) if name else None

        def measure(gradient: Tensor) -> None:
            if name and inputs:
                self.collected.matrix(name, inputs, gradient, transposed)
            if bias_name:
                self.collected.add(bias_name, gradient, gradient.shape[-1:])

        return self._measured(output, measure)

    def _read(self, name: str, input: Tensor) -> Rows:
        if name in self._multiplied:
            raise _Unruled("several times in one forward pass")
        self._multiplied.add(name)
        inputs = self._inputs.setdefault((id(input), input._version), Rows(input))
        inputs.readers += 1
        return inputs

    def _embedding(
        self,
        input: Tensor,
        weight: Tensor,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> Tensor:
        name = self._name(weight)
        if max_norm is not None or scale_grad_by_freq:
            raise _Unruled("with max_norm or scale_grad_by_freq")
        if name is None or name in self._looked_up or name in self._multiplied:
            raise _Unruled("several times in one forward pass")
        if input.dim() == 2 and input.shape[0] == 1:
            input = input.expand(self._batch, -1)  # positions, which all examples share
        self._looked_up.add(name)
        padding = None if padding_idx is None else padding_idx % len(weight)
        output = self._measured(
            F.embedding(input, weight, padding_idx),
            lambda gradient: self.collected.lookup(name, gradient, padding),
        )
        self.collected.looked_up(name, input.reshape(self._batch, -1))
        return output

    def _layer_norm(
        self,
        input: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        output = F.layer_norm(input, normalized_shape, weight, bias, eps)
        return self._scaled(output, weight, bias, lambda: F.layer_norm(input, normalized_shape, None, None, eps))

    def _rms_norm(
        self, input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
    ) -> Tensor:
        output = F.rms_norm(input, normalized_shape, weight, eps)
        return self._scaled(output, weight, None, lambda: F.rms_norm(input, normalized_shape, None, eps))

    def _mul(self, left: Any, right: Any) -> Tensor:
        weight, other = (left, right) if self._name(left) else (right, left)
        if not isinstance(other, Tensor) or self._name(other):
            raise _Unruled("with something that is not an activation")
        return self._scaled(torch.mul(left, right), weight, None, lambda: other)

    def _add_to(self, left: Any, right: Any) -> Tensor:
        weight, other = (left, right) if self._name(left) else (right, left)
        output = torch.add(left, right)
        if isinstance(other, (int, float)):
            return self._same(weight, output)
        if self._name(other):
            raise _Unruled("with something that is not an activation")
        return self._scaled(output, None, weight, lambda: other)

    def _same(self, weight: Tensor, value: Tensor) -> Tensor:
        """``value`` is the parameter plus a number: its gradient is the parameter's."""
        name = self._name(weight)
        if name is None or not value.is_floating_point():
            raise _Unruled("in a form for which there is no rule")
        self._derived.append(value)
        self._names[id(value)] = name
        return value

    def _scaled(
        self, output: Tensor, weight: Tensor | None, bias: Tensor | None, factor: Callable[[], Tensor]
    ) -> Tensor:
        """``output`` is factor * weight + bias, element by element; the factor is made again when it is needed."""
        name, bias_name = self._name(weight), self._name(bias)
        for value in (weight, bias):
            if value is not None and self._name(value) and not _trailing(value.shape, output.shape):
                raise _Unruled("in a form for which there is no rule")

        def measure(gradient: Tensor) -> None:
            if name and weight is not None:
                self.collected.add(name, gradient * factor(), weight.shape)
            if bias_name and bias is not None:
                self.collected.add(bias_name, gradient, bias.shape)

        return self._measured(output, measure)

    def _measured(self, output: Tensor, measure: Measure) -> Tensor:
        """Call ``measure`` with the gradient of ``output``, and let go of all it holds afterwards."""
        if self._batch > 1 and not (
            output.shape[0] == self._batch or (output.dim() == 2 and len(output) == self._batch * self._tokens)
        ):
            raise _Unruled(f"with a result of shape {tuple(output.shape)}, whose rows are not the examples")
        waiting = [measure]
        del measure

        def once(gradient: Tensor) -> None:
            with torch.autocast(gradient.device.type, enabled=False):
                waiting.pop()(gradient)

        if output.requires_grad:
            output.register_hook(once)  # type: ignore[no-untyped-call]
            return output
        # Nothing before this needs a gradient: the backward pass ends here. A leaf must not be changed in place; a copy
        # may be.
        start = output.requires_grad_().clone()
        start.register_hook(once)  # type: ignore[no-untyped-call]
        return start


def _trailing(shape: torch.Size, whole: torch.Size) -> bool:
    return len(shape) < len(whole) and shape == whole[len(whole) - len(shape) :]


class _Unruled(Exception):
    """What is unusual about the use of a parameter."""


def _flat(values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _flat(value)
        else:
            yield value


def _casting(func: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def rule(uses: Uses, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result = func(value, *args, **kwargs)
        # Otherwise an activation is cast, and the parameter only says to what.
        return uses._same(value, result) if uses._name(value) else result

    return rule


_RULES: dict[Callable[..., Any], Callable[..., Tensor]] = {
    F.linear: Uses._linear,
    torch.addmm: Uses._addmm,
    F.embedding: Uses._embedding,
    F.layer_norm: Uses._layer_norm,
    F.rms_norm: Uses._rms_norm,
    torch.mul: Uses._mul,
    Tensor.mul: Uses._mul,
    torch.add: Uses._add_to,
    Tensor.add: Uses._add_to,
    **{cast: _casting(cast) for cast in (Tensor.to, Tensor.float, Tensor.type_as)},
}
_WITHOUT_GRADIENT = {Tensor.detach, Tensor.data.__get__}  # type: ignore[attr-defined]
