"""Linear probes of every few layers for part of speech and dependency relation (Durrani et al. 2021), with controls.

A probe is a ridge classifier (one weight vector a label, least squares) on the hidden state of a word's last token. Its
control task (Hewitt and Liang 2019) gives every word form a label at random, with the frequencies of the real labels:
selectivity is accuracy less the control's, so what a probe learns by heart does not count. Probes are trained on the
development part of a treebank in CoNLL-U and tested on its test part.
"""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.extra import from_the_extra
from benchmarks.lifelong.exam.exam import Exam
from benchmarks.lifelong.measures.definitions import Values
from benchmarks.lifelong.measures.source import Absent, Source
from localopt.errors import InputError
from localopt.pretraining.textfiles import evenly, read_text

FOLDER = "ud_ewt"
PARTS = {"dev": "en_ewt-ud-dev.conllu", "test": "en_ewt-ud-test.conllu"}
SENTENCES = {"dev": 3, "test": 2}  # for every question of other measures
LAYERS = 7  # of the hidden states, from the embeddings to the last
LONGEST = 40  # words of a sentence
TASKS = {"part of speech": "upos", "dependency": "deprel"}
PENALTY = 100.0  # of standardized features
BATCH = 16

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Sentence:
    """Words and their labels, by task."""

    words: tuple[str, ...]
    labels: dict[str, tuple[str, ...]]


class Linguistics:
    """Ready to be asked of a model. `layers`, of the last one: accuracies and selectivities by layer."""

    def __init__(self, source: Source, exam: Exam) -> None:
        self.absent = ""
        self.tokenizer = source.tokenizer
        self.by_layer: dict[str, dict[str, list[float]]] = {}
        self.parts: dict[str, list[Sentence]] = {}
        try:
            for part, name in PARTS.items():
                read = read_sentences(source.file(f"{FOLDER}/{name}"))
                self.parts[part] = evenly(read, source.most * SENTENCES[part])
        except Absent as error:
            self.absent = str(error)

    def __call__(self, model: PreTrainedModel) -> dict[str, Values]:
        if self.absent:
            return {}
        states = {part: hidden_states(model, self.tokenizer, some) for part, some in self.parts.items()}
        numbers = list(states["dev"])
        of = np.repeat(np.arange(len(self.parts["test"])), [len(s.words) for s in self.parts["test"]])
        groups = [f"sentence{number}" for number in range(len(self.parts["test"]))]
        weights = np.bincount(of).astype(float).tolist()
        found: dict[str, Values] = {}
        self.by_layer = {}
        for task in TASKS:
            train, test = (_labels(self.parts[part], task) for part in PARTS)
            forms = {part: [word for s in some for word in s.words] for part, some in self.parts.items()}
            control = control_labels(forms["dev"] + forms["test"], train, seed=0)
            drawn = {part: [control[word] for word in forms[part]] for part in PARTS}
            right, chance = (
                np.stack([probed(states["dev"][n], a, states["test"][n], b) for n in numbers])
                for a, b in ((train, test), (drawn["dev"], drawn["test"]))
            )
            for name, scores in ((task, right), (f"{task}, selectivity", right - chance)):
                sums = np.bincount(of, weights=scores.mean(0))
                found[name] = Values([round(float(value), 4) for value in sums], groups, weights)
                self.by_layer[name] = {
                    str(n): round(float(row.mean()), 5) for n, row in zip(numbers, scores, strict=True)
                }
        return found


def read_sentences(path: Path) -> list[Sentence]:
    """Sentences of at most LONGEST words; words that a form stands for two of, and empty ones, are left out.

    Raises:
        InputError: not CoNLL-U, or without such sentences.
    """
    with from_the_extra():
        import conllu
    found = []
    try:
        for tree in conllu.parse(read_text(path)):
            tokens = [token for token in tree if isinstance(token["id"], int)]
            if 1 < len(tokens) <= LONGEST:
                labels = {task: tuple(str(t[field]).split(":")[0] for t in tokens) for task, field in TASKS.items()}
                found.append(Sentence(tuple(t["form"] for t in tokens), labels))
    except (conllu.exceptions.ParseException, KeyError) as error:
        raise InputError(f"{path}: not CoNLL-U ({error}): name a treebank of Universal Dependencies.") from None
    if not found:
        raise InputError(f"{path}: has no sentence of 2 to {LONGEST} words: name a treebank of Universal Dependencies.")
    return found


def chosen_layers(blocks: int) -> list[int]:
    """Places of hidden states, 0 for the embeddings, evenly from first to last.

    >>> chosen_layers(30)
    [0, 5, 10, 15, 20, 25, 30]
    """
    return sorted({round(n * blocks / (LAYERS - 1)) for n in range(LAYERS)})


def hidden_states(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentences: Sequence[Sentence]
) -> dict[int, Array]:
    """Of every word the state of its last token, (words, D), by layer."""
    numbers = chosen_layers(model.config.num_hidden_layers)
    parts: dict[int, list[list[Array]]] = {number: [[] for _ in sentences] for number in numbers}
    order = sorted(range(len(sentences)), key=lambda n: len(sentences[n].words))
    tokenizer.padding_side = "right"
    for some in (order[first : first + BATCH] for first in range(0, len(order), BATCH)):
        texts, ends = zip(*(_text(sentences[n].words) for n in some), strict=True)
        encoded = tokenizer(list(texts), return_tensors="pt", padding=True, return_offsets_mapping=True)
        with torch.inference_mode():
            states = model(
                input_ids=encoded["input_ids"],
                attention_mask=encoded["attention_mask"],
                output_hidden_states=True,
                use_cache=False,
                logits_to_keep=1,
            ).hidden_states
        for row, place in enumerate(some):
            spans = encoded["offset_mapping"][row].tolist()
            last = [max(n for n, (a, b) in enumerate(spans) if a < end and b > 0) for end in ends[row]]
            for number in numbers:
                parts[number][place].append(states[number][row, last].float().numpy())
    return {number: np.concatenate([one for some in lists for one in some]) for number, lists in parts.items()}


def control_labels(forms: Sequence[str], labels: Sequence[str], seed: int) -> dict[str, str]:
    """A label drawn for every word form, as often as labels are in the list."""
    count = Counter(labels)
    drawn = random.Random(f"{seed}/control")
    names, weights = list(count), list(count.values())
    return {form: drawn.choices(names, weights)[0] for form in sorted(set(forms))}


def probed(train: Array, labels: Sequence[str], test: Array, wanted: Sequence[str]) -> npt.NDArray[np.float64]:
    """Whether a probe trained on the one finds each label of the other, (words,)."""
    with from_the_extra():
        from sklearn.linear_model import RidgeClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    probe = make_pipeline(StandardScaler(), RidgeClassifier(alpha=PENALTY))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a tiny model's features may be collinear
        probe.fit(train, list(labels))
    return (probe.predict(test) == np.array(wanted)).astype(np.float64)


def _labels(sentences: Sequence[Sentence], task: str) -> list[str]:
    return [label for sentence in sentences for label in sentence.labels[task]]


def _text(words: Sequence[str]) -> tuple[str, list[int]]:
    """Words with spaces between them, and where each ends."""
    ends, length = [], 0
    for word in words:
        length += len(word) + bool(ends)
        ends.append(length)
    return " ".join(words), ends
