"""Optimizers of other packages, each held to the laws of a localized optimizer: `python -m benchmarks.zoo`.

Of every optimizer that trains a plain model bare (three steps of ``loss.backward(); optimizer.step()`` with its default
options), it is asked whether localized it keeps these laws, bit for bit, over five steps:

- *all*: with every layer chosen it is the bare optimizer;
- *held*: a layer that is left out is a layer whose gradients are None;
- *resumed*: saved and loaded, it goes on as if nothing had happened;

and whether *half* the learning rate on every layer is half the learning rate.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import importlib.metadata
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from localopt import LocalizedOptimizer
from localopt.steps.stand_in import is_foreign

STEPS = 5
SCHEDULE = [(1.0, 0.0, 1.0), (0.0, 0.0, 1.0), (1.0, 1.0, 0.0), (0.0, 1.0, 1.0), (1.0, 0.0, 0.0)]
Make = Callable[[Any], Optimizer]


@dataclass(frozen=True)
class Verdict:
    """What became of one optimizer.

    Attributes:
        package: where it is from.
        name: its class.
        trains: whether it trains a plain model bare.
        kept: the laws it keeps, by name.
        said: the first error, if there was one.
    """

    package: str
    name: str
    trains: bool
    kept: dict[str, bool]
    said: str = ""

    @property
    def all_laws(self) -> bool:
        """Whether it keeps those that any policy of zeros and ones needs."""
        return all(self.kept.get(law, False) for law in ("all", "held", "resumed"))


def model() -> nn.Sequential:
    """Three layers, some matrices, some vectors."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))


def backward(network: nn.Module, step: int) -> None:
    """Give equal networks equal gradients, and equal random numbers for the step."""
    network.zero_grad()
    inputs = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
    network(inputs).square().mean().backward()
    torch.manual_seed(1000 + step)


def script(scales: list[tuple[float, ...]], binary: bool) -> Any:
    """A policy that returns the scales written down for each step."""
    rows = iter([torch.tensor(row) for row in scales])

    def policy(norms: Tensor) -> Tensor:
        return next(rows)

    policy.binary = binary  # type: ignore[attr-defined]
    return policy


def same(a: nn.Module, b: nn.Module) -> bool:
    """Equal weights to the bit."""
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def trains(make: Make) -> bool:
    """Whether the bare optimizer trains the model."""
    network, before = model(), model()
    try:
        optimizer = make(network.parameters())
        for step in range(3):
            backward(network, step)
            optimizer.step()
    except Exception:
        return False
    numbers = all(parameter.isfinite().all() for parameter in network.parameters())
    return numbers and not same(network, before)


def all_chosen(make: Make) -> bool:
    """Localized with every scale 1, and bare."""
    network, twin = model(), model()
    optimizer = LocalizedOptimizer(make(network.parameters()), network, script([(1.0, 1.0, 1.0)] * STEPS, True))
    bare = make(twin.parameters())
    for step in range(STEPS):
        backward(network, step)
        optimizer.step()
        backward(twin, step)
        bare.step()
    return same(network, twin)


def held(make: Make) -> bool:
    """Localized with layers left out, and bare with their gradients None."""
    network, twin = model(), model()
    optimizer = LocalizedOptimizer(make(network.parameters()), network, script(SCHEDULE, True))
    bare = make(twin.parameters())
    for step, scales in enumerate(SCHEDULE):
        backward(network, step)
        optimizer.step()
        backward(twin, step)
        for layer, scale in zip((0, 2, 4), scales, strict=True):
            for parameter in twin[layer].parameters():
                parameter.grad = parameter.grad if scale else None
        bare.step()
    return same(network, twin)


def resumed(make: Make) -> bool:
    """Saved after two steps and gone on, and not."""
    network = model()
    optimizer = LocalizedOptimizer(make(network.parameters()), network, script(SCHEDULE, True))
    for step in range(2):
        backward(network, step)
        optimizer.step()
    twin = copy.deepcopy(network)
    again = LocalizedOptimizer(make(twin.parameters()), twin, script(SCHEDULE[2:], True))
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(2, STEPS):
        backward(network, step)
        optimizer.step()
        backward(twin, step)
        again.step()
    return same(network, twin)


def half(make: Make) -> bool:
    """Localized with every scale one half, and bare at half the learning rate."""
    network, twin = model(), model()
    optimizer = LocalizedOptimizer(make(network.parameters()), network, script([(0.5, 0.5, 0.5)] * STEPS, False))
    bare = make(twin.parameters())
    for group in bare.param_groups:
        group["lr"] = group["lr"] * 0.5
    for step in range(STEPS):
        backward(network, step)
        optimizer.step()
        backward(twin, step)
        bare.step()
    return same(network, twin)


