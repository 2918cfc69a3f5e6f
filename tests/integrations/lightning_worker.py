"""What every process of a Lightning run does: `torchrun ... -m tests.integrations.lightning_worker OUT`."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from localopt import LocalizedOptimizer, RandomLayers
from tests.distributed.ending import leave

ROWS = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
ON_CPU: dict[str, Any] = {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))


def localized(model: nn.Module) -> LocalizedOptimizer:
    return LocalizedOptimizer(SGD(model.parameters(), lr=0.1, momentum=0.9), model, RandomLayers(1, every=1))


class Task(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        loss: Tensor = self.net(batch[0]).square().mean()
        return loss

    def configure_optimizers(self) -> LocalizedOptimizer:
        return localized(self)


def trained(out: Path, epochs: int, resume: str | None = None) -> Task:
    task = Task()
    trainer = L.Trainer(
        **ON_CPU, max_epochs=epochs, logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=str(out), enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(task, DataLoader(TensorDataset(ROWS), batch_size=4), ckpt_path=resume)
    if resume is None and epochs == 1:
        trainer.save_checkpoint(out / "one.ckpt")
    return task


def with_trainer(out: Path) -> dict[str, Any]:
    whole = trained(out, 2)
    trained(out, 1)
    resumed = trained(out, 2, str(out / "one.ckpt"))
    report = resumed.optimizers().optimizer.report()
    return {"whole": whole.net.state_dict(), "resumed": resumed.net.state_dict(), "updated": report.updated}


def with_fabric() -> dict[str, Any]:
    fabric = L.Fabric(**ON_CPU)
    fabric.launch()
    model = network()
    optimizer = localized(model)
    wrapped, stepped = fabric.setup(model, optimizer)
    for step in range(4):
        rows = ROWS[step * 4 : step * 4 + 4].tensor_split(2)[fabric.global_rank]
        stepped.zero_grad()
        fabric.backward(wrapped(rows).square().mean())
        stepped.step()
    alone = network()
    bare = localized(alone)
    for step in range(4):
        bare.zero_grad()
        alone(ROWS[step * 4 : step * 4 + 4]).square().mean().backward()
        bare.step()
    updated = [optimizer.report().updated, bare.report().updated]
    return {"weights": model.state_dict(), "alone": alone.state_dict(), "updated": updated}


def main() -> None:
    out = Path(sys.argv[1])
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {}
    for name, case in {"fabric": with_fabric, "trainer": lambda: with_trainer(out)}.items():
        try:
            found[name] = case()
        except Exception as error:  # the test that looks at this case says so
            found[name] = {"error": f"{type(error).__name__}: {error}"}
    if dist.get_rank() == 0:
        torch.save(found, out / "found.pt")
    leave()


if __name__ == "__main__":
    main()
