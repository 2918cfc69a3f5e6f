"""Being saved, loaded and copied: what a localized optimizer's checkpoints hold beside the wrapped one's."""

from __future__ import annotations

import copy
import warnings
import weakref
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import StateDict

from localopt.policies.bound import BoundPolicy
from localopt.steps import checkpoint, complete
from localopt.steps.agreement import ProcessAgreement
from localopt.steps.anchor import Anchor
from localopt.steps.layout import Layout
from localopt.steps.watch import known
from localopt.steps.wrapper import OptimizerWrapper


class SavedOptimizer(OptimizerWrapper):
    """A wrapper with layers, a policy and perhaps an anchor, as far as checkpoints and copies go."""

    frozen_state: str
    complete_checkpoints: bool | None
    _layout: Layout
    _policy: BoundPolicy
    _anchor: Anchor | None
    _model: weakref.ref[nn.Module] | None
    _state_made_up: bool
    _skipped: Tensor
    _agreement: ProcessAgreement

    def state_dict(self) -> StateDict:
        """Return the wrapped optimizer's state; a policy's state stands in its first group, under "localopt".

        With an anchor decay, every parameter's state also holds its start, as "localopt_start". A bare optimizer loads
        that too, once every layer was updated: torch takes a parameter that has only a start for one that has moments.
        """
        self._store_policy_state(int(self._skipped))
        state = checkpoint.with_starts(super().state_dict(), self._anchor, self.param_groups)
        complete_ = self.complete_checkpoints
        if complete.any_sharded(self.inner) if complete_ is None else complete_:
            return complete.completed(self.inner, state, self._names(), self._anchor, self._state_made_up)
        return state

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load what :meth:`state_dict` returned, or the state of a bare optimizer (a policy with state starts anew).

        Raises:
            ValueError: saved for other parameters, layers or another policy, without the start of an anchor decay or
                with another one than was given; nothing was changed.
        """
        taken: list[Any] = []

        def take(_: Optimizer, given: StateDict) -> StateDict:
            # The last of the hooks before loading, so that it sees what the user's own hooks made of the checkpoint.
            saved, starts, bare = checkpoint.split(given, self._names())
            owners = self._layout.flat()
            taken.extend(
                [checkpoint.check(self._policy, self._anchor, saved, starts, self.param_groups, owners), starts]
            )
            return bare

        handle = self.inner.register_load_state_dict_pre_hook(take)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        for message in taken[0]:
            warnings.warn(message, stacklevel=2)
        # Read again: a hook may have changed it while it was loaded.
        saved = self.param_groups[0].pop(checkpoint.KEY, None)
        checkpoint.restore(self._policy, self._anchor, saved, taken[1])
        self._state_made_up = False
        self._skipped.fill_(checkpoint.skipped_steps(saved))
        self._store_policy_state(checkpoint.skipped_steps(saved))
        self._drop_frozen_state()
        self._agreement.again(with_state=True)

    def _forget_checkpoints(self) -> None:
        """Take out of the state what checkpoints put there: starts, and what was made up to see what there will be."""
        complete.forget(self.inner)
        if self._state_made_up:
            self.state.clear()
        self._state_made_up = complete.makes_state_up(self.inner)

    def _store_policy_state(self, skipped: int | None = None) -> None:
        """Lay what a checkpoint says of the policy into the first group; the count of skipped steps as it was there."""
        if skipped is None:
            skipped = checkpoint.skipped_steps(self.param_groups[0].get(checkpoint.KEY))
        packed = checkpoint.pack(self._policy, skipped)
        if packed is not None:
            self.param_groups[0][checkpoint.KEY] = packed

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_model": None}  # a weak reference does not travel

    def __deepcopy__(self, memo: dict[int, Any]) -> SavedOptimizer:
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        model = memo.get(id(self._live_model()))  # copied with its model, it goes on with the copy
        twin._model = None if model is None else weakref.ref(model)
        known(twin)
        return twin

    def _drop_frozen_state(self) -> None:
        if self.frozen_state == "drop" and self._policy.constant is not None:
            scales = dict(zip(self._layout.names, self._policy.constant.tolist(), strict=True))
            for name, parameters in self._layout.weights(self.param_groups).items():
                for parameter in parameters:
                    if scales[name] == 0:
                        self.state.pop(parameter, None)

    def _names(self) -> list[str]:
        return [name for group in self._layout.parameters for name in group]

    def _live_model(self) -> nn.Module | None:
        return None if self._model is None else self._model()
