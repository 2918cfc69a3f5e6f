"""Connect as the command line does, train with DDP, and disconnect; started by torchrun, prints JSON."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from localopt.pretraining.processes import disconnect, processes


def threads() -> list[str]:
    """Those of gloo."""
    names = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


def train() -> None:
    network = DistributedDataParallel(torch.nn.Linear(3, 3))
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(2, 3)).sum().backward()
    optimizer.step()


def main() -> None:
    here = processes()
    train()
    connected = bool(threads())
    disconnect()
    if here.is_main_process:
        print(json.dumps({"connected": connected, "left": threads()}), flush=True)


if __name__ == "__main__":
    main()
