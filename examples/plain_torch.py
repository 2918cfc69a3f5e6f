"""A training loop of one's own: the optimizer is wrapped in one line, everything else stays.

python examples/plain_torch.py
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from localopt import LocalizedOptimizer

torch.manual_seed(0)
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4)
model = LlamaForCausalLM(config)  # yours: LlamaForCausalLM.from_pretrained(...)
tokens = torch.randint(64, (32, 16))

optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
optimizer = LocalizedOptimizer(optimizer, model, max_grad_norm=1.0)  # the line
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)

for step in range(20):
    batch = tokens[step % 4 :: 4]
    loss = model(input_ids=batch, labels=batch).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()
    if step % 5 == 4:
        report = optimizer.report()
        decayed = sum(share > 0 for share in report.anchor_shares or ())
        print(f"step {step + 1}: loss {loss:.3f}, {decayed} of {len(report.names)} layers decayed toward their start")

print(optimizer.report())
