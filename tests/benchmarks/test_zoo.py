"""Optimizers of other packages keep the laws, localized; which do stands in benchmarks/results/optimizer-zoo.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import zoo

FEW = {"pytorch_optimizer": ["Adan", "Lamb", "Lion", "Prodigy", "SOAP"], "schedulefree": ["AdamWScheduleFree"]}
# An older version of a package may lack one of them.
CASES = [(package, name) for package, names in FEW.items() for name in names]


def makers(package: str) -> dict[str, zoo.Make]:
    try:
        return dict(zoo.optimizers(package))
    except ImportError as error:
        pytest.skip(f"{package}: {error}")


@pytest.mark.parametrize(("package", "name"), CASES)
def test_an_optimizer_that_counts_in_its_groups_keeps_the_laws(package: str, name: str) -> None:
    found = makers(package)
    if name not in found:
        pytest.skip(f"this version of {package} has no {name}")
    verdict = zoo.judge(package, name, found[name])
    assert verdict.trains
    assert verdict.all_laws, verdict.said


def test_one_that_steps_through_another_is_named() -> None:
    found = makers("pytorch_optimizer")
    if "Magma" not in found:
        pytest.skip("this version of pytorch_optimizer has no Magma")
    verdict = zoo.judge("pytorch_optimizer", "Magma", found["Magma"])
    assert not verdict.all_laws
    assert "Magma steps through another optimizer (AdamW)" in verdict.said
    page = zoo.table([verdict])
    assert "| Magma (pytorch_optimizer) | no | no | no |" in page
    assert "Not run" not in page
    assert "\nNot run: timm (no torchvision).\n" in zoo.table([verdict], {"timm": "no torchvision"})


def test_an_optimizer_without_a_schedule_is_put_to_training_and_evaluation_through_the_wrapper() -> None:
    schedulefree = pytest.importorskip("schedulefree")
    from localopt import LocalizedOptimizer

    network = zoo.model()
    optimizer = LocalizedOptimizer(schedulefree.AdamWScheduleFree(network.parameters(), lr=0.1), network)
    optimizer.train()
    zoo.backward(network, 0)
    optimizer.step()
    trained = [parameter.detach().clone() for parameter in network.parameters()]
    optimizer.eval()
    assert not zoo.same(network, zoo.model())
    optimizer.train()
    for parameter, before in zip(network.parameters(), trained, strict=True):
        assert parameter.allclose(before, atol=1e-6)
    assert not hasattr(LocalizedOptimizer(zoo.torch.optim.SGD(network.parameters(), lr=0.1), network), "train")


@pytest.mark.slow
@pytest.mark.parametrize("package", ["pytorch_optimizer", "timm", "schedulefree"])
def test_nine_of_ten_that_train_bare_keep_all_laws(package: str, tmp_path: Path) -> None:
    verdicts = [zoo.judge(package, name, make) for name, make in makers(package).items()]
    trained = [verdict for verdict in verdicts if verdict.trains]
    assert len(trained) >= 3
    bad = [f"{verdict.name}: {verdict.said}" for verdict in trained if not verdict.all_laws]
    assert len(bad) <= 0.1 * len(trained), bad
