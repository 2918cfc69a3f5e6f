"""The Trainer makes a localized optimizer from its own arguments, logs what it did, and resumes bit for bit."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.image
import pytest
import torch
from torch.optim import AdamW
from transformers import Trainer, TrainerCallback, TrainingArguments

from localopt import AboveMean, Fixed, LocalizedOptimizer, RandomLayers, Smoothed, partition
from localopt.integrations.transformers import LocalizationCallback, Localize, localize, localized_optimizer
from tests.laws import assert_same_bits
from tests.tiny_models import VOCABULARY, llama

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory"),
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated"),  # the name older versions know
]
ABOVE_MEAN = AboveMean()
MAKERS = {
    "AboveMean": AboveMean,
    "Smoothed": lambda: Smoothed(AboveMean(), 0.9),
    "RandomLayers": lambda: RandomLayers(2, every=1),
    "unasked": lambda: None,
}


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    defaults: dict[str, Any] = {
        "max_steps": 4,
        "save_steps": 2,
        "logging_steps": 2,
        "learning_rate": 0.01,
        "per_device_train_batch_size": 2,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return TrainingArguments(str(folder), **(defaults | options))


def tokens(rows: int = 16) -> list[dict[str, torch.Tensor]]:
    drawn = torch.randint(VOCABULARY, (rows, 6), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": row} for row in drawn]


def trainer(args: TrainingArguments, *, seed: int = 0, policy: Any = ABOVE_MEAN, **options: Any) -> Trainer:
    """A Trainer with the factory, unless told otherwise."""
    torch.manual_seed(seed)
    model = llama()
    if "optimizers" in options:
        options["optimizers"] = (options["optimizers"](model), None)
    else:
        options["optimizer_cls_and_kwargs"] = localized_optimizer(args, policy)
    return Trainer(model, args, train_dataset=tokens(), **options)


def localized(run: Trainer) -> LocalizedOptimizer:
    optimizer = run.optimizer.optimizer
    assert isinstance(optimizer, LocalizedOptimizer)
    return optimizer


# -- the factory ------------------------------------------------------------------------------------------------------


def test_the_factory_wraps_the_optimizer_trainer_would_have_made(tmp_path: Path) -> None:
    args = arguments(tmp_path, learning_rate=3e-3, weight_decay=0.2, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-6)
    made = trainer(args).create_optimizer()
    bare = Trainer(llama(), args, train_dataset=tokens()).create_optimizer()
    assert isinstance(made, LocalizedOptimizer)
    assert type(made.inner) is type(bare) is AdamW
    assert made.defaults == bare.defaults
    for mine, theirs in zip(made.param_groups, bare.param_groups, strict=True):
        assert [p.shape for p in mine.pop("params")] == [p.shape for p in theirs.pop("params")]
        assert mine == theirs
    assert [group["weight_decay"] for group in made.param_groups] == [0.2, 0.0]


def test_the_factory_follows_the_optimizer_the_arguments_name(tmp_path: Path) -> None:
    made = trainer(arguments(tmp_path, optim="sgd")).create_optimizer()
    assert type(made.inner) is torch.optim.SGD  # type: ignore[attr-defined]


def test_the_factory_and_a_hand_made_optimizer_train_the_same(tmp_path: Path) -> None:
    def by_hand(model: Any) -> LocalizedOptimizer:
        return LocalizedOptimizer(AdamW(model.parameters(), lr=0.01, weight_decay=0.0, fused=True), model, AboveMean())

    runs = [trainer(arguments(tmp_path)), trainer(arguments(tmp_path), optimizers=by_hand)]
    for run in runs:
        run.train()
    assert_same_bits(runs[0].model, runs[1].model, "factory against optimizers=")
    assert localized(runs[0]).report() == localized(runs[1]).report()
    assert localized(runs[0]).report().share_updated < 1


def test_one_policy_given_to_two_runs_serves_each_from_its_start(tmp_path: Path) -> None:
    args, policy = arguments(tmp_path), Smoothed(AboveMean(), 0.9)
    first, second = trainer(args, policy=policy), trainer(args, policy=policy)
    first.train()
    second.train()
    assert_same_bits(first.model, second.model, "the second run")
    assert localized(first).state_dict()["param_groups"] == localized(second).state_dict()["param_groups"]


@pytest.mark.parametrize("policy", MAKERS)
def test_a_run_through_the_factory_resumes_bit_for_bit(policy: str, tmp_path: Path) -> None:
    whole = trainer(arguments(tmp_path), policy=MAKERS[policy]())
    whole.train()
    resumed = trainer(arguments(tmp_path), seed=1, policy=MAKERS[policy]())
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 4
    assert_same_bits(resumed.model, whole.model, policy)
    mine, theirs = localized(resumed).state_dict(), localized(whole).state_dict()
    torch.testing.assert_close(mine["state"], theirs["state"], rtol=0, atol=0)
    assert mine["param_groups"] == theirs["param_groups"]


# -- what a Trainer does to gradients ---------------------------------------------------------------------------------


def test_accumulated_gradients_are_one_step_of_the_policy(tmp_path: Path) -> None:
    policy = RandomLayers(2, every=1)
    args = arguments(tmp_path, gradient_accumulation_steps=2, max_steps=3)
    run = trainer(args, policy=policy)
    run.train()
    assert localized(run).policy.state_dict()["steps"].item() == 3  # type: ignore[attr-defined]


def test_gradient_checkpointing_trains_the_same(tmp_path: Path) -> None:
    plain, checkpointed = trainer(arguments(tmp_path)), trainer(arguments(tmp_path, gradient_checkpointing=True))
    plain.train()
    checkpointed.train()
    assert checkpointed.model.model.layers[0].gradient_checkpointing
    assert_same_bits(checkpointed.model, plain.model, "gradient checkpointing")


def test_a_compiled_model_trains_as_the_model_does(tmp_path: Path) -> None:
    plain = trainer(arguments(tmp_path, max_steps=2))
    compiled = trainer(arguments(tmp_path, torch_compile=True, torch_compile_backend="eager", max_steps=2))
    plain.train()
    compiled.train()
    assert localized(compiled).report().names == localized(plain).report().names
    for a, b in zip(compiled.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# -- the callback -----------------------------------------------------------------------------------------------------


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard reads from the event files below a folder."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    [file] = folder.rglob("events.out.tfevents*")
    events = accumulator.EventAccumulator(str(file))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_norms_and_scales_reach_tensorboard_at_the_logging_interval(tmp_path: Path) -> None:
    run = trainer(arguments(tmp_path, report_to="tensorboard"))
    run.add_callback(LocalizationCallback(run))
    run.train()
    logged, report = scalars(tmp_path), localized(run).report()
    for i, name in enumerate(report.names):
        for kind, values in (("gradient_norm", report.norms), ("scale", report.scales)):
            assert [step for step, _ in logged[f"train/{kind}/{name}"]] == [2, 4]
            assert values is not None
            assert logged[f"train/{kind}/{name}"][-1][1] == pytest.approx(values[i])
    assert logged["train/share_updated"][-1] == (4, pytest.approx(report.share_updated))
    assert logged["train/updated_layers"][-1] == (4, len(report.updated))
    assert logged["train/skipped_steps"] == [(2, 0), (4, 0)]


def test_the_picture_of_the_run_reaches_tensorboard_with_every_checkpoint_and_at_the_end(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = trainer(arguments(tmp_path, report_to="tensorboard", max_steps=5))
    mine: dict[str, Any] = {}

    class Asked(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            mine["history"] = localized(run).history(every=2)

    run.add_callback(Asked())
    run.add_callback(LocalizationCallback(run))
    run.train()
    assert mine["history"].steps == [1, 3, 5]  # whoever asked first keeps what is noted
    [file] = tmp_path.rglob("events.out.tfevents*")
    events = accumulator.EventAccumulator(str(file), size_guidance={"images": 0})
    events.Reload()
    images = events.Images("localopt/layers")
    assert [image.step for image in images][:2] == [2, 4]
    assert images[-1].step == 5
    drawn = matplotlib.image.imread(io.BytesIO(images[-1].encoded_image_string))
    assert drawn.shape[:2] == (images[-1].height, images[-1].width)
    assert drawn.std() > 0


def test_the_history_and_the_console_get_one_short_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trainer(arguments(tmp_path))
    run.add_callback(LocalizationCallback(run))
    run.train()
    ours = [entry for entry in run.state.log_history if "share_updated" in entry]
    assert [entry["step"] for entry in ours] == [2, 4]
    assert capsys.readouterr().out.count("share_updated") == 2
    assert not any("/" in key for entry in run.state.log_history for key in entry)


def test_a_policy_that_needs_no_norms_logs_its_scales(tmp_path: Path) -> None:
    layers = dict.fromkeys(partition(name for name, _ in llama().named_parameters()).values())
    fixed = Fixed({name: float(i % 2) for i, name in enumerate(layers)})
    run = trainer(arguments(tmp_path, report_to="tensorboard"), policy=fixed)
    run.add_callback(LocalizationCallback(run))
    run.train()
    logged = scalars(tmp_path)
    assert [logged[f"train/scale/{name}"][-1][1] for name in layers] == [float(i % 2) for i in range(len(layers))]
    assert not any("gradient_norm" in tag for tag in logged)


def test_clipping_by_trainer_and_by_the_optimizer_is_refused_before_the_first_step(tmp_path: Path) -> None:
    def clipping(model: Any) -> LocalizedOptimizer:
        return LocalizedOptimizer(AdamW(model.parameters(), lr=0.01), model, max_grad_norm=0.5)

    both = trainer(arguments(tmp_path, max_grad_norm=2.0), optimizers=clipping)
    both.add_callback(LocalizationCallback(both))
    with pytest.raises(ValueError, match=r"twice: by Trainer to 2\.0 .* by the optimizer to 0\.5"):
        both.train()
    assert both.state.global_step == 0
    one = trainer(arguments(tmp_path, max_grad_norm=0), optimizers=clipping)
    one.add_callback(LocalizationCallback(one))
    one.train()
    assert one.state.global_step == 4


def test_a_bare_optimizer_is_told_how_to_be_localized(tmp_path: Path) -> None:
    run = trainer(arguments(tmp_path), optimizers=lambda model: AdamW(model.parameters()))
    run.add_callback(LocalizationCallback(run))
    with pytest.raises(TypeError, match="optimizer is AdamW: pass"):
        run.train()


# -- any trainer, by one call -----------------------------------------------------------------------------------------


class TwoRates(Trainer):
    """Makes an optimizer of its own and ignores what it was given."""

    def create_optimizer(self, *_: Any, **__: Any) -> Any:
        if self.optimizer is None:
            head = [p for name, p in self.model.named_parameters() if "lm_head" in name]
            rest = [p for name, p in self.model.named_parameters() if "lm_head" not in name]
            self.optimizer = AdamW([{"params": head, "lr": 1e-3}, {"params": rest, "lr": 1e-2}])
        return self.optimizer


def two_rates(folder: Path, seed: int = 0, **options: Any) -> TwoRates:
    torch.manual_seed(seed)
    return TwoRates(llama(), arguments(folder, **options), train_dataset=tokens())


def test_a_trainer_with_an_optimizer_of_its_own_is_localized_by_one_call(tmp_path: Path) -> None:
    run = two_rates(tmp_path)
    localize(run, RandomLayers(2, every=1))
    run.train()
    assert len(localized(run).report().updated) == 2
    assert len(localized(run).param_groups) == 2
    assert [entry["updated_layers"] for entry in run.state.log_history if "updated_layers" in entry] == [2, 2]
    run.train()  # goes on with what was made
    assert len(localized(run).report().updated) == 2


def test_a_trainer_that_takes_callbacks_alone_is_localized_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    run = Trainer(llama(), arguments(tmp_path), train_dataset=tokens(), callbacks=[Localize(anchor_decay=50.0)])
    run.train()
    assert localized(run).report().updated
    assert "anchor" in repr(localized(run)).lower()


@pytest.mark.parametrize("policy", MAKERS)
def test_a_run_localized_by_one_call_resumes_bit_for_bit(policy: str, tmp_path: Path) -> None:
    runs = []
    for seed, options in ((0, {}), (1, {"resume_from_checkpoint": str(tmp_path / "checkpoint-2")})):
        run = two_rates(tmp_path, seed)
        localize(run, MAKERS[policy](), **({} if policy == "unasked" else {"anchor_decay": 50.0}))
        run.train(**options)
        runs.append(run)
    assert_same_bits(runs[1].model, runs[0].model, policy)


def test_a_scheduler_goes_on_with_the_localized_optimizer(tmp_path: Path) -> None:
    run = two_rates(tmp_path, lr_scheduler_type="linear")
    localize(run)
    run.train()
    assert [group["lr"] for group in localized(run).param_groups] == [0.0, 0.0]


def test_clipping_by_both_sides_is_refused_by_the_one_call_too(tmp_path: Path) -> None:
    run = two_rates(tmp_path, max_grad_norm=2.0)
    localize(run, max_grad_norm=0.5)
    with pytest.raises(ValueError, match=r"twice: by Trainer to 2\.0"):
        run.train()


def test_what_is_no_trainer_is_refused() -> None:
    with pytest.raises(TypeError, match="takes a transformers Trainer, not Sequential"):
        localize(torch.nn.Sequential())  # type: ignore[arg-type]


def test_the_class_and_options_in_place_of_a_factory_say_what_to_pass(tmp_path: Path) -> None:
    run = Trainer(
        llama(),
        arguments(tmp_path),
        train_dataset=tokens(),
        optimizer_cls_and_kwargs=(LocalizedOptimizer, {"policy": AboveMean()}),
    )
    with pytest.raises(TypeError, match=r"pass localopt\.integrations\.transformers\.localized_optimizer\(args\)"):
        run.train()


# -- DeepSpeed --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("form", ["file", "dictionary", "config object"])
def test_zero_is_refused_as_soon_as_the_arguments_are_seen(form: str, stage: int, tmp_path: Path) -> None:
    config: Any = {"zero_optimization": {"stage": stage}}
    args = SimpleNamespace(deepspeed=config, hf_deepspeed_config=None)
    if form == "file":
        args.deepspeed = str(tmp_path / "zero.json")
        (tmp_path / "zero.json").write_text(json.dumps(config))
    elif form == "config object":
        args.hf_deepspeed_config = SimpleNamespace(config=config)
    with pytest.raises(ValueError, match=rf"ZeRO stage {stage}.*LayerTrace\.freeze.*param_groups"):
        localized_optimizer(args)  # type: ignore[arg-type]


def test_stage_zero_is_let_through() -> None:
    args = SimpleNamespace(deepspeed={"zero_optimization": {"stage": 0}}, hf_deepspeed_config=None)
    assert localized_optimizer(args)[1]["args"] is args  # type: ignore[arg-type]


def test_a_factory_called_with_the_arguments_makes_the_same_optimizer(tmp_path: Path) -> None:
    args = arguments(tmp_path, learning_rate=3e-3)
    factory, options = localized_optimizer(args, RandomLayers(2, every=1))
    model = llama()
    assert repr(factory()(model, args, **options)) == repr(factory()(model, **options))
