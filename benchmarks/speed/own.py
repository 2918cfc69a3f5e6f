"""A user's own step: any optimizer of torch and any policy on the shapes of any model, bare and localized."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.nn.utils import clip_grad_norm_

import localopt.policies
from benchmarks.speed.contenders import MAX_NORM, Contender
from benchmarks.speed.workloads import of_model
from benchmarks.timing import interleave
from localopt import LocalizedOptimizer

RATE = 1e-5


@dataclass(frozen=True)
class Choice:
    """What to time, each a name or a call of constants: ``"AdamW"``, ``"SGD(momentum=0.9)"``, ``"TopK(0.25)"``."""

    optimizer: str
    policy: str

    def make_optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        """Return one over these parameters, fused where it can be."""
        kinds = {name: value for name, value in vars(torch.optim).items() if isinstance(value, type)}
        make, options, keywords = called(self.optimizer, kinds, "--optimizer", "torch.optim")
        keywords = {"lr": RATE, **keywords}
        try:
            return make(parameters, *options, **{"fused": True, **keywords})
        except (TypeError, RuntimeError):  # it has no fused kernel, here or at all
            return make(parameters, *options, **keywords)

    def make_policy(self) -> Any:
        """Return a new one."""
        public = {name: getattr(localopt.policies, name) for name in localopt.policies.__all__}
        make, options, keywords = called(self.policy, public, "--policy", "localopt.policies")
        try:
            return make(*options, **keywords)
        except (TypeError, ValueError) as error:
            raise typer.BadParameter(f"--policy {self.policy}: {error}") from error


def called(text: str, known: Mapping[str, Any], flag: str, where: str) -> tuple[Callable[..., Any], list[Any], Any]:
    """Take a name, or a call of constants, apart: what is called, its arguments, its named ones.

    Raises:
        typer.BadParameter: it is something else, or no such name is known.

    >>> called("dict(1, b=2)", {"dict": dict}, "--policy", "builtins")[1:]
    ([1], {'b': 2})
    """
    try:
        tree = ast.parse(text, mode="eval").body
        name, arguments, keywords = (
            (tree.func, tree.args, tree.keywords) if isinstance(tree, ast.Call) else (tree, [], [])
        )
        assert isinstance(name, ast.Name)
        values = [ast.literal_eval(argument) for argument in arguments]
        named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in keywords}
    except (SyntaxError, ValueError, AssertionError):
        raise typer.BadParameter(f'{flag} {text}: a name, or a call of numbers such as "TopK(0.25)"') from None
    if name.id not in known:
        raise typer.BadParameter(f"{flag} {name.id}: {where} has no such name")
    return known[name.id], values, named


def time_own(model: str, choice: Choice, dtype: torch.dtype, device: str, rounds: int) -> dict[str, Any]:
    """Time the bare optimizer, and the same localized, with and without clipping; print one table."""
    workload = of_model(model, dtype, device)
    workload.restore_gradients()
    inner = choice.make_optimizer(workload.parameters.items())
    parameters = list(workload.parameters.values())

    def clipped() -> None:
        clip_grad_norm_(parameters, MAX_NORM)
        inner.step()  # type: ignore[call-arg]

    localized = LocalizedOptimizer(inner, policy=choice.make_policy())
    clipping = LocalizedOptimizer(inner, policy=choice.make_policy(), max_grad_norm=MAX_NORM)
    steps = {"bare": inner.step, "localized": localized.step, "clip + bare": clipped, "localized + clip": clipping.step}
    timings = interleave([Contender(name, workload, step) for name, step in steps.items()], rounds, title=model)
    for timing in timings.values():
        if timing.error is not None:
            raise typer.BadParameter(f"{choice.optimizer} by {choice.policy} cannot step here: {timing.error}")
    report = localized.report()
    table = Table(
        title=f"{model}: {choice.optimizer} by {choice.policy}, {workload.elements / 1e6:.0f}M parameters",
        caption=f"the last step updated {len(report.updated)} of {len(report.names)} layers, "
        f"{report.share_updated:.0%} of the parameters, on random gradients",
    )
    for column in ("step", "ms", "/ bare (quartiles)"):
        table.add_column(column, justify="left" if column == "step" else "right")
    ratios = {}
    for name, timing in timings.items():
        base = timings["clip + bare" if "clip" in name else "bare"]
        ratios[name] = timing.ratio(base)
        median, low, high = ratios[name]
        table.add_row(name, f"{timing.median * 1e3:.2f}", f"{median:.2f} ({low:.2f}-{high:.2f})")
    Console().print(table)
    return {
        "optimizer": choice.optimizer,
        "policy": choice.policy,
        "parameters": workload.elements,
        "share updated": report.share_updated,
        "timings": {name: timing.as_dict() for name, timing in timings.items()},
        "ratios": ratios,
    }
