"""What a trace says about a model's layers, and what to train because of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from rich.table import Table
from torch import Tensor, nn

from localopt.errors import InputError
from localopt.layers import Layers, partition
from localopt.outside import plain
from localopt.policies.matching import Matched, matched
from localopt.policies.rules import AboveMean, Fixed, Proportional
from localopt.tracing import export, tracefile
from localopt.tracing.lending import refuse_wrapped
from localopt.tracing.table import as_table, as_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class LayerTrace:
    """Gradient norms of a model's layers on a probe set and on a reference set.

    Attributes:
        layers: the L layer names, in the order of the model's parameters.
        probe_norms: N_l(probe), float32 CPU tensor of shape (L,).
        reference_norms: N_l(reference), likewise.
        metadata: what was measured: ``model``, ``partition`` ("sublayer", "block", "matrix",
            "parameter" or "custom"),
            ``score`` ("norms" or "gains"), ``average`` (of norms: "norms" or "gradients"), ``method`` ("batched", or
            "one by one: " and why), ``probe_examples`` and ``reference_examples`` (counts), ``samples`` (how the model
            wrote its own reference, if it did), ``dtype``, ``localopt``, ``torch``.

    Raises:
        ValueError: norms that do not fit the layers.

    Examples:
        >>> trace = LayerTrace(("h.0.mlp", "h.1.mlp"), torch.tensor([1.0, 6.0]), torch.tensor([2.0, 2.0]))
        >>> trace.relative_norms
        tensor([0.5000, 3.0000])
        >>> trace.frozen_parameters().scales
        {'h.0.mlp': 0.0, 'h.1.mlp': 1.0}

    Raises:
        InputError: names that come twice or cannot be printed, norms of another length or dtype, or that are negative
            or not finite, metadata that no trace has.
    """

    layers: tuple[str, ...]
    probe_norms: Tensor
    reference_norms: Tensor
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tracefile.check(self.layers, self.probe_norms, self.reference_norms, self.metadata)

    @property
    def holds_gains(self) -> bool:
        """Whether it was taken with ``score="gains"``: gains and damages stand in place of norms."""
        return self.metadata.get("score") == "gains"

    @property
    def relative_norms(self) -> Tensor:
        """R_l, shape (L,); 1 where both norms are 0. ValueError naming the layer where only the reference norm is."""
        unmeasured = (self.reference_norms == 0) & (self.probe_norms != 0)
        if unmeasured.any():
            names = [name for name, missing in zip(self.layers, unmeasured.tolist(), strict=True) if missing]
            raise InputError(
                f"the reference gives {', '.join(names)} no gradient but the probe does, so they cannot be compared: "
                "use a reference that reaches every layer the probe reaches"
            )
        return torch.where(self.reference_norms == 0, 1.0, self.probe_norms / self.reference_norms)

    def frozen_parameters(self, *, partial: bool = False) -> Fixed:
        """TGL + FP (section 4 of the paper): scale 1 for the layers with R_l >= min(mean R, max R), 0 for the others.

        The mean and its edge cases are those of :class:`~localopt.policies.rules.AboveMean`.

        Args:
            partial: the optimizer may hold only some of the traced layers, such as those with adapters; the choice
                stays that among all of them.
        """
        return self._fixed(AboveMean()(self.relative_norms), partial)

    def adaptive_learning_rates(self, normalize: Literal["max", "mean"] = "max", *, partial: bool = False) -> Fixed:
        """TGL + ALR: scale R_l / max R (no layer exceeds the base rate), or R_l / mean R (keeps the average rate).

        Maximum and mean are those of all traced layers; ``partial`` as for :meth:`frozen_parameters`.
        """
        return self._fixed(Proportional(normalize)(self.relative_norms), partial)

    def _fixed(self, scales: Tensor, partial: bool) -> Fixed:
        return Fixed(dict(zip(self.layers, scales.tolist(), strict=True)), partial)

    def param_groups(
        self,
        model: nn.Module,
        lr: float,
        weight_decay: float = 0.0,
        *,
        scales: Mapping[str, float] | None = None,
        layers: Layers | None = None,
    ) -> list[dict[str, Any]]:
        """Return parameter groups for a bare optimizer: one a layer, at its own learning rate.

        What this trains is what the trace's policy would train, in every trainer and under every sharding, DeepSpeed's
        too: an optimizer that steps its groups one by one needs to know no other layer. Layers of scale 0 are left out.

        Args:
            model: gives the parameters; those that require no gradient are left out.
            lr: what each layer's scale is multiplied by.
            weight_decay: of every group.
            scales: by layer, as :meth:`frozen_parameters` (the default) or :meth:`adaptive_learning_rates` give them.
            layers: the function that named the layers, if the trace was taken with one.

        Returns:
            Groups with ``params``, ``lr``, ``weight_decay`` and the layer's ``name``.

        Raises:
            ValueError: the model's layers are not those of the trace, or nothing would be trained.

        Examples:
            >>> model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
            >>> trace = LayerTrace(("a", "b"), torch.tensor([1.0, 6.0]), torch.tensor([2.0, 2.0]))
            >>> [(group["name"], group["lr"]) for group in trace.param_groups(model, lr=0.1)]
            [('b', 0.1)]
        """
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        layer_of = self._layer_of(model, trained, layers)
        scales = self.frozen_parameters().scales if scales is None else scales
        groups: dict[str, dict[str, Any]] = {}
        for name, parameter in trained.items():
            layer = layer_of[name]
            if scales[layer] > 0:
                fresh = {"params": [], "lr": lr * scales[layer], "weight_decay": weight_decay, "name": layer}
                groups.setdefault(layer, fresh)["params"].append(parameter)
        if not groups:
            raise ValueError("no parameter that requires a gradient lies in a layer that the trace chooses")
        return list(groups.values())

    def freeze(self, model: nn.Module, *, layers: Layers | None = None) -> list[str]:
        """Set ``requires_grad = False`` for every parameter outside the layers that TGL + FP chooses.

        Backward pass and memory shrink with it. Nothing is ever unfrozen: a chosen parameter that does not require a
        gradient stays as it is, so a trace of a whole model also chooses among the LoRA adapters of that model.
        Gradients of frozen parameters are dropped, so that no optimizer uses them once more.

        Args:
            model: not yet wrapped by DDP, FSDP or DeepSpeed, which do not notice the change.
            layers: the function that named the layers, if the trace was taken with one.

        Returns:
            The names of the parameters that are still trained.

        Raises:
            ValueError: the model is wrapped, its layers are not those of the trace, or nothing would be trained. The
                model is then unchanged.
        """
        refuse_wrapped(model, "freeze")
        parameters = dict(model.named_parameters())
        trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
        layer_of = self._layer_of(model, trained, layers)
        scales = self.frozen_parameters().scales
        kept = [name for name in parameters if name in trained and scales[layer_of[name]] > 0]
        if not kept:
            chosen = [layer for layer, scale in scales.items() if scale > 0]
            raise ValueError(
                f"no parameter of {', '.join(chosen)} requires a gradient, so nothing would be trained: call "
                "model.requires_grad_(True) before freeze()"
            )
        for name in trained.difference(kept):
            parameters[name].requires_grad_(False).grad = None
        return kept

    def partition(self, layers: Layers | None = None) -> Layers:
        """Return how the layers were split, to pass on as ``layers=``; a function has to be given again."""
        if layers is not None:
            return layers
        how: Layers = self.metadata.get("partition", "sublayer")
        if how == "custom":  # type: ignore[comparison-overlap]
            raise ValueError("this trace was taken with a function of the parameter name: pass it as layers=")
        return how

    def check(self, names: Iterable[str]) -> None:
        """Raise ValueError unless ``names`` are the layers of this trace, in any order; says which are on one side.

        They may differ by a prefix that is the same for all, as those of a module and of the model it is a part of do.
        """
        given = dict.fromkeys(names)
        self._refuse_other(given, matched(self.layers, given))

    def _refuse_other(self, names: Iterable[str], found: Matched, inner: str = "") -> None:
        known = set(found.known_as.values())
        only_trace = [layer for layer in self.layers if layer not in known]
        only_model = sorted(set(names).difference(found.known_as))
        if only_trace or only_model:
            raise ValueError(
                f"the trace ({self.metadata.get('model', 'model unknown')}) and the model do not have the same layers. "
                f"Only in the trace: {', '.join(only_trace) or 'none'}. Only in the model: "
                f"{', '.join(only_model) or 'none'}.{inner or found.remedy()} Trace this model with the same `layers`"
            )

    def _layer_of(self, model: nn.Module, wanted: Iterable[str], layers: Layers | None) -> dict[str, str]:
        """Return this trace's layer of every parameter of a model.

        Raises ValueError unless those of the ``wanted`` parameters are in the trace, and all of the trace in the model.
        """
        how = self.partition(layers)
        layer_of = partition((name for name, _ in model.named_parameters()), how)
        found = matched(self.layers, layer_of.values())
        names = [*(layer_of[name] for name in wanted), *found.known_as]
        if set(names) != set(found.known_as) or set(found.known_as.values()) != set(self.layers):
            self._refuse_other(names, found, _inner(self, model, how))
        return {name: found.known_as[layer] for name, layer in layer_of.items() if layer in found.known_as}

    def export(
        self,
        path: str | os.PathLike[str],
        model: nn.Module,
        format: export.Format = "unfrozen_parameters",
        *,
        lr: float | None = None,
        rank: int | None = None,
        layers: Layers | None = None,
    ) -> dict[str, Any]:
        """Write what to train, or how fast, as a settings file of another trainer, and return it.

        Args:
            path: the file to write: YAML, or JSON where it ends so.
            model: gives the names of the parameters (its weights may be on the meta device); those that require no
                gradient are left out.
            format: ``"unfrozen_parameters"`` (axolotl, Spectrum), ``"lr_groups"`` (axolotl), ``"multipliers"`` (a
                factor for every parameter), or ``"peft"`` (LoRA on the chosen matrices); see `export.py`.
            lr: the base learning rate; ``"lr_groups"`` alone needs it.
            rank: of adapters, on average, for ``"peft"``; None for 8.
            layers: the function that named the layers, if the trace was taken with one.

        Raises:
            InputError: an unknown format, ``lr`` missing, settings the format cannot express, or the file cannot be
                written.
            ValueError: the model's layers are not those of the trace.
        """
        export.check_arguments(format, lr, rank)
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        layer_of = self._layer_of(model, names, layers)
        layer_of = {name: layer_of[name] for name in names}
        self.check(layer_of.values())
        chosen, rates = self.frozen_parameters().scales, self.adaptive_learning_rates().scales
        what = export.settings(format, model, layer_of, chosen, rates, lr=lr, rank=rank)
        export.write(path, what)
        return what

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, whole or not at all."""
        tracefile.write(path, self.layers, (self.probe_norms, self.reference_norms), self.metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LayerTrace:
        """Read what :meth:`save` wrote. InputError if the file is missing, damaged, newer, or something else."""
        return cls(*tracefile.read(path))

    def table(self) -> Table:
        """Return a table for :func:`rich.print`: norms, R, and what TGL + FP and TGL + ALR make of them."""
        return as_table(self)

    def __str__(self) -> str:
        return as_text(self)

    def plot(self, path: str | os.PathLike[str] | None = None, title: str | None = None) -> Figure:
        """Draw R as blocks times sublayers, centred on its mean, with the layers TGL + FP trains marked.

        Args:
            path: where to write the picture (the suffix chooses the format), whole or not at all; None for nowhere.
            title: above the picture; the model's name if None.
        """
        from localopt.plots import heat_map, save_figure

        relative = self.relative_norms
        figure: Figure = heat_map(
            dict(zip(self.layers, relative.tolist(), strict=True)),
            center=relative.mean().item(),
            marked=[layer for layer, scale in self.frozen_parameters().scales.items() if scale > 0],
            title=plain(title if title is not None else self.metadata.get("model", "")),
            label="gain over damage" if self.holds_gains else "relative gradient norm",
        )
        if path is not None:
            save_figure(figure, path)
        return figure


def _inner(trace: LayerTrace, model: nn.Module, layers: Layers) -> str:
    """Say which part of a model has the layers of a trace, if one has."""
    wanted = set(trace.layers)
    for name, module in model.named_modules():
        if name and set(partition((n for n, _ in module.named_parameters()), layers).values()) == wanted:
            return f" The part {name} of the {type(model).__name__} has them: pass that one as the model."
    return ""
