"""What makes an optimizer do what it does, in plain values that processes can exchange, compare and show."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from numbers import Number
from typing import Any, TypeAlias

import torch
from torch import Tensor

from localopt.policies.protocol import state_tensors
from localopt.steps.anchor import Anchor, AnchorDecay
from localopt.steps.layout import Group, Layout
from localopt.steps.sharding import is_sharded

Facts: TypeAlias = dict[str, Any]

LAYERS, HELD, OWNERS = "the layers", "the parameters", "which layer holds what"
START = "the start of the anchor decay"

_SHOWN = 160  # characters of a value
_NAMES = 3  # names of a difference
_SAMPLES = 16  # numbers of a tensor that stand for it


def describe(
    policy: object,
    layout: Layout,
    groups: Sequence[Group],
    anchor: Anchor | None,
    options: Mapping[str, object],
    with_state: bool,
) -> Facts:
    """Return what has to be equal on all processes that share an optimizer's weights, by what to call it.

    Of parameters that are sharded only the names: plain ones beside them may be others on every process, as experts
    are. What a policy of the user's own holds is left out, for it may differ on purpose, such as who writes a log.

    Args:
        policy: chooses layers.
        layout: the layers.
        groups: the parameter groups.
        anchor: the start of an anchor decay, if there is one.
        options: the arguments, by name.
        with_state: include what the policy remembers.
    """
    parameters = [parameter for group in groups for parameter in group["params"]]
    named = list(zip((name for group in layout.parameters for name in group), parameters, layout.flat(), strict=True))
    sharded = any(map(is_sharded, parameters))
    facts: Facts = {"the policy": _text(policy)}
    if with_state:
        facts["what the policy remembers"] = _state(policy)
    facts |= {name: _option(value) for name, value in options.items()}
    facts[LAYERS] = layout.names
    facts[HELD] = tuple(sorted(name for name, parameter, _ in named if is_sharded(parameter) or not sharded))
    if not sharded:
        facts[OWNERS] = tuple(sorted(f"{layout.names[layer]}: {name}" for name, _, layer in named))
        if anchor is not None:
            starts = [start for mine in anchor.starts for start in mine if start is not None and not start.is_meta]
            facts[START] = _fingerprint(starts)
    return facts


def _option(value: object) -> str:
    if isinstance(value, AnchorDecay):  # where its start is kept may differ
        return f"{value!r}, kept as {value.dtype or 'it comes'}"
    return repr(value)


def _text(value: object) -> str:
    if value is None or isinstance(value, (str, Number)):
        return repr(value)
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_text(value[key])}" for key in sorted(value, key=repr)) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_text, value)) + "]"
    if isinstance(value, partial):
        return f"partial({_text(value.func)}, {_text(value.args)}, {_text(value.keywords)})"
    norms = getattr(value, "reference_norms", None)
    if isinstance(norms, Tensor):  # a trace; what else it tells is not what layers are chosen by
        return f"trace({_text(getattr(value, 'layers', ()))}, {_tensor(norms)})"
    kind = value if isinstance(value, type) or hasattr(value, "__qualname__") else type(value)
    name = getattr(kind, "__qualname__", type(value).__qualname__)
    if is_dataclass(value) and not isinstance(value, type) and _ours(value):
        given = (f"{one.name}={_text(getattr(value, one.name))}" for one in fields(value) if one.init)
        return f"{name}({', '.join(given)})"
    return f"{getattr(kind, '__module__', '')}.{name}"


def _state(policy: object) -> str:
    """What a policy remembers; nothing where there is one of the user's own in it, which may mean anything."""
    inner: object = policy
    while inner is not None:
        if not _ours(inner):
            return ""
        inner = getattr(inner, "policy", None)
    state = state_tensors(policy)  # type: ignore[arg-type]
    return _text({key: tensor.tolist() for key, tensor in state.items()})


def _ours(value: object) -> bool:
    return type(value).__module__.partition(".")[0] == "localopt"


def _tensor(tensor: Tensor) -> str:
    if is_sharded(tensor) or tensor.is_meta:
        return f"tensor {tuple(tensor.shape)}"
    values = tensor.detach().to("cpu").contiguous()
    digest = hashlib.sha256(repr(values.tolist()).encode()).hexdigest()[:8]
    return f"tensor {tuple(tensor.shape)} {digest}"


@torch.no_grad()
def _fingerprint(tensors: Iterable[Tensor]) -> str:
    """Return 8 hexadecimal digits of a few numbers of each tensor, by their bits; waits for the device once."""
    picked: list[Tensor] = []
    for tensor in tensors:
        flat = tensor.detach().reshape(-1)
        picked.append(flat[:: max(1, flat.numel() // _SAMPLES)][:_SAMPLES].double())
    values = torch.cat(picked).tolist() if picked else []
    return hashlib.sha256(repr(values).encode()).hexdigest()[:8]


def difference(what: str, of_each: Mapping[int, Any]) -> str:
    """Say in what processes differ: their values, or of lists of names those that not all have.

    >>> difference("the policy", {0: "TopK(k=1)", 1: "AboveMean()", 2: "TopK(k=1)"})
    'the policy is TopK(k=1) on processes 0, 2 and AboveMean() on process 1'
    >>> difference("the parameters", {0: ("a", "b"), 1: ("b",)})
    'the parameters: process 0 has 2, with a; process 1 has 1'
    """
    who: dict[str, list[int]] = {}
    for rank, value in of_each.items():
        who.setdefault(repr(value), []).append(rank)
    values = {text: of_each[ranks[0]] for text, ranks in who.items()}
    if all(isinstance(value, tuple) for value in values.values()):
        common = set.intersection(*(set(value) for value in values.values()))
        if any(set(value) - common for value in values.values()):
            said = (f"{_processes(who[text])} has {_names(value, common)}" for text, value in values.items())
            return f"{what}: {'; '.join(said)}"
    texts = {text: value if isinstance(value, str) else text for text, value in values.items()}
    cut = _cut_to_difference(texts)
    return f"{what} is " + " and ".join(f"{cut[text]} on {_processes(ranks)}" for text, ranks in who.items())


def _names(names: Sequence[Any], common: set[Any]) -> str:
    own = [str(name) for name in names if name not in common]
    if not own:
        return f"{len(names)}"
    return f"{len(names)}, with {', '.join(own[:_NAMES])}{', ...' if len(own) > _NAMES else ''}"


def _cut_to_difference(texts: Mapping[str, str]) -> dict[str, str]:
    """Leave of long texts what stands around the first place where they differ."""
    pairs = zip(*texts.values(), strict=False)
    same = next((i for i, letters in enumerate(pairs) if len(set(letters)) > 1), min(map(len, texts.values())))
    begin = max(0, same - _SHOWN // 4) if max(map(len, texts.values())) > _SHOWN else 0
    return {
        key: ("..." if begin else "") + text[begin : begin + _SHOWN] + ("..." if len(text) > begin + _SHOWN else "")
        for key, text in texts.items()
    }


def _processes(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
    return f"process {shown}" if len(ranks) == 1 else f"processes {shown}"
