"""Hand a trace's choice to another trainer, as a file of name patterns and learning rates.

python examples/export_settings.py
"""

import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from localopt import trace_layers

torch.manual_seed(0)
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
model = LlamaForCausalLM(config)
probe, reference = ([{"input_ids": row, "labels": row} for row in torch.randint(64, (8, 16))] for _ in range(2))
trace = trace_layers(model, probe, reference)

with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    trace.export(folder / "train.yaml", model)  # axolotl's `unfrozen_parameters`: TGL + FP
    trace.export(folder / "rates.yaml", model, "lr_groups", lr=1e-5)  # axolotl's `lr_groups`: TGL + ALR
    trace.export(folder / "rates.json", model, "multipliers")  # for a trainer of one's own
    for file in sorted(folder.iterdir()):
        print(f"# {file.name}", *file.read_text().splitlines()[:8], "...", sep="\n")
