"""Each file in `partitions/` holds a recipe (AutoModel class, model type, config) and the partition expected of it.

To add an architecture, write a file with the recipe as its first line; to write the partitions anew after a change of
rule, run `LOCALOPT_WRITE_PARTITIONS=1 pytest tests/test_layers.py`. Then read the diff next to the model's `forward`.
"""

from __future__ import annotations

import json
import os
import re
import textwrap
from itertools import groupby
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from localopt.layers import canonical, locate, partition

RECIPES = sorted(Path(__file__).parent.joinpath("partitions").glob("*.txt"))


def names_of(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def build(recipe: str) -> nn.Module:
    """The model of a recipe such as `# AutoModel vit {"hidden_size": 32}`, without memory for its weights."""
    auto, kind, config = recipe.removeprefix("# ").split(" ", 2)
    with torch.device("meta"):
        model: nn.Module = getattr(transformers, auto).from_config(
            transformers.AutoConfig.for_model(kind, **json.loads(config))
        )
    return model


def written(partition_: dict[str, str]) -> str:
    """A partition as text: parameter names below their layer, relative to the block; equal blocks written once."""
    layers: dict[str, list[str]] = {}
    for name, layer in partition_.items():
        layers.setdefault(layer, []).append(name)
    blocks: dict[tuple[str, int | None], list[str]] = {}
    for layer, names in layers.items():
        stack, index, part = locate(layer)
        prefix = "" if index is None else f"{stack}.{index}."
        text = textwrap.fill(" ".join(name.removeprefix(prefix) for name in names), 116, break_on_hyphens=False)
        blocks.setdefault((stack, index), []).append(f"{part or '(whole)'}\n{textwrap.indent(text, '  ')}")
    lines = ["\n".join(blocks.pop(("", None), []))]
    for (stack, sublayers), equal in groupby(blocks.items(), key=lambda block: (block[0][0], block[1])):
        indices = ", ".join(str(index) for (_, index), _ in equal)
        lines.append(f"\n{stack} {indices}\n" + textwrap.indent("\n".join(sublayers), "  "))
    return "\n".join(lines).strip() + "\n"


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    return build(RECIPES[0].with_name("llama.txt").read_text().splitlines()[0])


@pytest.mark.skipif(int(transformers.__version__.split(".")[0]) < 5, reason="the names are those of transformers 5")
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_partition_of_a_real_architecture_is_the_committed_one(path: Path) -> None:
    recipe = path.read_text().splitlines()[0]
    actual = f"{recipe}\n\n{written(partition(names_of(build(recipe))))}"
    if os.environ.get("LOCALOPT_WRITE_PARTITIONS"):
        path.write_text(actual)
    assert actual == path.read_text()


# What has several dimensions and is no weight matrix: states, mixes, positions, tables of biases, a class token.
STATE = re.compile(
    r"(A_log|time_mix_\w+|\w+_token|mask_emb|seg_embed|position_embeddings|\w+_table|original\d|\w+_bias)$"
)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_weight_matrix_of_a_real_architecture_is_a_layer_of_its_own(path: Path) -> None:
    model = build(path.read_text().splitlines()[0])
    parameters, sublayer = dict(model.named_parameters()), partition(names_of(model))
    layers: dict[str, list[str]] = {}
    for name, layer in partition(parameters, "matrix").items():
        layers.setdefault(layer, []).append(name)
    for layer, names in layers.items():
        matrices = [name for name in names if parameters[name].dim() > 1 and not STATE.search(name.rpartition(".")[2])]
        vectors = [name for name in names if name not in matrices]
        if matrices:
            assert len(matrices) == 1
            assert matrices[0].removesuffix(".weight") == layer
            assert all(name.endswith("bias") and name.startswith(layer.rpartition(".")[0]) for name in vectors)
        elif not any(name == f"{layer}.weight" or "original" in name for name in vectors):
            # Those are a norm whose name does not say so (ConvNeXt), and a weight that torch keeps in two parts.
            assert {sublayer[name] for name in vectors} == {layer}


def test_vectors_stay_in_their_sublayer_and_biases_with_their_matrix(llama: nn.Module) -> None:
    expected = {
        "self_attn.q_proj.weight": "self_attn.q_proj",
        "mlp.up_proj.weight": "mlp.up_proj",
        "input_layernorm.weight": "attention",
        "post_attention_layernorm.weight": "mlp",
    }
    layer = partition(names_of(llama), "matrix")
    for name, part in expected.items():
        assert layer[f"model.layers.1.{name}"] == f"model.layers.1.{part}"
    assert (layer["model.embed_tokens.weight"], layer["model.norm.weight"]) == ("model.embed_tokens", "model.norm")
    torchs = partition(names_of(nn.Transformer(8, 2, 1, 1, 16)), "matrix")
    block = "encoder.layers.0"
    for own in ("weight", "bias"):
        assert torchs[f"{block}.linear1.{own}"] == f"{block}.linear1"
        assert torchs[f"{block}.self_attn.in_proj_{own}"] == f"{block}.self_attn.in_proj_weight"
        assert torchs[f"{block}.norm1.{own}"] == f"{block}.attention"
    assert partition(["weight", "bias"], "matrix") == {"weight": "model", "bias": "model"}


def test_adapters_belong_to_the_matrix_they_adapt() -> None:
    peft = pytest.importorskip("peft")
    model = build(RECIPES[0].with_name("gpt2.txt").read_text().splitlines()[0])
    before = partition(names_of(model), "matrix")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True))
    layer = partition(names_of(adapted), "matrix")
    assert set(layer.values()) == set(before.values())
    prefix = "base_model.model.transformer.h.1.mlp.c_fc"
    for own in ("lora_A.default.weight", "lora_B.default.weight", "base_layer.weight", "base_layer.bias"):
        assert layer[f"{prefix}.{own}"] == "transformer.h.1.mlp.c_fc"


