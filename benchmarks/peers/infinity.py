"""infinity-emb with its torch engine, and with its ONNX engine (`optimum`)."""

import subprocess
from pathlib import Path

from serve_app.config import MINILM
from serve_app.models import model_dir

from .base import OFFLINE_ENV, Peer, PeerProcess
from .environment import Environment


def _export_onnx(environment: Path) -> None:
    """Exports the model as ONNX into the environment's folder `onnx`."""
    options = ["--task", "feature-extraction", "--library", "transformers", "--device", "cpu"]
    subprocess.run(
        [
            str(environment / "bin" / "optimum-cli"),
            *("export", "onnx", "--model", str(model_dir(MINILM)), *options),
            str(environment / "onnx"),
        ],
        check=True,
        capture_output=True,
        text=True,
    )


_ENVIRONMENT = Environment("infinity", Path(__file__).with_name("infinity.txt"), _export_onnx)

#: infinity 0.0.78 was written for an older optimum. With the current one its ONNX engine fails for
#: the path of a local file, and skips graph optimization because of a removed argument. The start
#: script patches both, so that it runs as intended.
_START_SCRIPT = """
from pathlib import Path
from infinity_emb.transformer import utils_optimum
from infinity_emb.transformer.embedder import optimum
get_onnx_files, config = optimum.get_onnx_files, utils_optimum.OptimizationConfig
optimum.get_onnx_files = lambda **kwargs: Path(get_onnx_files(**kwargs).name)
utils_optimum.OptimizationConfig = lambda optimize_with_onnxruntime_only=None, **k: config(**k)
from infinity_emb.cli import cli
cli()
"""


def _command(process: PeerProcess, engine: str, model: str) -> list[str]:
    return [
        *(process.python, "-c", _START_SCRIPT, "v2"),
        *("--model-id", model, "--served-model-name", "m", "--engine", engine),
        *("--device", "cpu", "--batch-size", "32", "--no-model-warmup"),
        # An ONNX folder doesn't name the pooling, and `auto` would use the first token.
        *("--pooling-method", "mean"),
        *("--host", "127.0.0.1", "--port", str(process.port)),
    ]


def _peer(engine: str, title: str, model: Path) -> Peer:
    return Peer(
        name=f"infinity-{engine}",
        title=title,
        command=lambda process: _command(process, engine, str(model)),
        dialect="infinity",
        model="m",
        env={**OFFLINE_ENV, "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"},
        environment=_ENVIRONMENT,
    )


TORCH = _peer("torch", "infinity (torch)", model_dir(MINILM))
OPTIMUM = _peer("optimum", "infinity (ONNX)", _ENVIRONMENT.folder / "onnx")
