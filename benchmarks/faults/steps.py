"""Optimizer steps of which one in a hundred has a gradient that is no number, for every policy and way of freezing.

Held to four laws: no weight, moment or policy state ever is not finite; such a step changes no bit; skipped steps are
counted exactly; and a run restored from its state after any step ends bit for bit as one that was never interrupted.
"""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from benchmarks.faults.count import Clock, Count
from localopt import AnchorDecay, LayerTrace, LocalizedOptimizer, policies
from localopt.policies import Policy

STEPS = 200
BAD = 0.01  # of the steps
LAYERS = ("0", "1", "2", "3")
_NORMS = LayerTrace(LAYERS, torch.ones(4), torch.tensor([1.0, 0.5, 2.0, 1.0]), {"score": "norms"})
_GAINS = LayerTrace(LAYERS, torch.ones(4), torch.tensor([1.0, 0.5, 2.0, 1.0]), {"score": "gains"})


@dataclass
class OnSignal:
    """Train the layers whose signal is at least its median; for every signal there is."""

    signal: str
    binary = True

    @property
    def needs(self) -> tuple[str, ...]:
        """The norm, without which no step knows what is finite, and the signal."""
        return tuple(dict.fromkeys(("norm", self.signal)))

    def __call__(self, signals: Any) -> Tensor:
        values = getattr(signals, self.signal)
        return (values >= values.median()).float()


SIGNALS = ("norm", "l1", "weight", "drift", "pullback", "momentum", "agreement", "size", "loss")
POLICIES: dict[str, Callable[[], Policy]] = {
    "Everything": policies.Everything,
    "AboveMean": policies.AboveMean,
    "TopK": lambda: policies.TopK(2),
    "Quantile": lambda: policies.Quantile(0.5),
    "Proportional": policies.Proportional,
    "Fixed": lambda: policies.Fixed(dict(zip(LAYERS, (1.0, 0.0, 0.5, 1.0), strict=True))),
    "Smoothed": lambda: policies.Smoothed(policies.AboveMean(), 0.9),
    "Every": lambda: policies.Every(policies.AboveMean(), 3),
    "Pinned": lambda: policies.Pinned(policies.AboveMean(), always="0", never="3"),
    "RelativeTo": lambda: policies.RelativeTo(_NORMS, policies.AboveMean()),
    "RandomLayers": lambda: policies.RandomLayers(2, every=2),
    "Cyclic": lambda: policies.Cyclic(every=3, order="random"),
    "LayerDecay": lambda: policies.LayerDecay(0.9),
    "HighestSNR": lambda: policies.HighestSNR(0.5),
    "GainOverDamage": lambda: policies.GainOverDamage(_GAINS),
    "RelativeChange": policies.RelativeChange,
    "Agreement": policies.Agreement,
    "LossScaled": policies.LossScaled,
    **{f"by {signal}": (lambda signal=signal: OnSignal(signal)) for signal in SIGNALS},
}
STATES = ("hold", "track", "carry", "drop")
ANCHORS: dict[str, float | AnchorDecay] = {
    "no decay": 0.0,
    "plain": 5.0,
    "selective": AnchorDecay(0.5, rule="selective"),
    "cautious": AnchorDecay(5.0, rule="cautious"),
}
SCHEDULES: dict[str, Callable[[Optimizer], LRScheduler | None]] = {
    "constant": lambda optimizer: None,
    "from zero and back": lambda optimizer: LambdaLR(optimizer, lambda step: min(step / 20, 1 - step / STEPS)),
    "one cycle": lambda optimizer: OneCycleLR(optimizer, max_lr=0.05, total_steps=STEPS + 1),
}
INNER: dict[str, Callable[[Any], Optimizer]] = {
    "AdamW": lambda parameters: AdamW(parameters, lr=0.02, foreach=True),
    "AdamW fused": lambda parameters: AdamW(parameters, lr=0.02, fused=True),
    "SGD": lambda parameters: SGD(parameters, lr=0.02, momentum=0.9),
}


@dataclass(frozen=True)
class Case:
    """One run: the names of its parts, and what befalls it."""

    policy: str
    state: str
    anchor: str
    schedule: str
    inner: str
    seed: int

    def __str__(self) -> str:
        return f"{self.policy}, {self.state}, {self.anchor}, {self.schedule}, {self.inner}, seed {self.seed}"


