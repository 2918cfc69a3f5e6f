"""What a corpus alone can do: train the layers with gain over damage, decay toward where they began.

python examples/anchor_decay.py
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from localopt import LocalizedOptimizer, trace_layers

torch.manual_seed(0)
shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
model = LlamaForCausalLM(LlamaConfig(**shape))  # yours: LlamaForCausalLM.from_pretrained(...)

tokens = torch.randint(64, (16, 16))  # your texts, the loss on every token
corpus = [{"input_ids": row, "labels": row} for row in tokens]

trace = trace_layers(model, corpus, score="gains")  # against text of the model's own
trained = trace.freeze(model)  # the backward pass is shorter, its memory smaller

weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(weights, lr=2.4e-3, fused=True)  # several times the rate for the whole model
optimizer = LocalizedOptimizer(optimizer, model)  # each layer back toward its start where it has gone too far
scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=24)

for _ in range(24):
    loss = model(input_ids=tokens, labels=tokens).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()

far = sum(square**2 for square in optimizer.report().signals["drift"]) ** 0.5
print(f"{len(trained)} of {len(list(model.parameters()))} tensors trained, loss {loss:.3f}, {far:.3f} from the start")
