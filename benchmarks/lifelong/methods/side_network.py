"""Adapters beside a frozen model, after K-Adapter (Wang et al. 2021, arXiv 2002.01808).

Adapters tap the hidden states h_l behind some of the blocks; each also takes what the one below it found, and what the
last one found is added to the hidden state behind the last block:

    a_k = a_(k-1) + U_k gelu(D_k (h_(l_k) + a_(k-1))),    a_0 = 0,    h = h_L + a_K.

Nothing else is trained. U begins at zero, so that the model begins as it is, and a path from start to end is one from
no adapter to the trained one. Three adapters, behind the first, the middle and the last block, as there; with
`best_tapped` behind the three blocks whose MLPs have the most gain over damage.

Departures: no transformer layers within an adapter, whose 256 units look at one token at a time; sums instead of
concatenations; the rate is ten times that of the sweep, as for LoRA. peft has no such adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.lifelong.methods.norms import block_modules
from benchmarks.lifelong.methods.optimizers import layer_names
from benchmarks.lifelong.methods.rules import Case, Scales, kind_of
from benchmarks.lifelong.methods.study import Extension
from localopt.layers import locate

TAPS, UNITS = 3, 256
NAME = "side"


class SideNetwork(nn.Module):
    """The adapters, by name of the list: one down and one up for every block that is tapped."""

    def __init__(self, width: int, taps: int, units: int = UNITS) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Linear(width, units) for _ in range(taps))
        self.up = nn.ModuleList(nn.Linear(units, width) for _ in range(taps))
        for up in self.up:
            nn.init.zeros_(up.weight)  # type: ignore[arg-type]
            nn.init.zeros_(up.bias)  # type: ignore[arg-type]

    def forward(self, number: int, hidden: Tensor, found: Tensor | None) -> Tensor:
        given = hidden if found is None else hidden + found
        more: Tensor = self.up[number](nn.functional.gelu(self.down[number](given)))
        return more if found is None else found + more


def spread(case: Case) -> list[int]:
    """The first, the middle and the last block."""
    last = max(index for layer in case.layers if (index := locate(layer)[1]) is not None)
    return sorted({round(i * last / (TAPS - 1)) for i in range(TAPS)})


def best_tapped(reference: str, probe: str) -> Callable[[Case], list[int]]:
    """The blocks whose MLPs have the most gain over damage, `probe` and `reference` as for `gain_damage_fp`."""

    def taps(case: Case) -> list[int]:
        found = case.norms.gain_over_damage(probe + case.half, reference)
        mlps = [layer for layer in case.layers if locate(layer)[1] is not None and kind_of(layer) == "mlp"]
        best = sorted(mlps, key=lambda layer: found[layer], reverse=True)[:TAPS]
        return sorted(index for layer in best if (index := locate(layer)[1]) is not None)

    return taps


def beside(taps_of: Callable[[Case], list[int]]) -> Extension:
    """Run a side network with the model, behind the blocks that `taps_of` names."""

    @contextmanager
    def extension(model: PreTrainedModel, case: Case) -> Iterator[dict[str, Tensor]]:
        blocks, taps = block_modules(model), taps_of(case)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(case.seed)
            side = SideNetwork(model.config.hidden_size, len(taps))
        found: list[Tensor | None] = [None]

        def tapped(number: int) -> Callable[..., None]:
            def hook(module: nn.Module, given: Any, output: Any) -> None:
                found[0] = side(number, _hidden(output), found[0] if number else None)

            return hook

        def added(module: nn.Module, given: Any, output: Any) -> Any:
            assert found[0] is not None
            hidden = _hidden(output) + found[0]
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        handles = [blocks[tap].register_forward_hook(tapped(number)) for number, tap in enumerate(taps)]
        handles.append(blocks[-1].register_forward_hook(added))
        setattr(model, NAME, side)
        try:
            yield {f"{NAME}.{name}": value.detach().clone() for name, value in side.named_parameters()}
        finally:
            delattr(model, NAME)
            for handle in handles:
                handle.remove()

    return extension


def side_alone(case: Case) -> Scales:
    """Train the side network and nothing else."""
    return {layer: float(layer.startswith(f"{NAME}.")) for layer in layer_names(case.norms.model)}


def _hidden(output: Any) -> Tensor:
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden
