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
from localopt.outside import plain, shown
from localopt.policies.rules import AboveMean, Fixed, Proportional
from localopt.tracing import export, tracefile
from localopt.tracing.lending import refuse_wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class LayerTrace:
    """Gradient norms of a model's layers on a probe set and on a reference set.

    Attributes:
        layers: the L layer names, in the order of the model's parameters.
        probe_norms: N_l(probe), float32 CPU tensor of shape (L,).
        reference_norms: N_l(reference), likewise.
        metadata: what was measured: ``model``, ``partition`` ("sublayer", "block", "parameter" or "custom"),
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

    def frozen_parameters(self) -> Fixed:
        """TGL + FP (section 4 of the paper): scale 1 for the layers with R_l >= min(mean R, max R), 0 for the others.

        The mean and its edge cases are those of :class:`~localopt.policies.rules.AboveMean`.
        """
        return self._fixed(AboveMean()(self.relative_norms))

    def adaptive_learning_rates(self, normalize: Literal["max", "mean"] = "max") -> Fixed:
        """TGL + ALR: scale R_l / max R (no layer exceeds the base rate), or R_l / mean R (keeps the average rate)."""
        return self._fixed(Proportional(normalize)(self.relative_norms))

    def _fixed(self, scales: Tensor) -> Fixed:
        return Fixed(dict(zip(self.layers, scales.tolist(), strict=True)))

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
        layer_of = partition(parameters, self.partition(layers))
        trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
        self.check({layer_of[name] for name in trained} | (set(self.layers) & set(layer_of.values())))
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
        """Raise ValueError unless ``names`` are the layers of this trace, in any order; says which are on one side."""
        given = set(names)
        only_trace = [layer for layer in self.layers if layer not in given]
        only_model = sorted(given.difference(self.layers))
        if only_trace or only_model:
            raise ValueError(
                f"the trace ({self.metadata.get('model', 'model unknown')}) and the model do not have the same layers. "
                f"Only in the trace: {', '.join(only_trace) or 'none'}. Only in the model: "
                f"{', '.join(only_model) or 'none'}. Trace this model with the same `layers`"
            )

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
        layer_of = partition((name for name, _ in model.named_parameters()), self.partition(layers))
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
        name = self.metadata.get("model", "")
        what = "gain over damage" if self.holds_gains else "relative gradient norms"
        table = Table(title=shown(f"{name}: {what}" if name else what))
        table.add_column("layer", no_wrap=True)
        titles = ("gain", "damage", "ratio") if self.holds_gains else ("probe", "reference", "relative")
        for title in (*titles, "FP trains", "ALR"):
            table.add_column(title, justify="center" if title == "FP trains" else "right")
        fixed, adaptive = self.frozen_parameters().scales, self.adaptive_learning_rates().scales
        rows = zip(self.layers, self.probe_norms, self.reference_norms, self.relative_norms, strict=True)
        for layer, probe, reference, relative in rows:
            trained = fixed[layer] > 0
            values = (
                f"{probe:.4g}",
                f"{reference:.4g}",
                f"{relative:.3g}" if self.holds_gains else f"{relative:.3f}",
                "yes" if trained else "",
                f"{adaptive[layer]:.3f}",
            )
            table.add_row(shown(layer), *values, style="bold" if trained else None)
        return table

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
