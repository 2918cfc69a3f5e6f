"""FSDP2 (fully_shard), under torchrun: a step sums one number a layer over the processes; checkpoints are sharded.

torchrun --nproc-per-node 2 examples/fsdp2.py
"""

import tempfile

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

from localopt import LocalizedOptimizer

dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
rank, processes = dist.get_rank(), dist.get_world_size()
device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")

torch.manual_seed(0)
sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4}
model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=4)).to(device)
for block in model.model.layers:
    fully_shard(block)
fully_shard(model)

# After sharding, which replaces the parameters.
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

where = [tempfile.mkdtemp() if rank == 0 else ""]
dist.broadcast_object_list(where)
optimizer.zero_grad()
weights, state = get_state_dict(model, optimizer)
dcp.save({"model": weights, "optimizer": state}, checkpoint_id=where[0])

# Any number of processes can load it. A layer that was never updated has no moments, and torch expects some: hence
# allow_partial_load, and strict=False.
weights, state = get_state_dict(model, optimizer)
saved = {"model": weights, "optimizer": state}
dcp.load(saved, checkpoint_id=where[0], planner=dcp.DefaultLoadPlanner(allow_partial_load=True))
options = StateDictOptions(strict=False)
set_state_dict(model, optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"], options=options)
if rank == 0:
    print(f"saved and loaded by {processes} processes")
dist.destroy_process_group()
