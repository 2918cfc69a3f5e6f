"""An encoder with a classification head, through one language after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.lifelong.methods.methods import METHODS, layer_names, make_optimizer
from benchmarks.lifelong.methods.rules import Case
from benchmarks.lifelong.start import place
from benchmarks.lifelong.training import WARMUP, Settings
from localopt import LocalizedOptimizer
from localopt.errors import InputError

BATCH = 32  # when asked


class NoTraces:
    """Stands where a causal model's norms would; methods that ask for them are refused."""

    def __getattr__(self, name: str) -> Any:
        raise InputError(
            "this method traces a causal model's loss, which an encoder has none of: choose one that needs no trace, "
            "like adamw, online, selective or anchor."
        )

    __getitem__ = __getattr__


class Encoder:
    """Learns topics of sentences, whose names are the classes.

    Raises:
        InputError: there is no such encoder.
    """

    def __init__(self, name: str, topics: Sequence[str], settings: Settings) -> None:
        torch.manual_seed(0)  # of the head
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name)
            self.model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=len(topics))
        except (OSError, ValueError) as error:
            raise InputError(f"--encoder {name}: cannot be loaded ({str(error).splitlines()[0]}).") from error
        self.topics, self.settings = list(topics), settings
        self.start = {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}

    def restart(self) -> None:
        place(self.model, self.start)

    def learn(self, sentences: Sequence[tuple[str, str]], name: str, lr: float, seed: int) -> None:
        entry = METHODS[name]
        if entry.lora or entry.replay:
            raise InputError(f"{name}: adapters and replay are a causal model's here: choose another for --encoder.")
        case = Case(layer_names(self.model), "A", seed, NoTraces())  # type: ignore[arg-type]
        plan = entry.plan(case)
        anchor = entry.anchor if entry.anchor is None else replace(entry.anchor, start=None)
        optimizer = make_optimizer(self.model, entry.rate * lr, plan, anchor)
        if entry.correct:
            entry.correct(case, self.model, optimizer)
        steps = self.settings.epochs * math.ceil(len(sentences) / self.settings.batch_size)
        warmup = math.ceil(WARMUP * steps)
        schedule = LambdaLR(optimizer, lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup)))
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        self.model.train()
        for _ in range(self.settings.epochs):
            order = torch.randperm(len(sentences), generator=generator)
            for chosen in torch.split(order, self.settings.batch_size):
                some = [sentences[int(n)] for n in chosen]
                labels = torch.tensor([self.topics.index(topic) for _, topic in some])
                with self.settings.autocast():
                    loss = self.model(**self._read([text for text, _ in some]), labels=labels).loss
                loss.backward()
                if isinstance(optimizer, LocalizedOptimizer):
                    optimizer.observe(loss.detach())
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
        self.model.requires_grad_(True)

    def accuracy(self, sentences: Sequence[tuple[str, str]]) -> float:
        """Share of sentences whose topic has the highest score."""
        self.model.eval()
        right = 0
        for first in range(0, len(sentences), BATCH):
            some = sentences[first : first + BATCH]
            with torch.inference_mode(), self.settings.autocast():
                scores = self.model(**self._read([text for text, _ in some])).logits
            wanted = torch.tensor([self.topics.index(topic) for _, topic in some])
            right += int((scores.argmax(-1) == wanted).sum())
        return right / len(sentences)

    def _read(self, texts: list[str]) -> Any:
        return self.tokenizer(
            texts, return_tensors="pt", padding=True, truncation=True, max_length=self.settings.length
        )
