"""Training low-rank adapters (LoRA, Hu et al. 2021) instead of the weights, with the package peft."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

from benchmarks.extra import from_the_extra


@contextmanager
def adapted(model: PreTrainedModel, rank: int) -> Iterator[nn.Module]:
    """Lend the model with adapters of this rank on every linear map but the head, then merge them into its weights.

    Rank 0 lends the model as it is.
    """
    if rank == 0:
        yield model
        return
    with from_the_extra():
        from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    with_adapters = get_peft_model(model, config)
    yield with_adapters
    with_adapters.merge_and_unload()
