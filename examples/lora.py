"""LoRA by peft: a trace chooses the adapters to train.

python examples/lora.py
"""

import tempfile

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from localopt import LocalizedOptimizer, trace_layers

torch.manual_seed(0)
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4)
model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=4, target_modules="all-linear"))


def examples(count: int, answer: int) -> list[dict[str, torch.Tensor]]:
    """Random tokens, the loss on the last `answer` of them."""
    rows = torch.randint(64, (count, 16))
    labels = torch.where(torch.arange(16) < 16 - answer, -100, rows)
    return [{"input_ids": row, "labels": label} for row, label in zip(rows, labels, strict=True)]


probe, reference = examples(16, answer=3), examples(16, answer=16)
trace = trace_layers(model, probe, reference)  # of the adapters: the base weights require no gradient
kept = trace.freeze(model)  # TGL + FP: the other adapters stay as they are
print(f"{len(kept)} adapter matrices left to train, in {len({name.split('.lora')[0] for name in kept})} modules")

optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
optimizer = LocalizedOptimizer(optimizer, model)  # every adapter, each back toward its start where it has gone too far
for _ in range(10):
    batch = {key: torch.stack([example[key] for example in probe]) for key in ("input_ids", "labels")}
    loss = model(**batch).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss:.3f}")
print(optimizer.report())

with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
