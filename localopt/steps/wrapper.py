"""Being the wrapped optimizer: everything of torch's Optimizer that a wrapper must share instead of copy.

Schedulers, checkpointing, mixed precision and the training frameworks all reach into an optimizer: they replace the
lists in ``param_groups``, register hooks, pickle it, and call ``load_state_dict(state_dict=...)``. So nothing is held
twice here: groups, state, defaults and hooks are the wrapped optimizer's own.
"""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import StateDict

_HOOKS = (
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)


class OptimizerWrapper(Optimizer):
    """An optimizer that shows another one's parameters, state, defaults and hooks as its own.

    Hooks fire once, whichever of the two they were registered on: step hooks with the wrapper as their argument, state
    dict hooks with the wrapped optimizer.
    """

    def __init__(self, inner: Optimizer) -> None:
        # Not the base constructor: it would make a second set of groups and state.
        self.inner = inner
        self._share_hooks()

    def _share_hooks(self) -> None:
        for name in _HOOKS:
            setattr(self, name, getattr(self.inner, name))
        self._patch_step_function()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The wrapped optimizer's parameter groups."""
        return self.inner.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.inner.param_groups = groups

    @property
    def state(self) -> Any:
        """The wrapped optimizer's state."""
        return self.inner.state

    @state.setter
    def state(self, state: Any) -> None:
        self.inner.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        """The wrapped optimizer's default options."""
        return self.inner.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.inner.defaults = defaults

    def __getattr__(self, name: str) -> Any:
        # Optimizers without a schedule have these two, and trainers look whether they are there.
        if name in ("train", "eval") and "inner" in self.__dict__ and hasattr(self.inner, name):
            return getattr(self.inner, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients, as the wrapped optimizer does."""
        self.inner.zero_grad(set_to_none)

    def state_dict(self) -> StateDict:
        """Return the wrapped optimizer's state, which a bare optimizer loads too."""
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load what :meth:`state_dict` returned, here or on a bare optimizer."""
        self.inner.load_state_dict(state_dict)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters to the wrapped optimizer."""
        self.inner.add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        # As torch does, hooks and a scheduler's patch of `step` stay behind.
        return {key: value for key, value in self.__dict__.items() if key not in (*_HOOKS, "step")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._share_hooks()
