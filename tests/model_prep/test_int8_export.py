"""Quantization of tiny models: what is refused, and what a killed preparation leaves."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from embedserve_client.space import Space
from serve_app.config import ModelConfig
from serve_app.errors import ConfigurationError, ParityFailed
from serve_app.model_prep.int8_recipe import space_precision
from serve_app.model_prep.prepared_model import PreparedModel, get_prepared_model
from serve_app.models import resolve
from tests import tiny_models
from tests.engines.precisions import needs
from tests.model_prep.test_openvino_export import build_in_process, tiny_model

pytestmark = needs("int8")
LIMIT_S = 120


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "embedserve"


def prepare(config: ModelConfig, precision: str) -> PreparedModel:
    spec = resolve(config, space_precision(precision))
    return get_prepared_model(config, spec, precision, build=build_in_process)


def test_a_prepared_model_has_a_space_and_its_loss(tmp_path: Path) -> None:
    config = tiny_model(tmp_path, "bert", "mean")
    levels = {precision: prepare(config, precision) for precision in ("int8", "int8-fast")}
    for precision, prepared in levels.items():
        loss = prepared.parity.quantization_loss
        assert loss is not None
        assert loss.texts > 1000
        assert 0.99 < loss.cosine_min < loss.cosine_mean < 1
        assert prepared.parity.precision == precision
        assert prepared.space_id.startswith(resolve(config, space_precision(precision)).space_id)
    careful, fast = levels["int8"], levels["int8-fast"]
    assert not Space.parse(careful.space_id).is_comparable_to(Space.parse(fast.space_id))
    assert careful.folder != fast.folder
    assert careful.parity.quantization_loss != fast.parity.quantization_loss
    again = prepare(config, "int8")
    assert again == careful


def test_a_model_that_loses_too_much_is_refused_with_its_figures(
    tmp_path: Path, cache: Path
) -> None:
    """The vectors of this one are nearly equal, so rounding changes their neighbours."""
    config = tiny_models.dense(tmp_path)
    with pytest.raises(ParityFailed, match=r"loses too much.*`kept` is 0\.\d+, 0\.92 is required"):
        prepare(config, "int8-fast")
    (folder,) = (path for path in (cache / "prepared").iterdir() if path.is_dir())
    assert {path.name for path in folder.iterdir()} == {
        "digests.json",
        "parity.json",
        "labels.json",
    }


def test_another_version_of_nncf_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nncf

    config = tiny_model(tmp_path, "bert", "mean")
    monkeypatch.setattr(nncf, "__version__", "3.5.0")
    with pytest.raises(ConfigurationError, match=r"NNCF 3\.5\.0.*`pip install nncf==3\.4\.0`"):
        prepare(config, "int8")


def test_without_nncf_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_model(tmp_path, "bert", "mean")
    monkeypatch.delitem(sys.modules, "serve_app.model_prep.int8_quantization", raising=False)
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(ConfigurationError, match=r"needs NNCF.*embedserve\[int8\]"):
        prepare(config, "int8")


PREPARE = """
import sys
from serve_app.config import ModelConfig
from serve_app.model_prep.int8_recipe import space_precision
from serve_app.model_prep.prepared_model import get_prepared_model
from serve_app.models import resolve
config = ModelConfig.model_validate_json(sys.argv[1])
print(get_prepared_model(config, resolve(config, space_precision("int8")), "int8").space_id)
"""


def test_nothing_of_a_killed_preparation_is_used(tmp_path: Path, cache: Path) -> None:
    """The parent and the process that quantizes are killed once the float32 graph is written."""
    config = tiny_model(tmp_path, "bert", "mean")
    command = [sys.executable, "-c", PREPARE, config.model_dump_json()]
    killed = subprocess.Popen(command, start_new_session=True)
    deadline_s = time.monotonic() + LIMIT_S
    while not any(cache.glob("prepared/building-*/artifact/model.xml")):
        assert time.monotonic() < deadline_s
        assert killed.poll() is None
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait(LIMIT_S)
    left = [path.name for path in (cache / "prepared").iterdir() if path.is_dir()]
    assert all(name.startswith("building-") for name in left)
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=LIMIT_S)
    (folder,) = (path for path in (cache / "prepared").iterdir() if path.is_dir())
    assert done.stdout.strip() == prepare(config, "int8").space_id
    assert (folder / "scales.json").exists()
