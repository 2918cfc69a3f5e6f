"""One of two processes forgot to wrap its optimizer; started by torchrun."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from localopt import LocalizedOptimizer


def main() -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=20))
    network = DistributedDataParallel(torch.nn.Linear(3, 3))
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(network.parameters())
    if dist.get_rank() == 0:
        optimizer = LocalizedOptimizer(optimizer, network)
    for _ in range(2):
        network(torch.ones(2, 3)).sum().backward()
        optimizer.step()


if __name__ == "__main__":
    main()
