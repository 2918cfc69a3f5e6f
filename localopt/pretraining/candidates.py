"""Questions with several possible answers -> how likely the model finds each of them, at one row a question.

The answers to a question are read beside each other behind one prompt: a token sees the prompt and the tokens of its
own answer before it, and its position is the one it would have if its answer stood there alone. So the losses are those
of one row an answer, for a third of the tokens, as an answer of one token is read off the prompt's last position.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from localopt.pretraining.evaluate import span_losses
from localopt.pretraining.probes import IGNORED, completion, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

POSITIONS = 2048  # a batch, padding included


@dataclass(frozen=True)
class Question:
    """A prompt and its possible answers; which of them is right is for the caller to know."""

    prompt: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Tree:
    """A question as one row of T tokens.

    `ids`, `positions` (T,): what is read where. `branch` (T,): 0 for the prompt, else 1 + the answer's number.
    `asked` (A, 3): for every token of an answer the place whose logits predict it, the token, and the answer's number.
    """

    ids: Tensor
    positions: Tensor
    branch: Tensor
    asked: Tensor
    answers: int

    @property
    def tokens(self) -> list[int]:
        """How many tokens each answer has."""
        return torch.bincount(self.asked[:, 2], minlength=self.answers).tolist()


def plant(questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase) -> list[Tree]:
    """Tokenize, once for all models: each answer as it would be tokenized alone behind its prompt."""
    return [_tree(question, tokenizer) for question in questions]


def answer_losses(model: nn.Module, trees: Sequence[Tree]) -> list[Tensor]:
    """For each question the NLL in nats of each answer, summed over its tokens: (answers,) fp64.

    The model is one of transformers that takes a mask of its own (`sdpa` attention) and position ids. It should be in
    eval mode; under autocast everything but softmax and loss is computed in its dtype.
    """
    losses = [torch.zeros(tree.answers, dtype=torch.float64) for tree in trees]
    with torch.inference_mode():
        for batch in _batches(trees):
            for index, loss in zip(batch, _batch_losses(model, [trees[i] for i in batch]), strict=True):
                losses[index] = loss
    return losses


def answer_losses_apart(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question]
) -> list[Tensor]:
    """The same, one row an answer: what `answer_losses` is held to, and for models it does not suit."""
    rows = [completion(question.prompt, answer) for question in questions for answer in question.answers]
    nll = span_losses(model, encode(rows, tokenizer), batch_size=32).nll
    return list(torch.split(nll, [len(question.answers) for question in questions]))


def _tree(question: Question, tokenizer: PreTrainedTokenizerBase) -> Tree:
    rows = encode([completion(question.prompt, answer) for answer in question.answers], tokenizer)
    firsts = [int((row["labels"] != IGNORED).nonzero()[0]) for row in rows]
    texts = [row["input_ids"].tolist() for row in rows]
    shared = 0
    while shared < min(firsts) and len({text[shared] for text in texts}) == 1:
        shared += 1
    ids, positions, branch = texts[0][:shared], list(range(shared)), [0] * shared
    asked = []
    for number, (text, first) in enumerate(zip(texts, firsts, strict=True)):
        offset = len(ids) - shared  # from a place in the text to its place in the row, behind the prompt
        for place in range(first, len(text)):
            asked.append((place - 1 + (offset if place > shared else 0), text[place], number))
        # Nothing is predicted from an answer's last token.
        ids += text[shared:-1]
        positions += range(shared, len(text) - 1)
        branch += [number + 1] * (len(text) - 1 - shared)
    return Tree(torch.tensor(ids), torch.tensor(positions), torch.tensor(branch), torch.tensor(asked), len(texts))


def _batches(trees: Sequence[Tree]) -> Iterator[list[int]]:
    """Rows of like length together, as many as fit in POSITIONS."""
    batch: list[int] = []
    for index in sorted(range(len(trees)), key=lambda i: -len(trees[i].ids)):
        if batch and (len(batch) + 1) * len(trees[batch[0]].ids) > POSITIONS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _batch_losses(model: nn.Module, trees: Sequence[Tree]) -> list[Tensor]:
    device = next(model.parameters()).device

    def padded(tensors: list[Tensor], value: int) -> Tensor:
        return nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value).to(device)

    ids = padded([tree.ids for tree in trees], 0)
    branch = padded([tree.branch for tree in trees], -1)
    before = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=device).tril()
    mask = before & ((branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None]))
    row = torch.cat([torch.full((len(tree.asked),), number) for number, tree in enumerate(trees)])
    place, token, answer = torch.cat([tree.asked for tree in trees]).unbind(1)
    columns, column = place.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    logits = model(
        input_ids=ids,
        attention_mask=mask[:, None],
        position_ids=padded([tree.positions for tree in trees], 0),
        use_cache=False,
        logits_to_keep=columns.to(device),
    ).logits
    # Answers begin at the same place of a row: its softmax is taken once.
    places, which = (row * len(columns) + column).unique(return_inverse=True)
    scores = logits.flatten(0, 1)[places.to(device)].float()
    nll = (scores.logsumexp(1)[which.to(device)] - scores[which.to(device), token.to(device)]).cpu().double()
    starts = torch.tensor([0, *(tree.answers for tree in trees)]).cumsum(0)
    total = torch.zeros(int(starts[-1]), dtype=torch.float64).index_add_(0, starts[row] + answer, nll)
    return list(torch.split(total, [tree.answers for tree in trees]))
