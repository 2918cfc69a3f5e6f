"""The rule that kept most of a real model: train the layers with gain over damage, and pull them to where they began.

python examples/pulled.py
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from localopt import trace_layers

torch.manual_seed(0)
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4)
model = LlamaForCausalLM(config)  # yours: LlamaForCausalLM.from_pretrained(...)


def examples(count: int, answer: int) -> list[dict[str, torch.Tensor]]:
    """Random tokens, the loss on the last `answer` of them."""
    rows = torch.randint(64, (count, 16))
    labels = torch.where(torch.arange(16) < 16 - answer, -100, rows)
    return [{"input_ids": row, "labels": label} for row, label in zip(rows, labels, strict=True)]


news, text = examples(16, answer=3), examples(16, answer=16)
trace = trace_layers(model, news, text, score="gains")
trained = trace.freeze(model)  # its backward pass is shorter, its memory smaller

weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
start = [weight.detach().clone() for weight in weights]
optimizer = torch.optim.AdamW(weights, lr=2.4e-3, fused=True)  # several times the rate for the whole model


@torch.no_grad()
def pull(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """w <- w + 100 lr (start - w), as weight decay does it to zero."""
    torch._foreach_lerp_(weights, start, 100 * optimizer.param_groups[0]["lr"])


optimizer.register_step_post_hook(pull)
scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=24)

for _ in range(24):
    batch = {key: torch.stack([example[key] for example in news]) for key in ("input_ids", "labels")}
    loss = model(**batch).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()

with torch.no_grad():
    way = sum((weight - begin).square().sum() for weight, begin in zip(weights, start, strict=True)).sqrt()
print(f"{len(trained)} of {len(list(model.parameters()))} tensors trained, loss {loss:.3f}, {way:.3f} from the start")