LAWS: dict[str, Callable[[Make], bool]] = {"all": all_chosen, "held": held, "resumed": resumed, "half": half}


def judge(package: str, name: str, make: Make) -> Verdict:
    """Try one optimizer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not trains(make):
            return Verdict(package, name, False, {})
        kept, said = {}, ""
        for law, keeps in LAWS.items():
            try:
                kept[law] = keeps(make)
            except Exception as error:
                kept[law] = False
                said = said or f"{law}: {error}"
    return Verdict(package, name, True, kept, said)


def optimizers(package: str) -> Iterator[tuple[str, Make]]:
    """Yield the optimizers of an installed package, by class name; ImportError if it is not installed."""
    if package == "pytorch_optimizer":
        library = importlib.import_module(package)
        classes = [library.load_optimizer(name) for name in library.get_supported_optimizers()]
    else:
        library = importlib.import_module({"timm": "timm.optim", "schedulefree": "schedulefree"}[package])
        found = [value for key, value in sorted(vars(library).items()) if isinstance(value, type)]
        classes = [value for value in found if issubclass(value, Optimizer)]
    for cls in dict.fromkeys(classes):
        if isinstance(cls, type) and not cls.__module__.startswith("torch."):
            yield cls.__name__, maker(package, cls)


def maker(package: str, cls: Any) -> Make:
    """Make one with its default options, and ready to train."""

    def make(parameters: Any) -> Optimizer:
        try:
            optimizer: Any = cls(parameters)
        except TypeError:
            optimizer = cls(parameters, lr=1e-3)
        if package == "schedulefree":
            optimizer.train()
        assert is_foreign(optimizer)
        return optimizer  # type: ignore[no-any-return]

    return make


def table(verdicts: list[Verdict], not_run: Mapping[str, str] | None = None) -> str:
    """Write the verdicts as a page: what keeps all laws, what does not, and which packages were not run, and why."""
    lines = [
        "# Optimizers of other packages, localized",
        "",
        "By `python -m benchmarks.zoo`; what is asked stands in `benchmarks/zoo.py`. An optimizer counts that trains a "
        "plain model bare with its default options.",
        "",
        "| package | version | train bare | keep all laws | rescale too |",
        "|---|---|---|---|---|",
    ]
    for package in dict.fromkeys(verdict.package for verdict in verdicts):
        mine = [verdict for verdict in verdicts if verdict.package == package and verdict.trains]
        good = [verdict for verdict in mine if verdict.all_laws]
        rescaled = sum(verdict.kept["half"] for verdict in good)
        version = importlib.metadata.version(package)
        lines.append(
            f"| {package} | {version} | {len(mine)} | {len(good)} ({len(good) / len(mine):.0%}) | {rescaled} |"
        )
    lines += ["", *(f"Not run: {package} ({why})." for package, why in not_run.items())] if not_run else []
    for title, chosen in (
        ("Keep all laws", [v for v in verdicts if v.all_laws and v.kept["half"]]),
        ("Keep all laws under policies of zeros and ones", [v for v in verdicts if v.all_laws and not v.kept["half"]]),
    ):
        lines += ["", f"## {title}", "", ", ".join(f"{v.name} ({v.package})" for v in chosen) or "none"]
    lines += ["", "## Do not", "", "| optimizer | all | held | resumed | what it says |", "|---|---|---|---|---|"]
    for verdict in verdicts:
        if verdict.trains and not verdict.all_laws:
            marks = " | ".join("yes" if verdict.kept[law] else "no" for law in ("all", "held", "resumed"))
            said = verdict.said.split(". ")[0].replace("|", "/").replace("\n", " ")[:160]
            lines.append(f"| {verdict.name} ({verdict.package}) | {marks} | {said} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Judge every optimizer of the installed packages and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/optimizer-zoo.md"))
    parser.add_argument("--package", action="append", choices=("pytorch_optimizer", "timm", "schedulefree"))
    arguments = parser.parse_args()
    verdicts, not_run = [], {}
    for package in arguments.package or ("pytorch_optimizer", "timm", "schedulefree"):
        try:
            found = list(optimizers(package))
        except ImportError as error:
            not_run[package] = str(error)
            print(f"{package}: {error}: install the extra bench, pip install 'localopt[bench]'")
            continue
        verdicts += [judge(package, name, make) for name, make in found]
    arguments.out.write_text(table(verdicts, not_run), encoding="utf-8")
    print(table(verdicts, not_run))


if __name__ == "__main__":
    main()