class Run:
    """A model of four layers, its localized optimizer, and its schedule."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(case.seed)
        self.model = nn.ParameterDict({f"{layer}_{kind}": torch.randn(s) for layer in LAYERS for kind, s in _SHAPES})
        inner = INNER[case.inner](self.model.parameters())
        self.optimizer = LocalizedOptimizer(
            inner,
            self.model,
            POLICIES[case.policy](),
            layers=lambda name: name[0],
            max_grad_norm=1.0,  # so that norms are taken whatever the policy
            frozen_state=case.state,  # type: ignore[arg-type]
            anchor_decay=ANCHORS[case.anchor],
        )
        self.schedule = SCHEDULES[case.schedule](self.optimizer)

    def step(self, gradients: list[Tensor]) -> None:
        """One step by these gradients; the loss follows from them."""
        for parameter, gradient in zip(self.model.values(), gradients, strict=True):
            parameter.grad = gradient.clone()
        self.optimizer.observe(gradients[0].abs().mean().nan_to_num(1.0) + 0.1)
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()

    def saved(self) -> dict[str, Any]:
        """Everything that a checkpoint holds."""
        schedule = None if self.schedule is None else self.schedule.state_dict()
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "schedule": schedule}
        return copy.deepcopy(state)

    def load(self, saved: dict[str, Any]) -> None:
        """Go on from it."""
        self.model.load_state_dict(saved["model"])
        if self.schedule is not None:
            self.schedule.load_state_dict(saved["schedule"])
        self.optimizer.load_state_dict(saved["optimizer"])

    def numbers(self) -> dict[str, Any]:
        """Weights, moments and what the policy remembers, by name."""
        state = self.optimizer.state_dict()
        found: dict[str, Any] = {name: p.detach().clone() for name, p in self.model.items()}
        for key, moments in state["state"].items():
            found |= {f"{name} of {key}": v.clone() if isinstance(v, Tensor) else v for name, v in moments.items()}
        memory = state["param_groups"][0].get("localopt", {}).get("state", {})
        return found | {f"policy's {name}": torch.as_tensor(values) for name, values in memory.items()}


_SHAPES = (("matrix", (3, 4)), ("vector", (3,)))


def cases(seed: int) -> list[Case]:
    """Every combination that the optimizer takes, in an order that the seed decides."""
    found = []
    for policy, state, anchor, schedule, inner in itertools.product(POLICIES, STATES, ANCHORS, SCHEDULES, INNER):
        constant = getattr(POLICIES[policy](), "constant", False)
        if state == "drop" and not constant:
            continue  # which layers stay frozen is not known
        if state in ("carry", "drop") and inner == "AdamW fused":
            continue  # one kernel is enough for what is decided on the host
        found.append(Case(policy, state, anchor, schedule, inner, len(found)))
    return random.Random(seed).sample(found, len(found))


def a_step(count: Count, number: int, seed: int, folder: Path, clock: Clock) -> None:
    """Make at least so many steps, a run at a time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for case in itertools.chain.from_iterable(cases(seed + turn) for turn in itertools.count()):
        if count.tries >= number or clock.over or count.found["traceback"] > 100:
            break
        with count.one(str(case), limit=120.0):
            _run(count, case)
        count.tries -= 1  # not runs are counted, but steps
        count.add("runs")
    torch.set_num_threads(before)


def _run(count: Count, case: Case) -> None:
    draw = random.Random(case.seed)
    bad = {step for step in range(STEPS) if draw.random() < BAD}
    stop = draw.randrange(1, STEPS)
    run, saved = Run(case), None
    for step, gradients in enumerate(_gradients(case, bad, draw)):
        before = run.numbers() if step in bad else None
        run.step(gradients)
        count.tries += 1
        if before is not None and (changed := _differ(before, run.numbers())):
            count.note("wrong", f"{case}: step {step}, whose gradients are no numbers, changed {changed}")
        if step + 1 == stop:
            saved = run.saved()
    count.add("steps with NaN or infinity", len(bad))
    end = run.numbers()
    if infinite := [name for name, value in end.items() if not bool(torch.as_tensor(value).isfinite().all())]:
        count.note("wrong", f"{case}: not finite: {', '.join(infinite[:3])}")
    skipped = run.optimizer.report().skipped_steps
    if skipped != len(bad):
        count.note("wrong", f"{case}: {skipped} steps are said to be skipped, not {len(bad)}")
    again = Run(case)
    assert saved is not None
    again.load(saved)
    for gradients in itertools.islice(_gradients(case, bad, random.Random(case.seed)), stop, None):
        again.step(gradients)
        count.tries += 1
    count.add("restored")
    if (differ := _differ(end, again.numbers())) or again.optimizer.report().skipped_steps != skipped:
        count.note("wrong", f"{case}: restored after {stop} steps it ends elsewhere, in {differ or 'skipped steps'}")


def _gradients(case: Case, bad: set[int], draw: random.Random) -> Iterator[list[Tensor]]:
    """Those of every step; in a bad one some number of some parameter is none."""
    source = torch.Generator().manual_seed(case.seed)
    draw = random.Random(f"bad {case.seed}")
    for step in range(STEPS):
        gradients = [torch.randn(shape, generator=source) for _ in LAYERS for _, shape in _SHAPES]
        if step in bad:
            flat = draw.choice(gradients).view(-1)
            flat[draw.randrange(len(flat))] = draw.choice([math.nan, math.inf, -math.inf])
        yield gradients


def _differ(first: dict[str, Any], second: dict[str, Any]) -> str:
    """The names of what is not the same to the bit."""
    names = sorted(first.keys() ^ second.keys())
    for name in first.keys() & second.keys():
        a, b = torch.as_tensor(first[name]), torch.as_tensor(second[name])
        if a.shape != b.shape or not torch.equal(a, b):
            names.append(name)
    return ", ".join(names[:3])