def test_the_names_of_older_transformers_releases_fall_in_the_same_places() -> None:
    layer = partition(
        [
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.0.block_sparse_moe.gate.weight",
            "model.layers.0.block_sparse_moe.experts.7.w1.weight",
            "model.layers.0.input_layernorm.weight",
            "model.layers.0.post_attention_layernorm.weight",
            "vit.encoder.layer.0.attention.attention.query.weight",
            "vit.encoder.layer.0.attention.output.dense.weight",
            "vit.encoder.layer.0.intermediate.dense.weight",
            "vit.encoder.layer.0.output.dense.weight",
            "vit.encoder.layer.0.layernorm_before.weight",
            "vit.encoder.layer.0.layernorm_after.weight",
            "transformer.blocks.0.norm_attn_norm.norm_1.weight",
            "transformer.blocks.0.norm_attn_norm.attn.Wqkv.weight",
            "transformer.blocks.0.norm_attn_norm.norm_2.weight",
            "transformer.blocks.0.ffn.experts.mlp.w1",
        ]
    )
    kinds = [locate(name)[2] for name in layer.values()]
    assert kinds[:5] == ["attention", "mlp", "mlp", "attention", "mlp"]
    assert kinds[5:11] == ["attention", "attention", "mlp", "mlp", "attention", "mlp"]
    assert kinds[11:] == ["attention", "attention", "mlp", "mlp"]


def test_torchs_own_transformer_layers_are_split_too() -> None:
    layer = partition(names_of(nn.Transformer(8, 2, 1, 1, 16)))
    assert layer["encoder.layers.0.norm2.weight"] == layer["encoder.layers.0.linear1.weight"] == "encoder.layers.0.mlp"
    assert layer["decoder.layers.0.self_attn.in_proj_weight"] == "decoder.layers.0.attention"
    assert layer["decoder.layers.0.multihead_attn.in_proj_weight"] == "decoder.layers.0.cross_attention"
    assert [layer[f"decoder.layers.0.norm{i}.weight"].rpartition(".")[2] for i in (1, 2, 3)] == [
        "attention",
        "cross_attention",
        "mlp",
    ]
    assert layer["encoder.norm.weight"] == "encoder.norm"


def test_a_plain_module_is_one_layer_and_a_sequential_one_layer_a_module() -> None:
    assert partition(names_of(nn.Linear(2, 3))) == {"weight": "model", "bias": "model"}
    mlp = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1, bias=False))
    assert partition(names_of(mlp)) == {"0.weight": "0", "0.bias": "0", "2.weight": "2"}
    assert partition(["embed.0.weight", "classifier.2.bias"]) == {
        "embed.0.weight": "embed",
        "classifier.2.bias": "classifier.2",
    }


