"""Parameters -> named layers, by their names alone.

A **block** is an element of a list of repeated blocks: the outermost all-digit component of a name, unless that
element is a bare module (`classifier.2.weight`). A block is split in sublayers, named after the block:

- `attention` (linear attention too) and `cross_attention`;
- `mlp`: everything else in a block that has attention (loose `fc1`/`fc2`, experts, router, adapters);
- `mixer`: what mixes tokens without attention (state-space model, recurrence, convolution). A block without
  attention is one `mixer`, unless a part of it is called an MLP (Jamba): then it is `mixer` and `mlp`. A block that
  runs attention and Mamba side by side (Falcon-H1) has all three.

A norm goes to the sublayer it stands next to in the forward pass (see `_place_norm`). Outside the blocks a layer is
the module that owns the parameter, and everything under a module called "...embed..." is one layer.

With `"matrix"` every weight matrix (and every stack of them, as fused experts have) is a layer, named after its module,
and its bias and its adapters go with it. Other vectors (norms, states, scales) are a layer for each sublayer, named as
the sublayer is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, get_args

Mode = Literal["sublayer", "block", "matrix", "parameter"]
Layers = Mode | Callable[[str], str]

ROOT = "model"  # the layer of parameters that the outermost module itself owns (nn.Linear's "weight" and "bias")

# What DDP, torch.compile, FSDP and activation checkpointing put into the path of a module.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Components below which a module is replaced or extended (peft, torch's parametrizations): the owner is what is above.
_ADAPTER = re.compile(
    r"(lora|hada|lokr|oft|boft|vera|ia3)_.*|base_layer|original_module|modules_to_save|parametrizations"
)

# What the name of a component says it is; the first pattern found in it wins.
_ROLES = {
    "mlp": re.compile(r"mlp|ffn|feed_?forward|moe|expert|(?<![a-z])ff(?![a-z])"),
    "cross_attention": re.compile(r"cross.*att|(?<![a-z])(enc.*att|ca(?![a-z]))"),  # also encoder_attn, EncDecAttention
    "attention": re.compile(r"attn|attention|(?<![a-z])(att|mha|sa)(?![a-z])|^(q|k|v|o|qkv)_proj$"),
    "mixer": re.compile(r"mamba|ssm"),
}
_FORWARD_ORDER = ("attention", "mixer", "cross_attention", "mlp")

_NORM = re.compile(r"norm|(?<![a-z])ln|layer_?scale|^(ls|lambda_|gamma_)\d")  # layer scales sit where norms sit
# Matrices whose name is not `weight`: in_proj_weight, fused experts' gate_up_proj and w1, XLNet's q.
_MATRIX = re.compile(r"weight|proj$|^[wv]\d$|^[qkvor]$")
_NUMBER = re.compile(r"(\d)$")
_FIRST_NORM = re.compile(r"^(input|pre_?(layer)?_?(norm|ln)|operator|temporal)|before")
_LAST_NORM = re.compile(r"final|output|full|after|channel")


def partition(names: Iterable[str], layers: Layers = "sublayer") -> dict[str, str]:
    """The layer of every parameter, in the order given.

    Args:
        names: parameter names as ``model.named_parameters()`` gives them; wrapper prefixes are seen through. Pass all
            names of a model, frozen ones too: what else a block holds tells where its norms belong.
        layers: ``"sublayer"`` (attention and MLP of each block apart), ``"block"`` (whole blocks), ``"matrix"`` (every
            weight matrix apart), ``"parameter"`` (every parameter its own layer), or a function from the canonical
            parameter name to a layer name.

    Returns:
        Parameter name -> layer name.

    Raises:
        ValueError: a name comes twice, ``layers`` is unknown, or the function returns something other than a layer
            name.
        TypeError: the names are not strings.

    Examples:
        >>> names = ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight",
        ...          "model.layers.0.mlp.up_proj.weight", "model.layers.0.input_layernorm.weight", "lm_head.weight"]
        >>> list(partition(names).values())  # doctest: +NORMALIZE_WHITESPACE
        ['model.embed_tokens', 'model.layers.0.attention', 'model.layers.0.mlp', 'model.layers.0.attention', 'lm_head']
        >>> partition(names, "block")["model.layers.0.mlp.up_proj.weight"]
        'model.layers.0'
        >>> partition(names, "matrix")["model.layers.0.mlp.up_proj.weight"]
        'model.layers.0.mlp.up_proj'
    """
    clean = {name: canonical(name) for name in _checked(names)}
    if callable(layers):
        return {name: _returned(layers, path) for name, path in clean.items()}
    if layers == "parameter":
        return clean
    if layers not in get_args(Mode):
        choices = ", ".join(map(repr, get_args(Mode)))
        raise ValueError(f"layers={layers!r} is not known; choose one of {choices} or a function of the parameter name")
    blocks = _blocks(clean.values())
    if layers == "block":
        inside = {path: block for block, paths in blocks.items() for path in paths}
    else:
        inside = {path: layer for block, paths in blocks.items() for path, layer in _sublayers(block, paths).items()}
    apart = _matrices(clean.values()) if layers == "matrix" else {}
    return {name: apart.get(path) or inside.get(path) or _outside(path) for name, path in clean.items()}


def canonical(name: str) -> str:
    """A parameter's name without what wrappers put into it: DDP, torch.compile, FSDP, checkpointing, peft.

    >>> canonical("module._orig_mod.model.layers.0._checkpoint_wrapped_module.mlp.up_proj.weight")
    'model.layers.0.mlp.up_proj.weight'
    >>> canonical("base_model.model.lm_head.weight")
    'lm_head.weight'
    """
    *modules, parameter = name.split(".")  # a parameter's own name is never a wrapper
    kept = ".".join([*(part for part in modules if part not in _WRAPPERS), parameter])
    return kept.removeprefix("base_model.model.")


def locate(layer: str) -> tuple[str, int | None, str]:
    """Where a layer stands: the list of blocks, the index in it, and the part of the block ("" for all of it).

    >>> locate("model.layers.3.attention"), locate("model.layers.3"), locate("lm_head")
    (('model.layers', 3, 'attention'), ('model.layers', 3, ''), ('', None, 'lm_head'))
    """
    parts = layer.split(".")
    for i, part in enumerate(parts):
        if _is_index(part):
            return ".".join(parts[:i]), int(part), ".".join(parts[i + 1 :])
    return "", None, layer


def _checked(names: Iterable[str]) -> list[str]:
    if isinstance(names, str):
        raise TypeError(f"expected several parameter names, got one string {names!r}; put it in a list")
    checked: dict[str, None] = {}
    for name in names:
        if not isinstance(name, str):
            raise TypeError(
                f"a parameter name must be a string, got {type(name).__name__}; "
                "pass [name for name, _ in model.named_parameters()]"
            )
        if name in checked:
            raise ValueError(f"parameter name {name!r} comes twice; every parameter needs a name of its own")
        checked[name] = None
    return list(checked)


def _returned(layers: Callable[[str], str], path: str) -> str:
    layer = layers(path)
    if not isinstance(layer, str) or not layer:
        raise ValueError(f"the layers function must return a layer name (a string), got {layer!r} for {path!r}")
    return layer


def _is_index(part: str) -> bool:
    return part.isascii() and part.isdigit()


def _blocks(paths: Iterable[str]) -> dict[str, list[str]]:
    """The parameters of every block. An element that only owns parameters itself is a bare module and no block."""
    elements: dict[str, list[str]] = {}
    for path in paths:
        _, index, rest = locate(path)
        if index is not None and rest:
            elements.setdefault(path.removesuffix("." + rest), []).append(path)
    return {block: paths for block, paths in elements.items() if any(_module(path) != block for path in paths)}


def _module(path: str) -> str:
    """The module that owns a parameter; for an adapter's parameter, the module that is adapted."""
    modules = path.split(".")[:-1]
    adapter = next((i for i, part in enumerate(modules) if i and _ADAPTER.fullmatch(part)), len(modules))
    return ".".join(modules[:adapter])


