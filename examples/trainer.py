"""The transformers Trainer with an optimizer made by hand, passed as `optimizers=`.

python examples/trainer.py
"""

import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from localopt import LocalizedOptimizer, TopK

torch.manual_seed(0)
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4)
model = LlamaForCausalLM(config)
rows = torch.randint(64, (64, 16))

with tempfile.TemporaryDirectory() as folder:
    args = TrainingArguments(folder, max_steps=20, logging_steps=10, save_steps=10, use_cpu=True, report_to="none")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    optimizer = LocalizedOptimizer(optimizer, model, TopK(0.5))  # no max_grad_norm here: Trainer clips
    trainer = Trainer(
        model,
        args,
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        optimizers=(optimizer, None),  # None: Trainer's own scheduler
    )
    trainer.train()

print(optimizer.report())
