"""DistributedDataParallel, under torchrun: every process chooses the same layers, without a word about it.

torchrun --nproc-per-node 2 examples/ddp.py
"""

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

from localopt import LocalizedOptimizer

dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
rank, processes = dist.get_rank(), dist.get_world_size()
device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")

torch.manual_seed(0)
sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4}
model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=4)).to(device)
# Whatever is to be frozen for good (LayerTrace.freeze) is frozen here, before DDP looks at the model.
model = DistributedDataParallel(model)

optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
optimizer = LocalizedOptimizer(optimizer, model, max_grad_norm=1.0)

tokens = torch.arange(8 * 16).reshape(8, 16) % 64
mine = tokens.tensor_split(processes)[rank].to(device)
for step in range(10):
    optimizer.zero_grad()
    loss = model(input_ids=mine, labels=mine).loss
    loss.backward()
    optimizer.step()
    if rank == 0 and step % 3 == 0:
        report = optimizer.report()
        print(f"step {step}: loss {loss.item():.3f}, updated {', '.join(report.updated)}")
dist.destroy_process_group()
