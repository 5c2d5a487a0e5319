"""`embedserve prepare --compare` with a tiny model."""

from pathlib import Path

import pytest

from serve_app.command.precision_comparison import measure_precisions
from serve_app.command.precision_plot import draw
from serve_app.model_prep.int8_recipe import space_precision
from serve_app.model_prep.prepared_model import get_prepared_model
from serve_app.models import resolve
from tests.engines.precisions import needs
from tests.model_prep.test_openvino_export import build_in_process, tiny_model

pytestmark = needs("int8")


def test_precisions_are_prepared_and_measured_in_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = tiny_model(tmp_path, "bert", "mean")
    # One is prepared already, and needs no process for it.
    spec = resolve(model, space_precision("int8"))
    get_prepared_model(model, spec, "int8", build=build_in_process)
    pairs = (("openvino", "fp32"), ("torch", "fp16"), ("openvino", "int8"))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI")  # no fp16
    float_, rejected, int8 = measure_precisions(model, pairs, rounds=2)
    for choice in (float_, int8):
        assert choice.rejected is None
        assert len(choice.queries) == len(choice.documents) == 2
        assert min(choice.queries) > max(choice.documents) > 0
    assert rejected.rejected is not None
    assert "fp16 natively" in rejected.rejected
    assert rejected.queries == []
    assert int8.parity is not None
    assert int8.parity.quantization_loss is not None
    draw(model.name, [float_, int8], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
