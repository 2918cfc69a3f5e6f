"""Several processes choose the same layers and train the same model as one: DDP, FSDP2, tensor parallelism."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD

from localopt import AboveMean, AnchorDecay, LocalizedOptimizer
from localopt.policies import Proportional
from tests.distributed import worker
from tests.distributed.launch import succeed, torchrun

# Everything that runs on so many processes runs under one torchrun: starting it takes longer than the cases.
CASES = {
    2: "ddp ddp_broadcast ddp_nan ddp_toggled fsdp2 fsdp2_foreach fsdp2_rescaled fsdp2_track fsdp2_on_kernels "
    "ddp_selective fsdp2_selective ddp_unasked fsdp2_unasked fsdp2_plain fsdp2_cautious_on_kernels "
    "fsdp2_sgd fsdp2_ignored swapped tensor_parallel sequence_parallel fsdp1 rebuilt trace trace_by_gains "
    "trace_bad_example save",
    4: "ddp fsdp2 fsdp2_empty hsdp two_dimensions resume",
    3: "trace trace_by_gains",
}
pytestmark = pytest.mark.timeout(600)  # on a slow machine the first test waits long for the processes
Results = dict[tuple[str, int], dict[str, Any]]
# Rounding, which differs from processor to processor: bare AdamW in one process, given a batch in two halves, ended
# 1.4e-6 from where it ends given the whole, and 5e-6 from where it ends in float64. A step moves a weight by 1e-2.
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    out = tmp_path_factory.mktemp("distributed")
    for processes, cases in CASES.items():
        succeed("tests.distributed.worker", processes, cases.replace(" ", ","), out, timeout=280)
    return {
        (case, processes): torch.load(out / f"{case}-{processes}.pt", weights_only=False)
        for processes, cases in CASES.items()
        for case in cases.split()
    }


def one_process(case: str) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """The same training in this process."""
    network = worker.model()
    if case == "fsdp2_sgd":
        inner = SGD(network.parameters(), lr=0.1, momentum=0.9, foreach=True)
        optimizer = LocalizedOptimizer(inner, network, AboveMean(), max_grad_norm=0.5)
    else:
        start = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
        options: dict[str, Any] = {
            "fsdp2_rescaled": {"policy": Proportional("mean")},
            "fsdp2_track": {"frozen_state": "track"},
            "ddp_selective": {"anchor_decay": AnchorDecay(1.0, rule="selective")},
            "fsdp2_selective": {"anchor_decay": AnchorDecay(1.0, rule="selective")},
            "ddp_unasked": {"policy": None},
            "fsdp2_unasked": {"policy": None},
            "fsdp2_plain": {"anchor_decay": AnchorDecay(5.0, start=start)},
            "fsdp2_cautious_on_kernels": {"anchor_decay": AnchorDecay(20.0, rule="cautious")},
        }.get(case, {})
        optimizer = worker.localized(network, **options)
    reports = worker.train(network, optimizer, range(worker.STEPS))
    return worker.weights(network), reports


WHOLE = [
    *(("ddp", count) for count in (2, 4)),
    *(("fsdp2", count) for count in (2, 4)),
    *((case, 2) for case in ("fsdp2_foreach", "fsdp2_rescaled", "fsdp2_track", "fsdp2_on_kernels", "fsdp2_sgd")),
    *((case, 2) for case in ("fsdp2_ignored", "swapped", "tensor_parallel")),
    *((case, 2) for case in ("ddp_selective", "fsdp2_selective", "ddp_unasked", "fsdp2_unasked")),
    *((case, 2) for case in ("fsdp2_plain", "fsdp2_cautious_on_kernels")),
    *((case, 4) for case in ("hsdp", "two_dimensions")),
]
each_way = pytest.mark.parametrize(("case", "processes"), WHOLE, ids=lambda value: str(value))


@each_way
def test_processes_train_the_model_that_one_process_trains(case: str, processes: int, results: Results) -> None:
    found = results[case, processes]
    weights, reports = one_process(case)
    assert found["weights"].keys() == weights.keys()
    for name, expected in weights.items():
        torch.testing.assert_close(found["weights"][name], expected, **ROUNDING)
    for mine, theirs in zip(found["reports"], reports, strict=True):
        assert mine["norms"] == pytest.approx(theirs["norms"], rel=1e-5)
        assert mine["scales"] == pytest.approx(theirs["scales"], rel=1e-5)
        assert mine["share"] == theirs["share"]
    assert any(0 in report["scales"] for report in reports) or case in (
        "fsdp2_rescaled",
        "ddp_unasked",
        "fsdp2_unasked",
    )


@each_way
def test_every_process_ends_with_the_same_bits(case: str, processes: int, results: Results) -> None:
    assert results[case, processes]["same"]


@each_way
def test_a_step_sums_one_number_a_layer_once_if_sharded_and_nothing_under_ddp(
    case: str, processes: int, results: Results
) -> None:
    layers = len(results[case, processes]["reports"][0]["norms"])
    ours = [size for size in results[case, processes]["collectives"] if size == layers]
    assert len(ours) == (0 if case.startswith("ddp") else worker.STEPS)
    # The selective decay: drift and pullback in the same sum as the norms; how far the step went, afterwards.
    together = [size for size in results[case, processes]["collectives"] if size == 3 * layers]
    assert len(together) == (worker.STEPS if case in ("fsdp2_selective", "fsdp2_unasked") else 0)


def test_on_unlike_hardware_broadcast_norms_makes_all_processes_choose_alike(results: Results) -> None:
    assert results["ddp_broadcast", 2]["same"]


def test_a_nan_on_one_process_makes_all_of_them_skip_the_step(results: Results) -> None:
    assert results["ddp_nan", 2] == {"unchanged": True, "skipped": 1, "same": True}


def test_requires_grad_changed_under_ddp_is_refused_before_processes_drift_apart(results: Results) -> None:
    assert results["ddp_toggled", 2]["unchanged"]
    assert "model.embed_tokens.weight" in results["ddp_toggled", 2]["message"]
    assert "Freeze first" in results["ddp_toggled", 2]["message"]


def test_a_process_may_hold_nothing_of_a_layer(results: Results) -> None:
    found = results["fsdp2_empty", 4]
    assert found["empty"] > 0
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    optimizer = LocalizedOptimizer(torch.optim.AdamW(network.parameters(), fused=True), network, max_grad_norm=1.0)
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        optimizer.zero_grad()
        network(inputs).square().mean().backward()
        optimizer.step()
    assert found["norms"] == pytest.approx(optimizer.report().norms, rel=1e-5)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(found["weights"][name], parameter.detach(), rtol=1e-5, atol=1e-6)


def test_gradients_that_are_summands_are_added_before_their_norm_is_taken(results: Results) -> None:
    found = results["sequence_parallel", 2]
    assert found["partial"]
    assert found["found"] == pytest.approx(found["expected"], rel=1e-5)


def test_fsdp1_is_refused_and_fsdp2_named_instead(results: Results) -> None:
    assert len(results["fsdp1", 2]["messages"]) == 2  # with flat and with original parameters
    assert all("FSDP1" in message and "fully_shard" in message for message in results["fsdp1", 2]["messages"])


def test_a_model_sharded_after_the_optimizer_was_made_is_noticed(results: Results) -> None:
    assert "rebuilt or sharded after the optimizer was made" in results["rebuilt", 2]["message"]


def test_a_sharded_checkpoint_goes_on_in_another_number_of_processes(results: Results) -> None:
    saved, resumed = results["save", 2]["weights"], results["resume", 4]["weights"]
    for name, expected in saved.items():
        torch.testing.assert_close(resumed[name], expected, rtol=1e-5, atol=1e-6)


def test_a_killed_process_is_an_error_for_the_others_and_no_hang(tmp_path: Path) -> None:
    done = torchrun("tests.distributed.worker", 2, "killed", tmp_path, timeout=100)
    assert done.returncode != 0
    assert "Signal 9 (SIGKILL)" in done.stderr


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_examples_of_a_trace(processes: int, results: Results) -> None:
    found = results["trace", processes]
    assert found["same"]
    for name in ("probe_norms", "reference_norms"):
        torch.testing.assert_close(getattr(found["found"], name), getattr(found["alone"], name), rtol=1e-5, atol=0)
    assert found["found"].metadata["probe_examples"] == 7


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_a_trace_by_gains_and_the_text_it_is_against(processes: int, results: Results) -> None:
    found = results["trace_by_gains", processes]
    assert found["same"]
    assert len(found["written"]) == 5
    assert all(map(torch.equal, found["written"], found["by_one"]))
    for name in ("probe_norms", "reference_norms"):
        torch.testing.assert_close(getattr(found["found"], name), getattr(found["alone"], name), rtol=1e-5, atol=0)
    assert found["found"].metadata["probe_examples"] == 2
    assert found["found"].metadata["reference_examples"] == 5


def test_a_bad_example_is_named_by_every_process(results: Results) -> None:
    messages = results["trace_bad_example", 2]["messages"]
    assert len(set(messages)) == 1
    assert "example 3" in messages[0]