def _matrices(paths: Iterable[str]) -> dict[str, str]:
    """The matrix that each parameter is, or is the bias or an adapter of; other vectors are left out."""
    known = list(paths)
    found = {path: layer for path in known if (layer := _matrix(path))}
    for path in known:
        owner, _, own = path.rpartition(".")
        if own.endswith("bias"):
            weights = (f"{owner}.{name}".lstrip(".") for name in (own[:-4] + "weight", own.removesuffix("_bias")))
            matrix = next((found[weight] for weight in weights if weight in found), None)
            found |= {path: matrix} if matrix else {}
    return found


def _matrix(path: str) -> str | None:
    owner, _, own = path.rpartition(".")
    module = _module(path)
    if own.endswith("bias") or any(_NORM.search(part.lower()) for part in (module.rpartition(".")[2], own)):
        return None
    if own == "weight" or module != owner:  # the latter: what adapts a matrix
        return module or ROOT
    return path if _MATRIX.search(own) else None


def _outside(path: str) -> str:
    """The layer of a parameter outside the blocks."""
    modules = _module(path).split(".")
    embedding = next((i for i, part in enumerate(modules) if "embed" in part.lower()), len(modules))
    return ".".join(modules[: embedding + 1]) or ROOT


def _sublayers(block: str, paths: Sequence[str]) -> dict[str, str]:
    """The sublayer of every parameter of one block: what its name says, then what surrounds it, norms last."""
    parts = {path: path[len(block) + 1 :].lower().split(".") for path in paths}
    role = {path: _named_role(parts[path]) for path in paths}
    if any(part[0] == "self_attn" for part in parts.values()):  # nn.TransformerDecoderLayer: cross-attention beside it
        role |= {path: "cross_attention" for path in paths if parts[path][0] == "multihead_attn"}
    norms = [path for path in paths if role[path] is None and _norm(parts[path])]
    attends = bool({"attention", "cross_attention"} & set(role.values()))

    for path in [path for path in paths if role[path] is None and path not in norms]:
        role[path] = _surrounding_role(path, block, role) or ("mlp" if attends else "mixer")
    if not set(role.values()) - {"mlp", None}:  # nothing but an MLP (or only norms): the block is one piece
        return dict.fromkeys(paths, f"{block}.mixer")

    present = [kind for kind in _FORWARD_ORDER if kind in role.values()]
    norm_names = [_norm(parts[path]) for path in paths]
    for path in norms:
        role[path] = _place_norm(_norm(parts[path]), norm_names, present) or _surrounding_role(path, block, role)
    return {path: f"{block}.{kind}" for path, kind in zip(paths, _filled([role[path] for path in paths]), strict=True)}


