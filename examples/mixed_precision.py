"""float16 with torch's GradScaler: an overflow is skipped once, and no policy counts it.

python examples/mixed_precision.py
"""

import torch

from localopt import AboveMean, LocalizedOptimizer, Smoothed

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1)).to(device)
inputs, targets = torch.randn(64, 16, device=device), torch.randn(64, 1, device=device)

optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
optimizer = LocalizedOptimizer(optimizer, model, Smoothed(AboveMean(), beta=0.9))
scaler = torch.amp.GradScaler(device, init_scale=2.0**22)  # too large, so that the first steps overflow

for step in range(30):
    optimizer.zero_grad()
    with torch.autocast(device, torch.float16):
        loss = (model(inputs) - targets).float().square().mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)  # to clip: scaler.unscale_(optimizer) first, or LocalizedOptimizer(..., max_grad_norm=1.0)
    scaler.update()
    if step % 10 == 9:
        print(f"step {step + 1}: loss {loss:.3f}, scale 2^{torch.tensor(scaler.get_scale()).log2():.0f}")

print(optimizer.report())
