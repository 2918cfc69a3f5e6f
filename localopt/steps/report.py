"""What the last localized step did, for a person to read and a logger to write down."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Report:
    """The last step of a :class:`localopt.LocalizedOptimizer`.

    Attributes:
        names: the L layers, in the order of the model.
        norms: gradient norm of each layer; None where the policy is constant and nothing asked for norms.
        scales: what each layer's learning rate was multiplied by; 0 means the layer was frozen.
        total_norm: gradient norm over the layers that were updated, before clipping; None without norms.
        share_updated: share of the optimizer's parameters (by element) that lie in updated layers.
        skipped_steps: steps so far that changed nothing because a gradient norm was NaN or infinite.

    Examples:
        >>> print(Report(("h.0", "h.1"), (0.3, 0.4), (0.0, 1.0), 0.4, 0.5, 0))
        1 of 2 layers updated (50% of parameters), gradient norm 0.4, 0 steps skipped
          h.0  norm 0.3        scale 0
          h.1  norm 0.4        scale 1
    """

    names: tuple[str, ...]
    norms: tuple[float, ...] | None
    scales: tuple[float, ...]
    total_norm: float | None
    share_updated: float
    skipped_steps: int

    @property
    def updated(self) -> tuple[str, ...]:
        """Names of the layers that were updated."""
        return tuple(name for name, scale in zip(self.names, self.scales, strict=True) if scale > 0)

    def __str__(self) -> str:
        norm = "not taken" if self.total_norm is None else f"{self.total_norm:.4g}"
        lines = [
            f"{len(self.updated)} of {len(self.names)} layers updated ({self.share_updated:.0%} of parameters), "
            f"gradient norm {norm}, {self.skipped_steps} steps skipped"
        ]
        width = max(len(name) for name in self.names)
        for i, name in enumerate(self.names):
            layer_norm = "" if self.norms is None else f"norm {self.norms[i]:<10.4g} "
            lines.append(f"  {name:<{width}}  {layer_norm}scale {self.scales[i]:.4g}")
        return "\n".join(lines)