def test_a_block_without_attention_is_one_mixer() -> None:
    stage = nn.ModuleDict({"conv": nn.Conv2d(1, 1, 1), "norm": nn.BatchNorm2d(1), "extra": nn.Linear(1, 1)})
    layer = partition(names_of(nn.ModuleDict({"stages": nn.ModuleList([stage]), "head": nn.Linear(1, 1)})))
    assert set(layer.values()) == {"stages.0.mixer", "head"}
    assert set(partition(["blocks.0.norm.weight", "blocks.0.mlp.up.weight"]).values()) == {"blocks.0.mixer"}


def test_a_norm_whose_name_says_nothing_goes_with_what_is_registered_before_it() -> None:
    layer = partition([f"h.0.{part}.weight" for part in ("rms_norm", "attn.q", "mlp.up", "some_norm")])
    assert list(layer.values()) == ["h.0.attention", "h.0.attention", "h.0.mlp", "h.0.mlp"]


def test_a_block_with_cross_attention_only_has_its_norms_beside_it() -> None:
    parts = ["input_layernorm", "cross_attn.q_proj", "cross_attn.q_norm", "mlp.up_proj", "post_attention_layernorm"]
    kinds = [locate(layer)[2] for layer in partition([f"model.layers.3.{part}.weight" for part in parts]).values()]
    assert kinds == ["cross_attention", "cross_attention", "cross_attention", "mlp", "mlp"]


def test_a_parameter_that_a_block_itself_owns_belongs_to_the_block() -> None:
    layer = partition(["h.0.attn.q.weight", "h.0.cross_attn_mlp_gate", "h.0.bias"])
    assert list(layer.values()) == ["h.0.attention", "h.0.mlp", "h.0.mlp"]


def test_whole_blocks_and_single_parameters_can_be_layers(llama: nn.Module) -> None:
    names = names_of(llama)
    blocks = ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "lm_head"]
    assert list(dict.fromkeys(partition(names, "block").values())) == blocks
    assert partition(names, "parameter") == {name: name for name in names}


def test_a_function_of_the_name_sees_names_without_wrappers() -> None:
    halves = partition(["module.h.0.a.weight", "module.h.9.a.weight"], lambda name: "low" if "h.0." in name else "high")
    assert halves == {"module.h.0.a.weight": "low", "module.h.9.a.weight": "high"}


@pytest.mark.parametrize("returned", [None, 3, ""])
def test_a_function_that_returns_no_layer_name_is_an_error_that_names_the_parameter(returned: object) -> None:
    with pytest.raises(ValueError, match=f"got {returned!r} for 'h.0.weight'"):
        partition(["h.0.weight"], lambda _: returned)  # type: ignore[arg-type, return-value]


def test_an_unknown_mode_is_an_error_that_lists_the_choices() -> None:
    with pytest.raises(ValueError, match=r"'blocks'.*'sublayer', 'block', 'matrix', 'parameter'"):
        partition(["weight"], "blocks")  # type: ignore[arg-type]


def test_a_name_that_comes_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"'a\.weight' comes twice"):
        partition(["a.weight", "b.weight", "a.weight"])


def test_what_is_not_a_list_of_names_is_an_error() -> None:
    with pytest.raises(TypeError, match="one string 'weight'"):
        partition("weight")
    with pytest.raises(TypeError, match=r"got tuple; pass \[name for name, _"):
        partition(nn.Linear(1, 1).named_parameters())  # type: ignore[arg-type]


def test_tied_weights_count_once() -> None:
    recipe = '# AutoModelForCausalLM llama {"num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 8, '
    tied = build(recipe + '"num_attention_heads": 1, "vocab_size": 8, "tie_word_embeddings": true}')
    layers = set(partition(names_of(tied)).values())
    assert "model.embed_tokens" in layers
    assert "lm_head" not in layers


def test_a_compiled_model_has_the_same_layers(llama: nn.Module) -> None:
    compiled = torch.compile(llama)
    assert isinstance(compiled, nn.Module)
    assert names_of(compiled)[0].startswith("_orig_mod.")
    assert list(partition(names_of(compiled)).values()) == list(partition(names_of(llama)).values())


