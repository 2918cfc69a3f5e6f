"""Batched measuring gives the loop's norms, or says why it does not try."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import CausalLMOutput

from localopt.errors import InputError
from localopt.tracing.ghost import rules
from localopt.tracing.ghost.batch import losses
from localopt.tracing.trace import LayerTrace, trace_layers
from tests import tiny_models

SMALL = {
    "vocab_size": tiny_models.VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def causal(name: str, **changes: Any) -> nn.Module:
    """The causal language model that goes with a config class of transformers."""
    config = getattr(transformers, f"{name}Config")(**(SMALL | changes))
    return wild(transformers.AutoModelForCausalLM.from_config(config))


def wild(model: nn.Module) -> nn.Module:
    """Weights far from their initial values: biases and norms that matter, and gradients of every size."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


BATCHED: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: causal("Llama"),
    "llama, tied": lambda: causal("Llama", tie_word_embeddings=True),
    "llama, biases": lambda: causal("Llama", attention_bias=True, mlp_bias=True),
    "lora": lambda: wild(tiny_models.lora()),
    "gpt2, tied": lambda: wild(tiny_models.gpt2()),
    "gpt2, untied": lambda: causal("GPT2", n_embd=16, n_layer=2, n_head=2, tie_word_embeddings=False),
    "gpt neox": lambda: causal("GPTNeoX"),
    "opt": lambda: causal("OPT", ffn_dim=24, word_embed_proj_dim=16),
    "opt, projected": lambda: causal("OPT", ffn_dim=24, word_embed_proj_dim=8),
    "qwen2": lambda: causal("Qwen2"),
    "qwen3": lambda: causal("Qwen3", head_dim=8),
    "gemma2": lambda: causal("Gemma2", head_dim=8, sliding_window=4),
    "gemma3": lambda: causal("Gemma3Text", head_dim=8, sliding_window=4),
    "olmo2": lambda: causal("Olmo2"),
    "phi3": lambda: causal("Phi3"),
    "mistral": lambda: causal("Mistral", sliding_window=4, head_dim=8),
    "bloom": lambda: causal("Bloom", n_layer=2, n_head=2),
}
ONE_BY_ONE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "mamba": (
        lambda: causal("Mamba", state_size=4, time_step_rank=2),
        "backbone.layers.0.mixer.A_log is used by torch.exp, for which there is no rule",
    ),
    "mixtral": (
        lambda: causal("Mixtral", num_local_experts=2),
        "model.layers.0.mlp.experts.gate_up_proj is used by torch.Tensor.transpose, for which there is no rule",
    ),
    "t5": (tiny_models.t5, "the model is an encoder-decoder"),
}


def ragged(count: int = 7, longest: int = 12) -> list[dict[str, Tensor]]:
    """Examples of different lengths, the loss on a span of each, with tokens that come several times."""
    made = []
    for index in range(count):
        length = longest - 2 * (index % 4)
        tokens = torch.randint(5, (length,)) * 7 % tiny_models.VOCABULARY
        counted = (torch.arange(length) >= index % 3) & (torch.arange(length) < length - index % 2)
        made.append({"input_ids": tokens, "labels": torch.where(counted, tokens, -100)})
    return made


def assert_same_norms(together: LayerTrace, apart: LayerTrace, rtol: float = 1e-3) -> None:
    assert apart.metadata["method"] == "one by one: batch_size=1"
    for found, expected in zip(norms(together), norms(apart), strict=True):
        assert expected.count_nonzero() > 0
        # Some gradients are zero but for rounding: a bias of keys moves all scores of a query alike.
        torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol * 1e-3 * expected.max().item())


def norms(trace: LayerTrace) -> tuple[Tensor, Tensor]:
    return trace.probe_norms, trace.reference_norms


