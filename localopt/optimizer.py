"""Scales -> updates: the optimizer a user puts into a training loop.

One step is the method in five lines:

    norms  = layer_norms(gradients)          one norm a layer, one pass
    scales = policy(norms)                   0 freezes a layer, 1 is the user's learning rate
    finite = all norms are finite            else nothing is updated
    clip   = min(1, max_grad_norm / norm of the gradients of the layers with scale > 0)
    the wrapped optimizer steps every layer with scale > 0, at lr * scale

"Frozen" means no update at all. Scaling or zeroing the *gradient* would not do: Adam is nearly invariant to its scale,
and its momentum and weight decay move the weights even where it is zero.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import StateDict

from localopt.layers import Layers
from localopt.policies.protocol import Policy, bind, inspect, is_binary, is_constant, state_tensors
from localopt.policies.rules import AboveMean
from localopt.signals import clip_factor, layer_norms, segments
from localopt.steps import checkpoint
from localopt.steps.checks import (
    refuse_at_construction,
    refuse_nonfinite,
    refuse_rebuilt,
    refuse_scales,
    refuse_shape,
    refuse_toggled,
)
from localopt.steps.fused import can_fuse, fused_step
from localopt.steps.layout import Layout, lay_out, parameter_names, unpack, weights_by_layer
from localopt.steps.report import Report
from localopt.steps.sharding import Sharding, local, reduced, sharding
from localopt.steps.split import split_step
from localopt.steps.wrapper import OptimizerWrapper


class LocalizedOptimizer(OptimizerWrapper):
    r"""Wrap a torch optimizer so that each step updates only, or mostly, the layers with large gradient norms.

    Gradient localization (Fernandez, Bisk and Strubell 2024, arXiv 2411.04448): with N_l the gradient norm of layer l
    and s = policy(N), layer l is stepped with learning rate s_l * lr, and not at all where s_l = 0.

    Args:
        optimizer: any torch optimizer; it keeps its parameters, groups and state, and this object shows them as its
            own. LBFGS and ``differentiable=True`` cannot be localized.
        model: gives the parameters their names; not needed if the optimizer was built from
            ``model.named_parameters()``. Only a weak reference is kept.
        policy: maps norms (L,) to scales (L,); see :mod:`localopt.policies`.
        layers: what a layer is: ``"sublayer"`` (attention and MLP of a block apart), ``"block"``, ``"parameter"``, or a
            function from parameter name to layer name.
        max_grad_norm: clip the gradients of the layers that are updated to this global norm, as ``clip_grad_norm_``
            over those would. The gradients' values after the step are then unspecified. ``math.inf`` clips nothing.
        frozen_state: ``"hold"``: moments and step count of a frozen layer stay as they are. ``"track"``: they move on
            as if the layer were trained, its weights do not. ``"drop"``: layers frozen by a constant policy have none.
            (Fused kernels on a device give a layer that waits for its first update moments of zero, which is the same.)
        nonfinite: what to do when a layer's norm is NaN or infinite. ``"skip"``: the step changes nothing and is
            counted. ``"raise"``: FloatingPointError naming the layers; waits for the device every step.
        broadcast_norms: take the norms of the first process of the default process group, where several train on
            unlike hardware and equal gradients may differ in their last bits. One broadcast of L floats a step.

    A policy whose scales never change (``Fixed``) needs no norms, so none are taken and a NaN passes as it would pass
    the bare optimizer, unless ``max_grad_norm`` or ``nonfinite="raise"`` asks for them. A step whose gradients are all
    zero is a step of the bare optimizer: no policy state moves, and only a constant policy freezes anything.

    Raises:
        ValueError, TypeError: at construction, for anything that cannot work, with what to use instead.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        >>> optimizer = LocalizedOptimizer(optimizer, model)
        >>> model(torch.ones(8, 4)).square().mean().backward()
        >>> optimizer.step()
        >>> optimizer.report().names
        ('0', '2')
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module | None = None,
        policy: Policy = AboveMean(),
        *,
        layers: Layers = "sublayer",
        max_grad_norm: float | None = None,
        frozen_state: Literal["hold", "track", "drop"] = "hold",
        nonfinite: Literal["skip", "raise"] = "skip",
        broadcast_norms: bool = False,
    ) -> None:
        refuse_at_construction(optimizer, model, policy, max_grad_norm, frozen_state, nonfinite)
        super().__init__(optimizer)
        self.policy = policy
        self.layers = layers
        self.max_grad_norm = max_grad_norm
        self.frozen_state = frozen_state
        self.nonfinite = nonfinite
        self.broadcast_norms = broadcast_norms
        self._model = weakref.ref(model) if model is not None else None
        self._norms: Tensor | None = None
        self._scales: Tensor | None = None
        self._skipped = torch.zeros((), dtype=torch.int64)
        self._warned_all_frozen = False
        self._warned_no_gradient = False
        self._requires_grad: list[bool] | None = None
        saved = self.param_groups[0].pop(checkpoint.KEY, None)  # of a checkpoint loaded before this
        self._lay_out(parameter_names(self.param_groups, model))
        if saved is not None:
            checkpoint.check(policy, self._layout.names, saved)
            self._load_policy(saved)
        self._drop_frozen_state()

    # -- one step -----------------------------------------------------------------------------------------------------

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update the layers the policy chooses; return the closure's loss, if there is one.

        Raises:
            FloatingPointError: ``nonfinite="raise"`` and a norm is NaN or infinite; nothing was changed.
            ValueError: the policy returned something that is not one finite scale >= 0 a layer; no parameter changed.
                (Where fused kernels run on a device, such layers are left alone and :meth:`report` raises.)
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        shards = self._check(parameters)
        if self._device() != self._home:
            self._bind()
        if self._constant is not None and self.max_grad_norm is None and self.nonfinite == "skip":
            self._norms, self._scales = None, self._constant
            on_host: list[float] | None = self._constant.tolist()
            self._step_on_host(range(len(self.param_groups)), on_host or [])
        else:
            norms = self._measure(parameters, shards)
            finite = norms.isfinite().all()
            if self.nonfinite == "raise" and not finite:
                refuse_nonfinite(self._layout.names, norms.tolist())
            scales = self._choose(norms, finite)
            on_host = self._step(norms, scales, finite)
            self._norms, self._scales = norms, scales
        if on_host is not None and not any(on_host):
            self._warn_all_frozen(stacklevel=5)  # past the decorators of step, to the line that called it
        self.inner._opt_called = True  # type: ignore[attr-defined]  # what a scheduler made on it looks for
        return loss

    def _check(self, parameters: Sequence[Tensor]) -> Sharding | None:
        """Refuse, before anything is changed, what would train the wrong thing; say how the parameters are sharded."""
        self._layout.check(self.param_groups)
        shards = sharding(parameters)
        if shards is None and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            now = [parameter.requires_grad for parameter in parameters]
            refuse_toggled(self._requires_grad, now, [name for group in self._names for name in group])
            self._requires_grad = now
        if not self._warned_no_gradient and all(parameter.grad is None for parameter in parameters):
            refuse_rebuilt(self._live_model(), parameters)
            self._warned_no_gradient = True
            warnings.warn("no parameter has a gradient: nothing was updated (said once)", stacklevel=5)
        return shards

    def _measure(self, parameters: Sequence[Tensor], shards: Sharding | None) -> Tensor:
        """Return the norms (L,) of the gradients, the same on every process."""
        gradients = [None if (g := p.grad) is None else local(reduced(g, p)) for p in parameters]
        norms = layer_norms(gradients, self._segments, shards)
        if self.broadcast_norms and torch.distributed.is_initialized():
            torch.distributed.broadcast(norms, src=0)
        return norms

    def _choose(self, norms: Tensor, finite: Tensor) -> Tensor:
        """Ask the policy for the scales (L,), by tensor operations only."""
        counts = finite & norms.any()
        state = state_tensors(self.policy)
        before = {key: tensor.clone() for key, tensor in state.items()}
        # A step that does not count (non-finite, or all zero) still runs the policy, on harmless norms, and its state
        # is put back: to decide on the host would be to wait for the device.
        scales = self._ask(torch.where(counts, norms, 1.0))
        for key, tensor in state.items():
            tensor.copy_(torch.where(counts, tensor, before[key]))
        if self._constant is None:
            scales = torch.where(counts, scales, 1.0)
        return torch.where(finite, scales, 0.0)

    def _ask(self, norms: Tensor) -> Tensor:
        scales = self.policy(norms)
        refuse_shape(self.policy, scales, len(self._layout.names))
        return scales.to(device=self._home, dtype=torch.float32)

    def _step(self, norms: Tensor, scales: Tensor, finite: Tensor) -> list[float] | None:
        """Step every layer by its scale: on the device where fused kernels can, else after reading the scales once.

        Returns the scales if they were read and the step was not skipped.
        """
        clip = None if self.max_grad_norm is None else clip_factor(norms, scales, self.max_grad_norm)
        self._skipped += ~finite
        fused = [i for i, group in enumerate(self.param_groups) if can_fuse(self.inner, group)]
        rest = [i for i in range(len(self.param_groups)) if i not in fused]
        numbers = None
        if rest:
            *numbers, all_finite = torch.cat([scales, finite.reshape(1)]).tolist()
            if not all_finite:
                return None
            self._step_on_host(rest, numbers, clip)
        track = self.frozen_state == "track"
        # A scale that is no number is found by report(); here it must not reach the weights.
        usable = finite & scales.isfinite() & (scales >= 0)
        idle = (~usable | (scales == 0) & (not track)).float()
        for i in fused:
            group, layers = self._ever_trained(i)
            binary = is_binary(self.policy) and not track
            fused_step(self.inner, group, layers, scales, idle=idle, binary=binary, clip=clip)
        return numbers

    def _step_on_host(self, groups: Iterable[int], scales: Sequence[float], clip: Tensor | None = None) -> None:
        refuse_scales(self.policy, self._layout.names, scales)
        split_step(
            self.inner,
            [self.param_groups[i] for i in groups],
            [self._layout.owners[i] for i in groups],
            scales,
            clip=clip,
            track=self.frozen_state == "track",
        )

    def _ever_trained(self, index: int) -> tuple[dict[str, Any], Sequence[int]]:
        """Return a group and its owners without what a constant policy freezes: the kernels would make it a state."""
        group, layers = self.param_groups[index], self._layout.owners[index]
        if self._constant is None or self.frozen_state == "track":
            return group, layers
        keep = [i for i, layer in enumerate(layers) if self._constant[layer] > 0]
        return {**group, "params": [group["params"][i] for i in keep]}, [layers[i] for i in keep]

    def _warn_all_frozen(self, stacklevel: int) -> None:
        if not self._warned_all_frozen:
            self._warned_all_frozen = True
            warnings.warn(
                f"{self.policy!r} freezes every layer: nothing was updated (said once)", stacklevel=stacklevel
            )

    def report(self) -> Report:
        """Say what the last step did. Waits for the device.

        Raises:
            RuntimeError: there was no step yet.
            ValueError: the policy returned a scale that is not finite and >= 0.
        """
        if self._scales is None:
            raise RuntimeError("report() tells what the last step did, and there was none yet: call step() first")
        names, scales = self._layout.names, tuple(self._scales.tolist())
        refuse_scales(self.policy, names, scales)
        if not any(scales) and (self._norms is None or self._norms.isfinite().all()):
            self._warn_all_frozen(stacklevel=3)
        weights = weights_by_layer(self._layout, self.param_groups)
        sizes = [sum(parameter.numel() for parameter in weights[name]) for name in names]
        norms = None if self._norms is None else tuple(self._norms.tolist())
        updated = [i for i, scale in enumerate(scales) if scale > 0]
        return Report(
            names=names,
            norms=norms,
            scales=scales,
            total_norm=None if norms is None else math.hypot(*(norms[i] for i in updated)),
            share_updated=sum(sizes[i] for i in updated) / max(1, sum(sizes)),
            skipped_steps=int(self._skipped),
        )

    # -- layers and policy --------------------------------------------------------------------------------------------

    def _lay_out(self, names: list[list[str]]) -> None:
        """Sort the named parameters into layers, and introduce these to the policy."""
        self._layout: Layout = lay_out(names, self._live_model(), self.layers)
        self._names: list[list[str]] = names
        self._bind()
        inspect(self.policy, weights_by_layer(self._layout, self.param_groups))
        self._read_policy()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; they are given as ``(name, parameter)`` pairs, or named by the model.

        Raises:
            ValueError, TypeError: they have no names, torch refuses them or the policy does not know their layers;
                nothing was changed.
        """
        group = unpack(param_group)
        [names] = parameter_names([group], None if "param_names" in group else self._live_model())
        # torch wants names on all groups or on none.
        if "param_names" in self.param_groups[0]:
            group.setdefault("param_names", names)
        else:
            group.pop("param_names", None)
        self.inner.add_param_group(group)
        before = self._names, self._layout
        try:
            self._lay_out([*self._names, names])
        except Exception:
            self.param_groups.pop()
            self._names, self._layout = before
            self._bind()
            raise

    def _live_model(self) -> nn.Module | None:
        return None if self._model is None else self._model()

    def _read_policy(self) -> None:
        """Keep on the host what a policy says for good, so that no step has to wait for it, and what it remembers."""
        ones = torch.ones(len(self._layout.names), device=self._home)
        self._constant = self._ask(ones).cpu() if is_constant(self.policy) else None
        self._store_policy_state()

    def _device(self) -> torch.device:
        first = next((parameter for group in self.param_groups for parameter in group["params"]), None)
        return torch.device("cpu") if first is None else first.device

    def _bind(self) -> None:
        """Tell the policy its layers, and put what lives on the device where the parameters are (they may move)."""
        self._home = self._device()
        self._segments = segments(self._layout.flat(), len(self._layout.names), self._home)
        self._skipped = self._skipped.to(self._home)
        bind(self.policy, self._layout.names, self._home)

    def _drop_frozen_state(self) -> None:
        if self.frozen_state == "drop" and self._constant is not None:
            scales = dict(zip(self._layout.names, self._constant.tolist(), strict=True))
            for name, parameters in weights_by_layer(self._layout, self.param_groups).items():
                for parameter in parameters:
                    if scales[name] == 0:
                        self.state.pop(parameter, None)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def state_dict(self) -> StateDict:
        """Return the wrapped optimizer's state; a policy's state stands in its first group, under "localopt"."""
        self._store_policy_state()
        return super().state_dict()

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load what :meth:`state_dict` returned, or the state of a bare optimizer (a policy with state starts anew).

        Raises:
            ValueError: saved for other parameters, layers or another policy; nothing was changed.
        """
        saved = state_dict["param_groups"][0].get(checkpoint.KEY)
        checkpoint.check(self.policy, self._layout.names, saved)
        super().load_state_dict(state_dict)
        # Read again: a hook may have changed it while it was loaded.
        self._load_policy(self.param_groups[0].pop(checkpoint.KEY, None))
        self._drop_frozen_state()

    def _load_policy(self, saved: dict[str, Any] | None) -> None:
        checkpoint.restore(self.policy, saved)
        self._read_policy()

    def _store_policy_state(self) -> None:
        packed = checkpoint.pack(self.policy, self._layout.names)
        if packed is not None:
            self.param_groups[0][checkpoint.KEY] = packed

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_model": None}  # a weak reference does not travel

    def __repr__(self) -> str:
        return f"LocalizedOptimizer({self.policy!r}, {len(self._layout.names)} layers) of {self.inner!r}"
