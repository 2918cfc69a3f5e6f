"""A CUDA device that is not there: tensors without data, and a log of everything that is done with them.

Under ``FakeTensorMode`` a step runs as it would on a GPU, without one: whatever would make the host wait for a number
raises, and so does whatever mixes devices. What is left is a list of calls and of what each of them allocates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

_IN_PLACE = "aten._fused_"  # kernels that torch has no fake of; they change their arguments and return nothing
_NO_KERNEL = ("prim.", "profiler.", "aten.empty", "c10d.")
_COLLECTIVES = ("c10d.", "_c10d_functional.")


@dataclass(frozen=True)
class Call:
    """One call of torch.

    Attributes:
        name: as in "aten._fused_adamw_.default".
        made: bytes of each tensor it allocates.
        devices: of all tensors it takes and returns.
        kernel: whether it runs something on the device; a view does not.
    """

    name: str
    made: tuple[int, ...]
    devices: frozenset[str]
    kernel: bool

    @property
    def collective(self) -> bool:
        """Whether it waits for other processes."""
        return self.name.startswith(_COLLECTIVES) and not self.name.startswith("_c10d_functional.wait")


class Recorded(TorchDispatchMode):
    """Writes down the calls made while it is entered.

    Example:
        >>> with fake_cuda(), Recorded() as recorded:
        ...     _ = torch.empty(2, 3, device="cuda").t().add(1)
        >>> [(call.name, call.made, call.kernel) for call in recorded.calls if call.kernel]
        [('aten.add.Tensor', (24,), True)]
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(kind.__name__ == "DTensor" for kind in types):
            return NotImplemented  # what it does with its shards comes here next
        name, kwargs = str(function), kwargs or {}
        taken = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        found = None if name.startswith(_IN_PLACE) else function(*args, **kwargs)
        returned = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
        aliased = all(one.alias_info is not None for one in function._schema.returns)
        written = any(a.alias_info is not None and a.alias_info.is_write for a in function._schema.arguments)
        held = {tensor.untyped_storage()._cdata for tensor in taken}
        new = [] if aliased else [tensor for tensor in returned if tensor.untyped_storage()._cdata not in held]
        self.calls.append(
            Call(
                name,
                tuple(tensor.untyped_storage().nbytes() for tensor in new),
                frozenset(tensor.device.type for tensor in (*taken, *returned)),
                bool(new or written) and not name.startswith(_NO_KERNEL),
            )
        )
        return found

    @property
    def kernels(self) -> list[Call]:
        """Those that run on the device."""
        return [call for call in self.calls if call.kernel]

    @property
    def largest(self) -> int:
        """Bytes of the largest tensor that was allocated."""
        return max((size for call in self.calls for size in call.made), default=0)

    def outline(self) -> list[tuple[str, tuple[int, ...]]]:
        """Names and sizes, to compare one step with another."""
        return [(call.name, call.made) for call in self.calls if not call.name.startswith("prim.")]


class _RealHost(TorchDispatchMode):
    """Leaves tensors of the host what they are, with values; only what goes to the device becomes fake."""

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self.fake = fake

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        goes = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda"
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if goes:
            real = [t for t in tensors if not isinstance(t, FakeTensor)]
            if real:
                args = tree_map_only(
                    Tensor, lambda t: t if isinstance(t, FakeTensor) else self.fake.from_tensor(t), args
                )
            return function(*args, **kwargs)
        if any(isinstance(t, FakeTensor) for t in tensors):
            return function(*args, **kwargs)
        with unset_fake_temporarily():
            return function(*args, **kwargs)


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Let ``device="cuda"`` be a device without memory, beside a host as it is.

    What would read a number of the device raises DataDependentOutputException, what mixes devices an error too. There
    is no autograd: gradients are given by hand.
    """
    fake = FakeTensorMode()
    with torch.no_grad(), fake, _RealHost(fake):
        yield


def module_of(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a module with parameters of these names and shapes on the device; call it under :func:`fake_cuda`."""
    root = nn.Module()
    for name, shape in shapes.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(last, nn.Parameter(torch.empty(shape, dtype=dtype, device="cuda")))
    return root


def give_gradients(module: nn.Module) -> None:
    """Give every parameter a gradient."""
    for parameter in module.parameters():
        parameter.grad = torch.empty_like(parameter)
