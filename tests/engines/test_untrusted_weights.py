"""Files of weights and lists of modules that hold code: nothing of it runs."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from serve_app.config import ModelConfig
from serve_app.engines.library_model import load_model
from serve_app.errors import ModelSourceError
from serve_app.models import resolve
from tests import tiny_models


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[[Path], Any], tuple[Path]]:
        return Path.touch, (self.file,)


def plain_pickle(value: Any, file: Path) -> None:
    file.write_bytes(pickle.dumps(value, protocol=2))  # torch.load warns of others


SAVERS: dict[str, Callable[[Any, Path], Any]] = {"pickle": plain_pickle, "torch": torch.save}


@pytest.fixture
def multi_vector(tmp_path: Path) -> tuple[ModelConfig, Path]:
    """Returns a model of a transformer and a dense layer, and its folder."""
    return tiny_models.multi_vector(tmp_path), tmp_path / "model"


@pytest.mark.parametrize("folder", ["", "1_Dense"])
@pytest.mark.parametrize("saver", SAVERS)
def test_code_in_a_bin_file_does_not_run(
    multi_vector: tuple[ModelConfig, Path], folder: str, saver: str, tmp_path: Path
) -> None:
    config, model = multi_vector
    weights = model / folder / "model.safetensors"
    assert weights.is_file()
    weights.unlink()
    SAVERS[saver](Payload(tmp_path / "ran"), model / folder / "pytorch_model.bin")
    with pytest.raises(ModelSourceError, match="safetensors"):
        load_model(config, resolve(config), "cpu")
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()  # the payload itself works


def test_weights_in_a_bin_file_are_loaded(multi_vector: tuple[ModelConfig, Path]) -> None:
    config, model = multi_vector
    weights = model / "1_Dense" / "model.safetensors"
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    load_model(config, resolve(config), "cpu")


def test_a_module_of_the_models_own_code_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_models.dense(tmp_path)
    model = tmp_path / "model"
    (model / "own_code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    modules = json.loads((model / "modules.json").read_text())
    modules[-1]["type"] = "own_code.Layer"
    (model / "modules.json").write_text(json.dumps(modules))
    monkeypatch.syspath_prepend(str(model))
    monkeypatch.chdir(model)
    with pytest.raises((ValueError, ModelSourceError)):
        load_model(config, resolve(config), "cpu")
    assert not (tmp_path / "ran").exists()
