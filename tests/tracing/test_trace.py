"""trace_layers: one norm a layer for each set, whatever form the data comes in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from localopt.errors import InputError
from localopt.layers import partition
from localopt.tracing.trace import LayerTrace, trace_layers
from tests import tiny_models

MODELS = {"llama": tiny_models.llama, "gpt2, tied": tiny_models.gpt2, "t5": tiny_models.t5, "lora": tiny_models.lora}


def gradients(model: nn.Module, example: dict[str, Tensor]) -> dict[str, Tensor]:
    """The plainest way to a gradient, in evaluation mode: all of them at once."""
    model.eval()
    loss = model(**{key: value[None] for key, value in example.items()}).loss
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    return {name: torch.zeros_like(trained[name]) if g is None else g for name, g in zip(trained, found, strict=True)}


def by_layer(model: nn.Module, parameters: dict[str, Tensor]) -> Tensor:
    layer_of = partition([name for name, _ in model.named_parameters()])
    names = list(dict.fromkeys(layer_of[name] for name in parameters))
    members = [[g.double() for name, g in parameters.items() if layer_of[name] == layer] for layer in names]
    return torch.stack([torch.cat([g.flatten() for g in group]).norm() for group in members])


def mean_of_norms(model: nn.Module, data: list[dict[str, Tensor]]) -> Tensor:
    return torch.stack([by_layer(model, gradients(model, example)) for example in data]).mean(0)


def norm_of_mean(model: nn.Module, data: list[dict[str, Tensor]]) -> Tensor:
    each = [gradients(model, example) for example in data]
    return by_layer(model, {name: sum(g[name].double() for g in each) / len(each) for name in each[0]})


def assert_close(measured: Tensor, expected: Tensor) -> None:
    assert expected.count_nonzero() > 0
    torch.testing.assert_close(measured.double(), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize(("average", "oracle"), [("norms", mean_of_norms), ("gradients", norm_of_mean)])
def test_norms_are_those_of_a_plain_loop(
    build: Callable[[], nn.Module], average: Any, oracle: Callable[..., Tensor]
) -> None:
    model, probe, reference = build(), tiny_models.examples(3, span=3), tiny_models.examples(4)
    trace = trace_layers(model, probe, reference, average=average)
    assert_close(trace.probe_norms, oracle(model, probe))
    assert_close(trace.reference_norms, oracle(model, reference))
    assert torch.equal(trace.relative_norms, trace.probe_norms / trace.reference_norms)


def test_the_two_averages_differ() -> None:
    model, data = tiny_models.llama(), tiny_models.examples(4)
    norms = trace_layers(model, data, data).probe_norms
    assert (trace_layers(model, data, data, average="gradients").probe_norms < 0.9 * norms).all()


def test_layers_come_in_the_order_of_the_parameters() -> None:
    data = tiny_models.examples(1)
    assert trace_layers(tiny_models.llama(1), data, data).layers == (
        "model.embed_tokens",
        "model.layers.0.attention",
        "model.layers.0.mlp",
        "model.norm",
        "lm_head",
    )


def test_a_tied_weight_is_one_layer_with_its_whole_gradient() -> None:
    data = tiny_models.examples(2)
    trace = trace_layers(tiny_models.gpt2(), data, data)
    assert "lm_head" not in trace.layers
    assert "transformer.wte" in trace.layers


def test_frozen_parameters_are_left_out_and_do_not_change_the_other_norms() -> None:
    model, data = tiny_models.llama(), tiny_models.examples(2)
    whole = trace_layers(model, data, data)
    model.model.embed_tokens.requires_grad_(False)
    part = trace_layers(model, data, data)
    assert part.layers == whole.layers[1:]
    assert torch.equal(part.probe_norms, whole.probe_norms[1:])


def test_adapters_carry_the_names_of_the_layers_they_adapt() -> None:
    data = tiny_models.examples(1)
    layers = trace_layers(tiny_models.lora(), data, data).layers
    assert set(layers) == {f"model.layers.{i}.{part}" for i in (0, 1) for part in ("attention", "mlp")}


def test_adapters_of_the_mlp_alone_are_still_mlp_layers() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_models.llama(), peft.LoraConfig(r=2, target_modules=["down_proj"]))
    data = tiny_models.examples(1)
    assert trace_layers(model, data, data).layers == ("model.layers.0.mlp", "model.layers.1.mlp")


def test_a_batch_counts_as_its_rows() -> None:
    model, data = tiny_models.llama(), tiny_models.examples(5)
    apart = trace_layers(model, data, data)
    together = trace_layers(model, DataLoader(data, batch_size=2), DataLoader(data, batch_size=5))
    torch.testing.assert_close(together.probe_norms, apart.probe_norms)
    torch.testing.assert_close(together.reference_norms, apart.reference_norms)
    assert (together.metadata["probe_examples"], together.metadata["reference_examples"]) == (5, 5)


def test_sets_may_be_generators_and_are_never_held() -> None:
    model, data = tiny_models.llama(), tiny_models.examples(4)
    alive, most = 0, 0

    class Held(dict[str, Tensor]):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def generated() -> Iterator[dict[str, Tensor]]:
        nonlocal alive, most
        for example in data * 3:
            alive += 1
            most = max(most, alive)
            yield Held(example)

    streamed = trace_layers(model, generated(), (dict(example) for example in data))
    torch.testing.assert_close(streamed.probe_norms, trace_layers(model, data, data).probe_norms)
    assert streamed.metadata["probe_examples"] == 12
    assert most <= 3


def test_examples_may_be_lists_of_numbers() -> None:
    model, data = tiny_models.llama(), tiny_models.examples(2)
    lists = [{key: value.tolist() for key, value in example.items()} for example in data]
    assert torch.equal(trace_layers(model, lists, lists).probe_norms, trace_layers(model, data, data).probe_norms)


def test_a_loss_of_ones_own_takes_any_batch() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    inputs, targets = torch.randn(6, 3), torch.randn(6, 1)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        assert batch[0].shape == (1, 3)
        return (model(batch[0]) - batch[1]).square().sum()

    expected = torch.zeros(2)
    for row in range(6):
        model.zero_grad()
        (model(inputs[row]) - targets[row]).square().sum().backward()
        expected += torch.stack([torch.cat([p.grad.flatten() for p in layer.parameters()]).norm() for layer in model])
    model.zero_grad()
    trace = trace_layers(model, [(inputs, targets)], [(inputs[:1], targets[:1])], loss=loss)
    torch.testing.assert_close(trace.probe_norms, expected / 6)
    alone = trace_layers(model, [inputs], [inputs], loss=lambda model, batch: model(batch).sum())
    assert alone.metadata["probe_examples"] == 6


def test_layers_may_be_chosen() -> None:
    model, data = tiny_models.llama(), tiny_models.examples(1)
    sublayers = trace_layers(model, data, data)
    blocks = trace_layers(model, data, data, layers="block")
    assert blocks.metadata["partition"] == "block"
    position = {layer: index for index, layer in enumerate(sublayers.layers)}
    parts = [position["model.layers.1.attention"], position["model.layers.1.mlp"]]
    expected = sublayers.probe_norms[parts].norm()
    torch.testing.assert_close(blocks.probe_norms[blocks.layers.index("model.layers.1")], expected)
    halves = trace_layers(model, data, data, layers=lambda name: "head" if "lm_head" in name else "body")
    assert halves.layers == ("body", "head")
    assert halves.metadata["partition"] == "custom"


def test_a_part_that_gets_no_gradient_counts_as_zero() -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 1), "unused": nn.Linear(2, 1)})
    data = [torch.ones(1, 2)]
    trace = trace_layers(model, data, data, loss=lambda model, batch: model["used"](batch).sum())
    assert trace.layers == ("used", "unused")
    assert trace.probe_norms[1] == 0
    assert trace.relative_norms.tolist() == [1, 1]


def test_half_precision_is_measured_and_averaged_in_float32() -> None:
    model = tiny_models.llama().to(torch.bfloat16)
    data = tiny_models.examples(40, length=4)
    assert_close(trace_layers(model, data, data[:1], batch_size=1).probe_norms, mean_of_norms(model, data))
    assert_close(trace_layers(model, data, data[:1], average="gradients").probe_norms, norm_of_mean(model, data))


def test_a_sparse_embedding_is_measured() -> None:
    dense, sparse = nn.Embedding(9, 4), nn.Embedding(9, 4, sparse=True)
    sparse.load_state_dict(dense.state_dict())
    data = [torch.tensor([[1, 1, 2]]), torch.tensor([[3, 1, 1]])]
    for average in ("norms", "gradients"):
        norms = [
            trace_layers(m, data, data, loss=lambda m, b: m(b).square().sum(), average=average).probe_norms
            for m in (dense, sparse)
        ]
        torch.testing.assert_close(*norms)


def test_the_metadata_say_what_was_measured() -> None:
    model, data = tiny_models.llama(), tiny_models.examples(2)
    model.config._name_or_path = "someone/tiny"
    metadata = trace_layers(model, data, data[:1]).metadata
    assert metadata["model"] == "someone/tiny"
    assert metadata["dtype"] == "float32"
    assert (metadata["partition"], metadata["score"], metadata["average"]) == ("sublayer", "norms", "norms")
    by_gains = trace_layers(model, data, data, score="gains").metadata
    assert by_gains["score"] == "gains"
    assert "average" not in by_gains
    assert (metadata["probe_examples"], metadata["reference_examples"]) == (2, 1)
    assert metadata["torch"] == torch.__version__


def test_progress_goes_to_standard_error_with_the_number_of_examples(capfd: pytest.CaptureFixture[str]) -> None:
    data = tiny_models.examples(3)
    trace_layers(tiny_models.llama(), data, iter(data), progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "3/3" in err
    trace_layers(tiny_models.llama(), data, data)
    assert capfd.readouterr() == ("", "")


GOOD = {"input_ids": [1, 2, 3], "labels": [1, 2, 3]}


@pytest.mark.parametrize(
    ("probe", "reference", "message"),
    [
        ([], [GOOD], "the probe is empty"),
        ([GOOD], iter([]), "the reference is empty"),
        ([GOOD], [torch.zeros(0, 3)], "the reference holds no example"),
        ([GOOD, {"input_ids": [1, 2]}], [GOOD], r"example 1 \(from 0\) of the probe: .* no loss; give .*labels"),
        ([GOOD], [{**GOOD, "labels": [-100] * 3}], r"example 0 \(from 0\) of the reference: no token is labeled"),
        (
            [GOOD, {**GOOD, "labels": [5, -100, -100]}],
            [GOOD],
            r"example 1 \(from 0\) of the probe: no token is labeled",
        ),
        (GOOD, [GOOD], "item 0 .from 0. of the probe is a str"),
    ],
)
def test_unusable_data_is_named(probe: Any, reference: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        trace_layers(tiny_models.llama(1), probe, reference)


def test_an_empty_reference_is_noticed_before_the_probe_is_traced() -> None:
    model, calls = tiny_models.llama(1), []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(InputError):
        trace_layers(model, [GOOD], [])
    assert calls == []


def test_a_gradient_that_is_not_finite_is_named_with_its_example_and_layer() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    good, bad = torch.ones(1, 1), torch.zeros(1, 1)  # the square root has no slope at 0
    with pytest.raises(InputError, match=r"example 1 \(from 0\) of the probe: the gradient of 0, 1 is not finite"):
        trace_layers(model, [good, bad], [good], loss=lambda model, batch: model(batch).abs().sqrt().sum())


def test_a_loss_that_is_no_scalar_or_infinite_or_constant_is_refused() -> None:
    model, data = nn.Linear(2, 2), [torch.ones(1, 2)]
    with pytest.raises(InputError, match=r"has to be a scalar tensor, not of shape \(1, 2\)"):
        trace_layers(model, data, data, loss=lambda model, batch: model(batch))
    with pytest.raises(InputError, match="not of type float"):
        trace_layers(model, data, data, loss=lambda model, batch: 1.0)  # type: ignore[arg-type,return-value]
    with pytest.raises(InputError, match="the loss is nan"):
        trace_layers(model, data, data, loss=lambda model, batch: model(batch).sum() * float("nan"))
    with pytest.raises(InputError, match="does not depend on any parameter"):
        trace_layers(model, data, data, loss=lambda model, batch: batch.sum())


def test_wrong_arguments_are_refused() -> None:
    model, data = tiny_models.llama(1), [GOOD]
    with pytest.raises(ValueError, match="average must be 'norms' or 'gradients', not 'mean'"):
        trace_layers(model, data, data, average="mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="score must be 'norms' or 'gains', not 'norm'"):
        trace_layers(model, data, data, score="norm")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="average='gradients' is a way to average norms"):
        trace_layers(model, data, data, score="gains", average="gradients")
    once = iter(data)
    with pytest.raises(ValueError, match="the same iterator"):
        trace_layers(model, once, once)
    with pytest.raises(ValueError, match="no parameter of the model requires a gradient"):
        trace_layers(model.requires_grad_(False), data, data)


def test_a_trace_survives_a_trip_through_a_file(tmp_path: Any) -> None:
    data = tiny_models.examples(2)
    trace = trace_layers(tiny_models.llama(), data, data[:1])
    trace.save(tmp_path / "trace.safetensors")
    loaded = LayerTrace.load(tmp_path / "trace.safetensors")
    assert loaded.layers == trace.layers
    assert loaded.metadata == trace.metadata
    assert torch.equal(loaded.relative_norms, trace.relative_norms)


def test_single_matrices_are_traced_chosen_drawn_and_exported(tmp_path: Any) -> None:
    model, data = tiny_models.llama(), tiny_models.examples(3)
    trace = trace_layers(model, data, data[:2], layers="matrix")
    assert trace.metadata["partition"] == "matrix"
    by_parameter = trace_layers(model, data, data[:2], layers="parameter")
    for matrix in ("model.layers.1.mlp.up_proj", "model.layers.0.self_attn.k_proj", "lm_head"):
        alone = by_parameter.probe_norms[by_parameter.layers.index(f"{matrix}.weight")]
        torch.testing.assert_close(trace.probe_norms[trace.layers.index(matrix)], alone)
    rows = {label.get_text() for label in trace.plot(tmp_path / "trace.png").axes[0].get_yticklabels()}
    assert {"self_attn.q_proj", "attention", "mlp.up_proj", "mlp.down_proj", "mlp"} <= rows
    chosen = {layer for layer, scale in trace.frozen_parameters().scales.items() if scale}
    exported = trace.export(tmp_path / "train.yaml", model)["unfrozen_parameters"]
    trained = trace.freeze(model)
    assert exported == [f"^{name}$" for name in trained]
    assert set(trained) == {name for name, layer in partition(names_of(model), "matrix").items() if layer in chosen}


def names_of(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]
