"""Processes that share weights have to agree: on the policy, the layers, the options, the parameters.

Where they do not, each trains layers of its own choice: under DistributedDataParallel their weights drift apart without
a word, under FSDP2 they wait for each other's numbers. So they compare once, before the first step, and again before
the first step after a checkpoint was loaded or parameters were added: a digest of 32 bytes, and all of it only where
digests differ. Every process gets what every process has, so that all raise the same error.

Compared is within the processes that are known to share weights, and never beyond: parameters of several meshes, of
stages of a pipeline, or of models that have nothing to do with each other are different on purpose. Known are the mesh
of sharded parameters, the group of a DistributedDataParallel that holds them, and all processes where the user says so
(``broadcast_norms``). Where gradients are averaged by hand nothing tells it, and nothing is compared.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from localopt.steps.description import HELD, LAYERS, OWNERS, START, Facts, difference
from localopt.steps.sharding import Sharding

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class ProcessAgreement:
    """Compares an optimizer with those of the other processes, once whenever that is due."""

    def __init__(self) -> None:
        self._due = True
        self._with_state = True

    def again(self, with_state: bool) -> None:
        """Compare before the next step; what policies remember, only if processes took it from elsewhere."""
        self._due, self._with_state = True, self._with_state or with_state

    def ask(
        self,
        parameters: Sequence[Tensor],
        shards: Sharding | None,
        everywhere: bool,
        made_up: bool,
        facts: Callable[[bool], Facts],
    ) -> None:
        """Compare, if it is due; a collective over the processes that share the parameters' weights.

        Args:
            parameters: the optimizer's.
            shards: how they are sharded, if they are.
            everywhere: all processes share them.
            made_up: the step is a checkpoint's look at the optimizer, which one process may take alone.
            facts: describes the optimizer, with or without what its policy remembers.

        Raises:
            ValueError: processes differ; on every one of them, with who differs in what.
        """
        if not self._due or not _several() or (made_up and shards is None):
            return
        known = [*([] if shards is None else shards.groups), *_averaged_over(parameters)]
        if known or everywhere:
            mine = facts(self._with_state)
            if known:
                _compare(mine, known)
            if everywhere:
                _compare(mine, [None])  # apart, for whether this is asked for has to be equal too
        self._due = self._with_state = False


def _several() -> bool:
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    # The backend "fake" gives back nothing that was sent.
    return torch.distributed.get_world_size() > 1 and torch.distributed.get_backend() != "fake"


def _averaged_over(parameters: Sequence[Tensor]) -> list[ProcessGroup]:
    """Return the group, if there is one, over which DistributedDataParallel averages all these parameters' gradients.

    Frameworks wrap the model after the optimizer was made, and keep what they made to themselves; the parameters do not
    tell that they are averaged. So the living objects are looked through, a fraction of a second, this once.
    """
    wanted = {id(parameter) for parameter in parameters}
    found: dict[tuple[int, ...], ProcessGroup] = {}
    for thing in gc.get_objects():
        if not issubclass(type(thing), DistributedDataParallel):
            continue
        ignored = thing.parameters_to_ignore
        if wanted <= {id(p) for name, p in thing.module.named_parameters() if name not in ignored}:
            try:
                ranks = torch.distributed.get_process_group_ranks(thing.process_group)
            except (KeyError, RuntimeError, ValueError):  # of a process group that was destroyed
                continue
            found[tuple(ranks)] = thing.process_group
    return list(found.values()) if len(found) == 1 else []


def _compare(mine: Facts, groups: Sequence[ProcessGroup | None]) -> None:
    digest = hashlib.sha256(repr(mine).encode("utf-8", "backslashreplace")).digest()
    if len(set(_gathered(digest, groups).values())) == 1:
        return
    everyone = dict(sorted(_gathered(mine, groups).items()))
    if _shared_out(everyone):
        return
    differing = [name for name in mine if len({repr(facts[name]) for facts in everyone.values()}) > 1]
    if {LAYERS, HELD} & {*differing}:  # which says it already
        differing = [name for name in differing if name not in (OWNERS, START)]
    said = (difference(name, {rank: facts[name] for rank, facts in everyone.items()}) for name in differing)
    raise ValueError(
        f"the processes' optimizers differ, so that the weights they share would drift apart: {'; '.join(said)}. "
        "Nothing was updated. Give every process the same model, optimizer, arguments and checkpoint"
    )


def _shared_out(everyone: Mapping[int, Facts]) -> bool:
    """Whether each process holds parameters of its own and sends them on after its step, as ZeRO's first stage does."""
    held = [set(facts[HELD]) for facts in everyone.values()]
    return sum(map(len, held)) == len(set().union(*held))


def _gathered(value: Any, groups: Sequence[ProcessGroup | None]) -> dict[int, Any]:
    """What every process of all groups gives, by rank; some hear of each other through others."""
    values = {torch.distributed.get_rank(): value}
    for group in groups:
        of_each: list[Any] = [None] * torch.distributed.get_world_size(group)
        try:
            torch.distributed.all_gather_object(of_each, values, group)
        except Exception as error:  # the backend's, or from reading what another call than this one sent
            reason = str(error).partition("\n")[0]
            raise RuntimeError(
                f"the processes that share weights could not compare their optimizers before this step ({reason}): "
                "does every one of them wrap its optimizer, load the checkpoints that others load, and call step()?"
            ) from error
        for of_one in of_each:
            values |= of_one
    return values