@pytest.mark.parametrize("build", BATCHED.values(), ids=BATCHED)
def test_every_parameter_has_the_norm_of_the_loop(build: Callable[[], nn.Module]) -> None:
    model, probe, reference = build(), ragged(), tiny_models.examples(3, length=10)
    apart = trace_layers(model, probe, reference, layers="parameter", batch_size=1)
    for size in (None, 3, 100):
        together = trace_layers(model, probe, reference, layers="parameter", batch_size=size)
        assert together.metadata["method"] == "batched"
        assert together.layers == apart.layers
        assert_same_norms(together, apart)


@pytest.mark.parametrize("build", BATCHED.values(), ids=BATCHED)
def test_every_parameter_has_the_gain_and_the_damage_of_the_loop(build: Callable[[], nn.Module]) -> None:
    # In double precision: the step is the sign of a gradient, and where that is zero but for rounding it is anything.
    model, probe, reference = build().double(), ragged(), tiny_models.examples(3, length=10)
    if type(model).__name__.startswith("Gemma2"):  # whose masks of padding are not made for double precision
        probe = tiny_models.examples(7)
    apart = trace_layers(model, probe, reference, score="gains", layers="parameter", batch_size=1)
    for size in (None, 3):
        together = trace_layers(model, probe, reference, score="gains", layers="parameter", batch_size=size)
        assert together.metadata["method"] == "batched"
        assert (together.metadata["probe_examples"], together.metadata["reference_examples"]) == (7, 3)
        assert_same_norms(together, apart, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gains_are_as_close_as_the_dtype_is_precise(dtype: torch.dtype) -> None:
    model, data = tiny_models.gpt2().to(dtype), ragged()
    together, apart = (trace_layers(model, data, data, score="gains", batch_size=size) for size in (None, 1))
    assert together.metadata["method"] == "batched"
    for found, expected in zip(norms(together), norms(apart), strict=True):
        torch.testing.assert_close(found, expected, rtol=0.1 if dtype == torch.bfloat16 else 0.01, atol=0)


@pytest.mark.parametrize("trained", [".mlp.", "layers.1.", "norm", "bias", "embed", "k_proj"])
def test_what_is_frozen_changes_no_other_gain(trained: str) -> None:
    model, data = causal("Llama", attention_bias=True, mlp_bias=True).double(), ragged()
    whole = trace_layers(model, data, data, score="gains", layers="parameter", batch_size=1)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained in name)
    part = trace_layers(model, data, data, score="gains", layers="parameter")
    assert part.metadata["method"] == "batched"
    where = [whole.layers.index(name) for name in part.layers]
    for found, expected in zip(norms(part), norms(whole), strict=True):
        torch.testing.assert_close(found, expected[where], rtol=1e-5, atol=1e-9 * expected.max().item())


@pytest.mark.parametrize(("build", "reason"), ONE_BY_ONE.values(), ids=ONE_BY_ONE)
def test_a_model_with_a_part_that_has_no_rule_is_measured_one_by_one(
    build: Callable[[], nn.Module], reason: str
) -> None:
    assert_one_by_one(build(), ragged(4), reason)


