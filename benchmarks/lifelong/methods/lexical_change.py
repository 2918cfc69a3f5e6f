"""Words whose use has changed weigh more (Su et al. 2022, arXiv 2210.17127), ported to a causal model.

For every word that is often used in two periods, the representations of its uses in both, in the model at the start,
are standardized and clustered by K-means, with the number of clusters from 2 to 10 that has the best silhouette. The
word's change is the Jensen-Shannon distance of how its uses fall into the clusters, p in one period and q in the other:

    d(p, q) = sqrt(KL(p || m) / 2 + KL(q || m) / 2), in bits, m = (p + q) / 2.

There the words that changed most are masked first. A causal model predicts every token, so here their tokens weigh
w times as much in the loss, sum of w_t NLL_t / sum of w_t, with w = 1 / 0.15: what is always masked against what is
masked with BERT's probability.

The control weighs, in place of each such word, a random one of those that are nearest to it in frequency.

Departures: the periods are ordinary text (WikiText, until 2016) and the passages to learn, which differ in kind too,
not in time alone; a word is at least 3 letters, no stop word, used 5 times or more in both, of which 20 uses at most
are looked at, and the 20 words that changed most count (there 300 to 800, of far more text); its representation is the
last hidden state at its last token, which has seen what stands before it alone.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from benchmarks.extra import from_the_extra
from benchmarks.lifelong.data.passages import answers_in_passages, window
from benchmarks.lifelong.methods.study import Lesson
from localopt.pretraining.evaluate import padded
from localopt.pretraining.probes import IGNORED, Example, read_corpus

FEWEST, MOST = 5, 20  # uses of a word in a period
WORDS = 20
WEIGHT = 1 / 0.15
NEAREST = 5  # words alike in frequency, of which one is drawn
PIECE = 48  # words of a piece of text
CLUSTERS = range(2, 11)
_WORD = re.compile(r"[A-Za-z]{3,}")


def weighed(lesson: Lesson, words: Iterable[str], weight: float = WEIGHT) -> list[list[Example]]:
    """The passages with `weights`, one a token: `weight` on those of the words, 1 on others."""
    chosen, length, found = set(words), lesson.settings.length, []
    for probe in answers_in_passages(lesson.prepared, lesson.case.half):
        encoded = lesson.tokenizer(probe.text, return_offsets_mapping=True, verbose=False)
        spans = [m.span() for m in _WORD.finditer(probe.text) if m[0].casefold() in chosen]
        offsets = encoded["offset_mapping"]
        there = [any(a < end and begin < b for begin, end in spans) for a, b in offsets]
        read = window(offsets, probe.span[0][1], length)
        ids = torch.tensor(encoded["input_ids"][read])
        weights = torch.tensor([weight if one else 1.0 for one in there[read]])
        found.append({"input_ids": ids, "labels": ids.clone(), "weights": weights})
    return [found] * lesson.settings.epochs


def by_weights(model: nn.Module, examples: Sequence[Example]) -> Tensor:
    """The mean NLL of the tokens, weighed by their `weights`."""
    ids, labels, attention = padded(examples)
    logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits[:, :-1].float()
    nll = nn.functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:], ignore_index=IGNORED, reduction="none")
    weights = nn.utils.rnn.pad_sequence([example["weights"] for example in examples], batch_first=True)[:, 1:]
    weights = weights * (labels[:, 1:] != IGNORED)
    return (nll * weights).sum() / weights.sum()


def changed(lesson: Lesson) -> list[list[Example]]:
    """The passages, with more weight on the words that changed most."""
    return weighed(lesson, most_changed(changes(lesson)))


def as_frequent(lesson: Lesson) -> list[list[Example]]:
    """The passages, with more weight on random words that are as frequent as those."""
    texts = [probe.text for probe in answers_in_passages(lesson.prepared, lesson.case.half)]
    found = changes(lesson)
    return weighed(lesson, alike(most_changed(found), list(found), count(texts), lesson.case.seed))


def changes(lesson: Lesson) -> dict[str, float]:
    """The Jensen-Shannon distance between the two periods of every word that is often used in both."""

    def measured() -> dict[str, float]:
        new = [probe.text for probe in answers_in_passages(lesson.prepared, lesson.case.half)]
        old = [text for document in read_corpus(lesson.prepared / "text.txt") for text in _pieces(document)]
        counts = count(new), count(old)
        often = {word for word in counts[0] if min(of[word] for of in counts) >= FEWEST} - _stop_words()
        before, now = (uses(lesson, texts, often) for texts in (old, new))
        return {word: change(before[word], now[word]) for word in sorted(often)}

    return lesson.case.norms.remembered(f"lexical change {lesson.case.half}", measured)


def most_changed(found: dict[str, float]) -> list[str]:
    """The words that changed most, WORDS of them at most."""
    return sorted(found, key=lambda word: -found[word])[:WORDS]


def alike(words: Sequence[str], others: Iterable[str], counts: Counter[str], seed: int) -> list[str]:
    """For each word a random one of the others that are nearest in frequency; no one twice, as long as they last."""
    rng, left, found = random.Random(f"alike/{seed}"), sorted(set(others) - set(words)), []
    for word in words:
        if left:
            nearest = sorted(left, key=lambda other: abs(counts[other] - counts[word]))[:NEAREST]
            found.append(rng.choice(nearest))
            left.remove(found[-1])
    return found


def change(old: Tensor, new: Tensor) -> float:
    """The Jensen-Shannon distance of how uses (n, d) of two periods fall into clusters of all of them."""
    with from_the_extra():
        from sklearn.cluster import KMeans
        from sklearn.metrics import silhouette_score
        from sklearn.preprocessing import StandardScaler

    points = StandardScaler().fit_transform(torch.cat([old, new]).double().numpy())
    best, labels = -2.0, None
    for clusters in CLUSTERS:
        if clusters < len(points):
            found = KMeans(clusters, n_init=3, random_state=0).fit_predict(points)
            score = silhouette_score(points, found) if len(set(found)) > 1 else -1.0
            if score > best:
                best, labels = score, torch.from_numpy(found).long()
    assert labels is not None  # FEWEST uses of each period are more than two
    parts = (labels[: len(old)], labels[len(old) :])
    p, q = (torch.bincount(part, minlength=int(labels.max()) + 1) / len(part) for part in parts)
    return jensen_shannon(p, q)


def jensen_shannon(p: Tensor, q: Tensor) -> float:
    """The distance of two distributions (n,): 0 where they are equal, 1 where they share nothing.

    >>> one, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    >>> jensen_shannon(one, one), jensen_shannon(one, other)
    (0.0, 1.0)
    """
    p, q = p.double(), q.double()
    middle = (p + q) / 2
    divergences = [torch.xlogy(part, part / middle.clamp(min=1e-300)).sum() / 2 for part in (p, q)]
    return float((sum(divergences, torch.zeros(())) / torch.log(torch.tensor(2.0))).clamp(min=0).sqrt())


@torch.inference_mode()
def uses(lesson: Lesson, texts: Sequence[str], words: set[str]) -> dict[str, Tensor]:
    """The last hidden state at the last token of each use of these words, MOST at most each, (n, d)."""
    found: dict[str, list[Tensor]] = {word: [] for word in words}
    model = lesson.model.eval()
    for text in texts:
        spans = [(m.end(), m[0].casefold()) for m in _WORD.finditer(text)]
        if not any(word in words and len(found[word]) < MOST for _, word in spans):
            continue
        encoded = lesson.tokenizer(text, return_offsets_mapping=True, return_tensors="pt", verbose=False)
        ends = [b for _, b in encoded["offset_mapping"][0].tolist()]
        with lesson.settings.autocast():
            states = model(encoded["input_ids"], output_hidden_states=True, use_cache=False).hidden_states[-1][0]
        for end, word in spans:
            if word in words and len(found[word]) < MOST:
                last = next(i for i, b in enumerate(ends) if b >= end)
                found[word].append(states[last].float())
    return {word: torch.stack(states) for word, states in found.items()}


def count(texts: Iterable[str]) -> Counter[str]:
    """How often each word is in the texts, case-folded."""
    return Counter(m[0].casefold() for text in texts for m in _WORD.finditer(text))


def _pieces(document: str) -> list[str]:
    words = document.split()
    return [" ".join(words[i : i + PIECE]) for i in range(0, len(words), PIECE)]


def _stop_words() -> frozenset[str]:
    with from_the_extra():
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return frozenset(ENGLISH_STOP_WORDS)
