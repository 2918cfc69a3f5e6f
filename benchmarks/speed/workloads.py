"""What the step benchmarks run on: the parameter shapes of real models, without their weights."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, LlamaConfig

from localopt.layers import partition

CONFIGS = {
    "135M": LlamaConfig(  # SmolLM2-135M
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True,
    ),
    "360M": LlamaConfig(  # SmolLM2-360M
        vocab_size=49152, hidden_size=960, intermediate_size=2560, num_hidden_layers=32, num_attention_heads=15,
        num_key_value_heads=5, tie_word_embeddings=True,
    ),
    "1B": LlamaConfig(  # Llama-3.2-1B
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, tie_word_embeddings=True,
    ),
    "3B": LlamaConfig(  # Llama-3.2-3B
        vocab_size=128256, hidden_size=3072, intermediate_size=8192, num_hidden_layers=28, num_attention_heads=24,
        num_key_value_heads=8, tie_word_embeddings=True,
    ),
    "gpt2-large": GPT2Config(n_embd=1280, n_layer=36, n_head=20),
    "smoke": LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, tie_word_embeddings=True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Workload:
    """Parameters with gradients, and the random numbers gradients are filled from: one buffer, since 1B has to fit."""

    name: str
    parameters: dict[str, nn.Parameter]
    noise: Tensor

    @property
    def elements(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters.values())

    @cached_property
    def layer_of(self) -> dict[str, str]:
        return partition(self.parameters)

    @property
    def layers(self) -> list[str]:
        return list(dict.fromkeys(self.layer_of.values()))

    def restore_gradients(self, only: Collection[str] | None = None) -> None:
        """Give every parameter (or those of the layers ``only``) its gradient, whatever the last step made of it."""
        for name, layer in self.layer_of.items():
            parameter = self.parameters[name]
            if only is not None and layer not in only:
                parameter.grad = None
                continue
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
            parameter.grad.copy_(self.noise[: parameter.numel()].view_as(parameter))

    def choose(self, share: float) -> tuple[list[str], float]:
        """Return layers spread over the model that hold about ``share`` of the parameters, and their true share."""
        return spread(self.parameters, share)


def spread(parameters: Mapping[str, Tensor], share: float) -> tuple[list[str], float]:
    """Choose layers all over a model, the same in every run, that hold about ``share`` of its parameters."""
    sizes: dict[str, int] = {}
    for name, layer in partition(parameters).items():
        sizes[layer] = sizes.get(layer, 0) + parameters[name].numel()
    order = sorted(sizes)
    random.Random(0).shuffle(order)
    everything = sum(sizes.values())
    chosen: list[str] = []
    taken = 0
    for layer in order:
        if taken + sizes[layer] <= share * everything * 1.01:
            chosen.append(layer)
            taken += sizes[layer]
    return chosen, taken / everything


MODEL_HELP = f"One of {', '.join(CONFIGS)}, or your own: a model's folder, or its config.json (no weights are read)."


def config_of(model: str) -> Any:
    """The configuration of one of the models above, or of a user's: a folder with a config.json, or that file.

    Raises:
        typer.BadParameter: there is no such model.
    """
    if model in CONFIGS:
        return CONFIGS[model]
    path = Path(model)
    if not (path.is_file() or (path / "config.json").is_file()):
        raise typer.BadParameter(f"{model}: neither one of {', '.join(CONFIGS)} nor a config.json or a folder with one")
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{model}: no configuration of a model: {error}") from error


def shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters of a model, see :func:`config_of`."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(name), trust_remote_code=False)
    return {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}


def of_model(name: str, dtype: torch.dtype, device: str) -> Workload:
    """The parameters of a model, see :func:`config_of`."""
    return _filled(name, shapes_of(name), dtype, device)


def of_layers(count: int, elements: int, dtype: torch.dtype, device: str) -> Workload:
    """``count`` layers of four equal matrices each, ``elements`` in all."""
    rows = max(1, elements // (count * 4 * 512))
    shapes = {f"layers.{i}.mlp.w{j}": (rows, 512) for i in range(count) for j in range(4)}
    return _filled(f"{count} layers", shapes, dtype, device)


def _filled(name: str, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, device: str) -> Workload:
    largest = max(math.prod(shape) for shape in shapes.values())
    noise = torch.randn(largest, device=device, generator=torch.Generator(device).manual_seed(0)).mul_(0.02).to(dtype)
    parameters = {key: nn.Parameter(noise[: math.prod(shape)].view(shape).clone()) for key, shape in shapes.items()}
    return Workload(name, parameters, noise)