def test_distributed_wrappers_leave_the_layers_as_they_are(tmp_path: Path) -> None:
    model = nn.Transformer(8, 2, 1, 2, 16, batch_first=True)
    before = list(partition(names_of(model)).values())
    for i, block in enumerate(model.decoder.layers):
        model.decoder.layers[i] = checkpoint_wrapper(block)
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        replicated = nn.parallel.DistributedDataParallel(model)
        assert list(partition(names_of(replicated)).values()) == before
        sharded = FullyShardedDataParallel(
            model,
            device_id=torch.device("cpu"),
            use_orig_params=True,
            auto_wrap_policy=ModuleWrapPolicy({nn.TransformerEncoderLayer, nn.TransformerDecoderLayer}),
        )
        assert any("_fsdp_wrapped_module" in name for name in names_of(sharded))
        assert set(partition(names_of(sharded)).values()) == set(before)
    finally:
        torch.distributed.destroy_process_group()


def test_lora_adapters_fall_in_the_layers_of_what_they_adapt() -> None:
    peft = pytest.importorskip("peft")
    recipe = RECIPES[0].with_name("gpt2.txt").read_text().splitlines()[0].replace("CausalLM", "SequenceClassification")
    model = build(recipe)
    before = partition(names_of(model))
    config = peft.LoraConfig(
        r=2, target_modules=["c_attn", "c_proj", "c_fc", "wte"], modules_to_save=["score"], fan_in_fan_out=True
    )
    layer = partition(names_of(peft.get_peft_model(model, config)))
    prefix = "base_model.model.transformer."
    assert set(layer.values()) == set(before.values())
    assert layer[f"{prefix}h.0.attn.c_attn.lora_A.default.weight"] == "transformer.h.0.attention"
    assert layer[f"{prefix}h.1.mlp.c_proj.lora_B.default.weight"] == "transformer.h.1.mlp"
    assert layer[f"{prefix}wte.lora_embedding_A.default"] == "transformer.wte"
    assert layer["base_model.model.score.modules_to_save.default.weight"] == "score"


def test_a_sequential_keeps_its_layer_names_under_lora() -> None:
    peft = pytest.importorskip("peft")
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=1, target_modules=["0", "2"]))
    assert set(partition(names_of(adapted)).values()) == {"0", "2"}


def test_adapters_in_a_wrapped_model_keep_the_names_of_the_base_model() -> None:
    name = "module.base_model.model.model.layers.0._fsdp_wrapped_module.self_attn.q_proj.lora_A.default.weight"
    assert list(partition([name]).values()) == ["model.layers.0.attention"]


part = st.sampled_from(
    ["layers", "0", "1", "12", "attn", "mlp", "norm", "ln_2", "experts", "embed", "mamba", "cross_attn", "fc1"]
)
names = st.lists(
    st.lists(part, max_size=5).map(lambda parts: ".".join([*parts, "weight"])), unique=True, min_size=1, max_size=30
)
wrapper = st.sampled_from(["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])


@given(names, st.sampled_from(["sublayer", "block", "matrix", "parameter"]))
def test_every_parameter_falls_in_one_layer_and_order_is_kept(names: list[str], layers: str) -> None:
    layer = partition(names, layers)  # type: ignore[arg-type]
    assert list(layer) == names
    assert all(layer.values())


@given(names)
def test_a_sublayer_lies_within_one_block(names: list[str]) -> None:
    whole = partition(names, "block")
    blocks: dict[str, set[str]] = {}
    for name, layer in partition(names).items():
        blocks.setdefault(layer, set()).add(whole[name])
    assert all(len(found) == 1 for found in blocks.values())


@given(names, st.data())
def test_wrappers_anywhere_in_a_name_change_nothing(names: list[str], data: st.DataObject) -> None:
    def wrapped(name: str) -> str:
        parts = name.split(".")
        for at in sorted(data.draw(st.lists(st.integers(0, len(parts) - 1), max_size=3)), reverse=True):
            parts.insert(at, data.draw(wrapper))
        return ".".join(parts)

    disguised = [wrapped(name) for name in names]
    assert [canonical(name) for name in disguised] == names
    assert list(partition(disguised).values()) == list(partition(names).values())


@given(names)
def test_a_layers_place_and_part_spell_its_name(names: list[str]) -> None:
    for layer in partition(names).values():
        stack, index, part = locate(layer)
        assert ".".join(piece for piece in (stack, "" if index is None else str(index), part) if piece) == layer