def _named_role(parts: Sequence[str]) -> str | None:
    """What the outermost telling component says. A norm's name may tell of its neighbors only, so norms don't count."""
    told = (_role(part) for part in parts if not _NORM.search(part))
    return next((kind for kind in told if kind), None)


def _role(part: str) -> str | None:
    return next((kind for kind, pattern in _ROLES.items() if pattern.search(part)), None)


def _norm(parts: Sequence[str]) -> str:
    return next((part for part in reversed(parts) if _NORM.search(part)), "")


def _surrounding_role(path: str, block: str, role: dict[str, str | None]) -> str | None:
    """The one role that the innermost telling module around a parameter has (T5's `layer.0`, BERT's `output`)."""
    module, _, _ = path.rpartition(".")
    while len(module) > len(block):
        kinds = {kind for other, kind in role.items() if kind and other.startswith(module + ".")}
        if kinds:
            return kinds.pop() if len(kinds) == 1 else None
        module, _, child = module.rpartition(".")
        if _is_index(child):  # above an index stands a list, which surrounds nothing
            module, _, _ = module.rpartition(".")
    return None


def _place_norm(norm: str, norms: Sequence[str], present: Sequence[str]) -> str | None:
    """The sublayer that a norm directly in a block stands next to, None where its name does not say.

    - `post_attention_layernorm` closes attention where another norm opens the MLP (Gemma 2) or
      `post_feedforward_layernorm` closes it (OLMo 2); elsewhere it opens the sublayer after attention (Llama).
    - A norm named after a sublayer belongs to it (`self_attn_layer_norm`, `ln_mlp`, `pre_ff_layernorm`).
    - Of numbered norms the first and the last belong to the first and the last sublayer, any other to cross-attention.
    - `input_layernorm`, `layernorm_before` open the block; `final_layer_norm`, `layernorm_after` belong
      to its last sublayer.
    """
    first, last = present[0], present[-1]
    if norm.startswith("post_attention"):
        closes = any(other.startswith(("pre_feedforward", "pre_mlp", "pre_ff", "post_feedforward")) for other in norms)
        return first if closes else present[1 % len(present)]
    if kind := _role(norm):
        return kind if kind in present else last if kind == "mlp" else first
    if number := _NUMBER.search(norm):
        numbers = {found[1] for other in norms if (found := _NUMBER.search(other))}
        if number[1] == min(numbers) and number[1] in "01":
            return first
        return last if number[1] == max(numbers) or "cross_attention" not in present else "cross_attention"
    if _FIRST_NORM.search(norm):
        return first
    return last if _LAST_NORM.search(norm) else None


def _filled(kinds: Sequence[str | None]) -> list[str]:
    """What is still open takes the sublayer registered before it, or the first one registered."""
    last = next(kind for kind in kinds if kind)
    return [last := kind or last for kind in kinds]
