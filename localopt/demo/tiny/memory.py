"""Peak memory of a training step on a CPU, where torch keeps no such count."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors while it is entered; ``peak`` is the most that were alive at one time.

    Every operation that torch carries out passes by here, in the backward pass and the optimizer too, and the memory of
    what it returns is counted until that memory is released. ``alive``: tensors that were there before. What kernels
    use for themselves and what other libraries allocate is not seen.

    >>> import torch
    >>> before = torch.zeros(1000)
    >>> with PeakMemory(alive=[before]) as memory:
    ...     for _ in range(3):
    ...         twice = torch.ones(1000) * 2
    ...         del twice
    >>> memory.peak  # zeros, ones and their double, in float32
    12000
    """

    def __init__(self, alive: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._bytes = 0
        self._counted: set[int] = set()
        for tensor in alive:
            self._count(tensor)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)  # torch keeps one Python object a storage, for as long as the storage lives
        if key not in self._counted:
            size = storage.nbytes()
            self._counted.add(key)
            self._bytes += size
            self.peak = max(self.peak, self._bytes)
            weakref.finalize(storage, self._released, key, size).atexit = False

    def _released(self, key: int, size: int) -> None:
        self._counted.discard(key)
        self._bytes -= size
