"""infinity-emb, with its torch engine and with its ONNX engine (`optimum`)."""

import subprocess
from pathlib import Path

from .base import OFFLINE, Peer, Place
from .environment import Environment
from serve_app.config import MINILM
from serve_app.models import model_dir


def _export(environment: Path) -> None:
    """The model as ONNX beside its tokenizer, where the `optimum` engine looks for it."""
    asked = ["--task", "feature-extraction", "--library", "transformers", "--device", "cpu"]
    subprocess.run(
        [
            str(environment / "bin" / "optimum-cli"),
            *("export", "onnx", "--model", str(model_dir(MINILM)), *asked),
            str(environment / "onnx"),
        ],
        check=True,
        capture_output=True,
        text=True,
    )


_ENVIRONMENT = Environment("infinity", Path(__file__).with_name("infinity.txt"), _export)

#: infinity 0.0.78 was made for an older optimum. With today's, its ONNX engine fails on the path of
#: a local file, and skips the graph optimisation over an argument that is gone. Both are mended as
#: it starts, so that it runs as its makers meant it.
_START = """
from pathlib import Path
from infinity_emb.transformer import utils_optimum
from infinity_emb.transformer.embedder import optimum
find, config = optimum.get_onnx_files, utils_optimum.OptimizationConfig
optimum.get_onnx_files = lambda **asked: Path(find(**asked).name)
utils_optimum.OptimizationConfig = lambda optimize_with_onnxruntime_only=None, **a: config(**a)
from infinity_emb.cli import cli
cli()
"""


def _command(at: Place, engine: str, model: str) -> list[str]:
    return [
        *(at.python, "-c", _START, "v2"),
        *("--model-id", model, "--served-model-name", "m", "--engine", engine),
        *("--device", "cpu", "--batch-size", "32", "--no-model-warmup"),
        *(
            "--pooling-method",
            "mean",
        ),  # an ONNX folder doesn't say, and `auto` takes the first token
        *("--host", "127.0.0.1", "--port", str(at.port)),
    ]


def _peer(engine: str, title: str, model: Path) -> Peer:
    return Peer(
        name=f"infinity-{engine}",
        title=title,
        command=lambda at: _command(at, engine, str(model)),
        dialect="infinity",
        model="m",
        env={**OFFLINE, "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"},
        environment=_ENVIRONMENT,
    )


TORCH = _peer("torch", "infinity (torch)", model_dir(MINILM))
OPTIMUM = _peer("optimum", "infinity (ONNX)", _ENVIRONMENT.folder / "onnx")
