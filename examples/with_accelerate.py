"""accelerate: localize the optimizer, then prepare it as usual.

python examples/with_accelerate.py
"""

import tempfile

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from localopt import LocalizedOptimizer

torch.manual_seed(0)
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4)
model = LlamaForCausalLM(config)
batches = DataLoader(torch.randint(64, (64, 16)), batch_size=8)

accelerator = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=2, cpu=True)
optimizer = LocalizedOptimizer(torch.optim.AdamW(model.parameters(), lr=3e-3), model)
localized = optimizer  # accelerate puts a wrapper of its own around it; this one has the report
scheduler = torch.optim.lr_scheduler.LinearLR(optimizer)
model, optimizer, scheduler, batches = accelerator.prepare(model, optimizer, scheduler, batches)

for epoch in range(3):
    for batch in batches:
        with accelerator.accumulate(model):
            loss = model(input_ids=batch, labels=batch).loss
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    report = localized.report()
    print(f"epoch {epoch + 1}: loss {loss:.3f}, updated {', '.join(report.updated)}")

with tempfile.TemporaryDirectory() as folder:
    accelerator.save_state(folder)
    accelerator.load_state(folder)
    print("saved and loaded")
