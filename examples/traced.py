"""Find the layers where new knowledge lives, then train those (TGL + FP) or each at its own rate (TGL + ALR).

python examples/traced.py
"""

import copy

import rich
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from localopt import LocalizedOptimizer, trace_layers

torch.manual_seed(0)
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4)
model = LlamaForCausalLM(config)


def examples(count: int, answer: int) -> list[dict[str, torch.Tensor]]:
    """Random tokens, the loss on the last `answer` of them: the facts' answers, or all of ordinary text."""
    rows = torch.randint(64, (count, 16))
    labels = torch.where(torch.arange(16) < 16 - answer, -100, rows)
    return [{"input_ids": row, "labels": label} for row, label in zip(rows, labels, strict=True)]


facts, text = examples(16, answer=3), examples(16, answer=16)
trace = trace_layers(model, facts, text)
rich.print(trace.table())


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> float:
    batch = {key: torch.stack([fact[key] for fact in facts]) for key in ("input_ids", "labels")}
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
    return loss.item()


frozen = copy.deepcopy(model)
kept = trace.freeze(frozen)  # gradients and memory are saved too
optimizer = torch.optim.AdamW([p for p in frozen.parameters() if p.requires_grad], lr=3e-3, fused=True)
print(f"TGL + FP: {len(kept)} of {len(list(model.parameters()))} tensors trained, loss {train(frozen, optimizer):.3f}")

optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
optimizer = LocalizedOptimizer(optimizer, model, trace.adaptive_learning_rates())
print(f"TGL + ALR: all tensors trained, loss {train(model, optimizer):.3f}")