def assert_one_by_one(model: Any, data: list[Any], reason: str, **options: Any) -> None:
    """The reason is told, and the norms are the loop's."""
    trace = trace_layers(model, iter(data), data[:2], **options)
    assert trace.metadata["method"] == f"one by one: {reason}"
    assert trace.metadata["probe_examples"] == len(data)
    expected = trace_layers(model, data, data[:2], **options | {"batch_size": 1})
    torch.testing.assert_close(norms(trace), norms(expected), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "trained",
    [".mlp.", "layers.1.", "norm", "bias", "embed", "lm_head", "k_proj"],
)
def test_what_is_frozen_changes_no_other_norm(trained: str) -> None:
    model, data = causal("Llama", attention_bias=True, mlp_bias=True), ragged()
    whole = trace_layers(model, data, data, layers="parameter", batch_size=1)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained in name)
    part = trace_layers(model, data, data, layers="parameter")
    assert part.metadata["method"] == "batched"
    assert part.layers == tuple(name for name in whole.layers if trained in name)
    expected = whole.probe_norms[[whole.layers.index(name) for name in part.layers]]
    torch.testing.assert_close(part.probe_norms, expected, rtol=1e-3, atol=1e-6 * expected.max().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_every_dtype_is_as_close_as_it_is_precise(dtype: torch.dtype) -> None:
    model, data = tiny_models.gpt2().to(dtype), ragged()
    together = trace_layers(model, data, data)
    assert together.metadata["method"] == "batched"
    assert_same_norms(together, trace_layers(model, data, data, batch_size=1), rtol=max(torch.finfo(dtype).eps, 1e-6))


def test_a_model_may_run_in_mixed_precision() -> None:
    model, data = causal("Llama"), ragged()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        together, apart = (trace_layers(model, data, data, batch_size=size) for size in (None, 1))
    assert together.metadata["method"] == "batched"
    assert_same_norms(together, apart, rtol=torch.finfo(torch.bfloat16).eps)


def test_masks_of_the_examples_are_kept() -> None:
    model = causal("Llama")
    data = [{**example, "attention_mask": (torch.arange(len(example["labels"])) > 1).long()} for example in ragged()]
    data[2].pop("attention_mask")
    reference = ragged(3)
    together = trace_layers(model, data, reference)
    assert together.metadata["method"] == "batched"
    assert_same_norms(together, trace_layers(model, data, reference, batch_size=1))


class Coupled(transformers.LlamaForCausalLM):
    """Every row sees the others."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = self.model(*args, **{k: v for k, v in kwargs.items() if k != "labels"}).last_hidden_state
        logits = self.lm_head(hidden - hidden.mean(0, keepdim=True) / 2)
        labels = kwargs.get("labels")
        loss = None if labels is None else self.loss_function(logits, labels, tiny_models.VOCABULARY)
        return CausalLMOutput(loss=loss, logits=logits)


class Penalized(transformers.LlamaForCausalLM):
    """Its loss is more than that of the tokens."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        if output.loss is not None:
            output.loss = output.loss + output.logits.square().mean()
        return output


class Hidden(transformers.LlamaForCausalLM):
    """Uses its head where only the backward pass can see it."""

    class Head(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
            ctx.save_for_backward(hidden, weight)
            return torch.einsum("btd,vd->btv", hidden, weight.clone())

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
            hidden, weight = ctx.saved_tensors
            return gradient @ weight, torch.einsum("btv,btd->vd", gradient, hidden)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.lm_head.forward = lambda hidden: self.Head.apply(hidden, self.lm_head.weight)


class Segmented(transformers.LlamaForCausalLM):
    """Checkpoints its head, whatever the mode."""

    reentrant = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        plain = self.lm_head.forward
        self.lm_head.forward = lambda hidden: checkpoint(plain, hidden, use_reentrant=self.reentrant)


class Squared(transformers.LlamaForCausalLM):
    """A loss function of its own."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.loss_function = lambda logits, labels, vocab_size, **_: logits.square().mean()


def built(kind: type[transformers.LlamaForCausalLM]) -> Any:
    return wild(kind(transformers.LlamaConfig(**SMALL)))


def looped() -> Any:
    model: Any = causal("Llama")
    model.model.layers[1].mlp = model.model.layers[0].mlp
    return model


def hooked() -> Any:
    model: Any = causal("Llama")
    model.lm_head.weight.register_hook(lambda gradient: gradient * 2)
    return model


def compiled() -> Any:
    model: Any = causal("Llama")
    model.model.layers[0].compile(backend="eager")
    return model


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (
            looped,
            "model.layers.0.mlp.gate_proj.weight is used by torch.nn.functional.linear "
            "several times in one forward pass",
        ),
        (hooked, "hooks on the gradient of lm_head.weight have to see it"),
        (compiled, "the model is compiled"),
        (
            lambda: built(Hidden),
            "lm_head.weight is used by torch.Tensor.clone, for which there is no rule",
        ),
        (
            lambda: built(Segmented),
            "lm_head.weight is used where no gradient is recorded, as in gradient checkpointing",
        ),
        (lambda: built(Squared), "the model's loss is not the one of transformers' causal language models"),
    ],
    ids=["shared weights", "gradient hooks", "compiled", "own function", "checkpointing", "own loss"],
)
def test_a_model_that_is_out_of_the_ordinary_is_measured_one_by_one(build: Callable[[], Any], reason: str) -> None:
    assert_one_by_one(build(), ragged(4), reason)


@pytest.mark.parametrize("kind", [Coupled, Penalized])
def test_what_no_rule_foresees_is_noticed_for_gains_too(kind: type[Any]) -> None:
    model, data = built(kind), ragged(6)
    trace = trace_layers(model, data, data, score="gains", layers="parameter")
    assert "in a batch and" in trace.metadata["method"]
    expected = trace_layers(model, data, data, score="gains", layers="parameter", batch_size=1)
    assert all(map(torch.equal, norms(trace), norms(expected)))


def test_a_wrong_product_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = rules.along
    monkeypatch.setattr(rules, "along", lambda a, b, u: right(a, b, u) * 1.01)
    model, data = causal("Llama").double(), ragged(6)
    trace = trace_layers(model, data, data, score="gains")
    assert "moves by" in trace.metadata["method"]
    expected = trace_layers(model, data, data, score="gains", batch_size=1)
    torch.testing.assert_close(norms(trace), norms(expected), rtol=1e-6, atol=0)


def test_gains_of_examples_that_cannot_be_put_together_are_measured_one_by_one_from_there_on() -> None:
    model, data = causal("Llama").double(), ragged(9)
    data[5]["position_ids"] = torch.arange(len(data[5]["input_ids"])) + 3
    for probe, reference in ((data, data[:5]), (data[:5], data)):
        together = trace_layers(model, iter(probe), iter(reference), score="gains", batch_size=2)
        assert "position_ids" in together.metadata["method"]
        apart = trace_layers(model, probe, reference, score="gains", batch_size=1)
        torch.testing.assert_close(norms(together), norms(apart), rtol=1e-5, atol=0)
        assert together.metadata["probe_examples"] == len(probe)


def test_no_gradient_is_left_after_gains_in_batches() -> None:
    model, data = causal("Llama"), ragged(4)
    kept = torch.ones_like(model.lm_head.weight)
    model.lm_head.weight.grad = kept
    trace_layers(model, data, data, score="gains")
    assert model.lm_head.weight.grad is kept
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["lm_head.weight"]
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("of", ["probe", "reference"])
def test_a_gain_that_is_not_finite_is_named_with_its_example(of: str) -> None:
    model: Any = causal("Llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[60] = math.inf
    good, bad = ragged(3), [*ragged(2), {"input_ids": torch.tensor([1, 60]), "labels": torch.tensor([1, 2])}]
    with pytest.raises(InputError, match=rf"example 2 \(from 0\) of the {of}: "):
        trace_layers(model, bad if of == "probe" else good, bad if of == "reference" else good, score="gains")


@pytest.mark.parametrize("kind", [Coupled, Penalized])
def test_what_no_rule_foresees_is_noticed_on_the_first_batch(kind: type[Any]) -> None:
    model, data = built(kind), ragged(6)
    trace = trace_layers(model, data, data, layers="parameter")
    assert "in a batch and" in trace.metadata["method"]
    assert all(map(torch.equal, norms(trace), norms(trace_layers(model, data, data, layers="parameter", batch_size=1))))


def test_what_goes_wrong_only_with_padding_is_noticed_on_the_first_padded_batch() -> None:
    model: Any = causal("Llama")
    # Embeddings that know how long the row is: the same for all examples while nothing is padded.
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: output * output.shape[1])
    even, uneven = tiny_models.examples(3), ragged(4)
    assert trace_layers(model, even, even).metadata["method"] == "batched"
    together = trace_layers(model, even, uneven)
    assert "in a batch and" in together.metadata["method"]
    apart = trace_layers(model, even, uneven, batch_size=1)
    assert_same_norms(together, apart)


def test_a_batch_of_one_does_not_vouch_for_larger_ones() -> None:
    model, data = built(Coupled), ragged(4)
    assert trace_layers(model, data, data, batch_size=2).metadata["method"] != "batched"
    assert "in a batch and" in trace_layers(model, data[:1], data, batch_size=2).metadata["method"]


def test_examples_that_cannot_be_put_together_are_measured_one_by_one_from_there_on() -> None:
    model, data = causal("Llama"), ragged(9)
    data[5]["position_ids"] = torch.arange(len(data[5]["input_ids"])) + 3
    together = trace_layers(model, iter(data), iter(data), batch_size=2)
    reason = "examples also hold position_ids, and it is not known how to pad that"
    assert together.metadata["method"] == f"one by one: {reason}"
    assert (together.metadata["probe_examples"], together.metadata["reference_examples"]) == (9, 9)
    assert_same_norms(together, trace_layers(model, data, data, batch_size=1))


def test_a_batch_that_fails_is_measured_one_by_one() -> None:
    model: Any = causal("Llama")

    def crowded(module: nn.Module, args: Any, kwargs: Any) -> None:
        if kwargs["input_ids"].shape[0] > 1:
            raise torch.OutOfMemoryError("no room\nand a long story")

    model.register_forward_pre_hook(crowded, with_kwargs=True)
    assert_one_by_one(model, ragged(4), "the batch failed (no room)")


def test_other_losses_and_averages_are_measured_one_by_one() -> None:
    model, data = causal("Llama"), ragged(4)
    assert_one_by_one(
        model, data, "a loss of one's own may join the rows of a batch", loss=lambda model, batch: model(**batch).loss
    )
    reason = "average='gradients' needs the gradients themselves"
    trace = trace_layers(model, data, data, average="gradients")
    assert trace.metadata["method"] == f"one by one: {reason}"


def test_the_user_is_told_which_it_was(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    model, data = causal("Llama"), ragged(4)
    with caplog.at_level("INFO", logger="localopt.tracing.trace"):
        trace_layers(model, data, data, progress=True)
        trace_layers(model, data, data, progress=True, batch_size=1)
    assert caplog.messages == ["method: batched", "method: one by one: batch_size=1"]
    out, shown = capfd.readouterr()
    assert out == ""
    assert "method: batched" in shown
    assert "method: one by one: batch_size=1" in shown


@pytest.mark.parametrize("bad", [0, -1])
def test_a_batch_holds_at_least_one_example(bad: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size must be at least 1.*not {bad}"):
        trace_layers(causal("Llama"), ragged(1), ragged(1), batch_size=bad)


@pytest.mark.parametrize("size", [None, 1])
def test_an_unusable_example_inside_a_batch_is_named(size: int | None) -> None:
    model, data = causal("Llama"), ragged(5)
    data[3]["labels"] = torch.full_like(data[3]["labels"], -100)
    with pytest.raises(InputError, match=r"example 3 \(from 0\) of the probe: no token is labeled"):
        trace_layers(model, data, data[:1], batch_size=size)
    with torch.no_grad():
        model.get_input_embeddings().weight[60] = float("nan")
    data[3] = {"input_ids": torch.tensor([1, 60, 2]), "labels": torch.tensor([1, 60, 2])}
    with pytest.raises(InputError, match=r"example 3 \(from 0\) of the reference: the loss is nan"):
        trace_layers(model, data[:1], data, batch_size=size)


def test_one_batch_is_read_ahead() -> None:
    model, read, ahead = causal("Llama"), 0, []

    def generated() -> Iterator[dict[str, Tensor]]:
        nonlocal read
        for example in ragged(12):
            read += 1
            yield example

    done = 0

    def called(module: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal done
        ahead.append(read - done)
        if "labels" not in kwargs:
            done += len(kwargs["input_ids"])

    model.register_forward_pre_hook(called, with_kwargs=True)
    trace_layers(model, generated(), ragged(1), batch_size=4)
    assert done == 13
    assert max(ahead) == 5  # the batch, and the example that showed it was full


def test_no_gradient_of_a_parameter_is_computed_and_activations_are_let_go_of() -> None:
    model, alive, required = causal("Llama", num_hidden_layers=4), [], []
    inputs: list[weakref.ref[Tensor]] = []

    def arrived(gradient: Tensor) -> None:
        alive.append(sum(reference() is not None for reference in inputs))

    def embedded(module: nn.Module, args: Any, output: Tensor) -> None:
        inputs.clear()
        required.append(any(p.requires_grad for p in model.parameters()))
        output.register_hook(arrived)

    model.get_input_embeddings().register_forward_hook(embedded)
    for layer in model.model.layers:
        layer.mlp.down_proj.register_forward_pre_hook(lambda module, args: inputs.append(weakref.ref(args[0])))
    trace = trace_layers(model, ragged(), ragged())
    assert trace.metadata["method"] == "batched"
    assert required.count(True) == 1  # the loop that the first batch is compared with
    assert alive == [0] * 3
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_losses_and_their_gradients_are_those_of_the_model() -> None:
    model, (example,) = causal("Llama"), ragged(1)
    ids, labels = example["input_ids"][None], example["labels"][None]
    output = model(input_ids=ids, labels=labels)
    (expected,) = torch.autograd.grad(output.loss, output.logits, retain_graph=True)
    each, gradient = losses(torch.cat([output.logits] * 2), torch.cat([labels, torch.full_like(labels, -100)]))
    torch.testing.assert_close(each, torch.stack([output.loss, torch.tensor(float("nan"))]), equal_nan=True)
    torch.testing.assert_close(gradient[:1], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("positions", "into", "out"), [(2, 30, 20), (40, 6, 8), (3, 1, 1)])
def test_a_linear_map_is_measured_by_either_way(
    positions: int, into: int, out: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = torch.randn(5, positions, into, dtype=dtype), torch.randn(5, positions, out, dtype=dtype)
    expected = torch.einsum("bto,bti->boi", b.double(), a.double()).square().sum((1, 2))
    for chunk in (rules.CHUNK, into * out * 2, 1):
        monkeypatch.setattr(rules, "CHUNK", chunk)
        inputs = rules.Rows(a)
        inputs.readers = 1
        torch.testing.assert_close(rules.matrix(inputs, b).double(), expected, rtol=1e-5, atol=0)
        inputs.release()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("into", "out"), [(30, 20), (6, 80), (1, 1)])
def test_inner_products_are_those_with_the_gradients(
    into: int, out: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = torch.randn(5, 7, into, dtype=dtype), torch.randn(5, 7, out, dtype=dtype)
    direction = torch.randn(out, into, dtype=rules.wide(dtype)).sign()
    expected = torch.einsum("bto,bti,oi->b", b.double(), a.double(), direction.double())
    for chunk in (rules.CHUNK, 1):
        monkeypatch.setattr(rules, "CHUNK", chunk)
        torch.testing.assert_close(rules.along(a, b, direction).double(), expected, rtol=1e-5, atol=1e-4)


def test_positions_that_look_up_the_same_row_are_added_first() -> None:
    table, ids = torch.zeros(9, 3, requires_grad=True), torch.randint(9, (4, 12))
    gradients = torch.randn(4, 12, 3)
    for row, square in zip(range(4), rules.lookup(ids, gradients), strict=True):
        (found,) = torch.autograd.grad(F.embedding(ids[row], table), table, gradients[row])
        torch.testing.assert_close(square.float(), found.square().sum())
