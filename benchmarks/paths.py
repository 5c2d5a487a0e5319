"""The folders that benchmarks read from and write to."""

from pathlib import Path

_CHECKOUT = Path(__file__).parents[1]
#: The repository: the checkout that holds this file, else (in a wheel) the working directory.
ROOT = _CHECKOUT if (_CHECKOUT / "pyproject.toml").is_file() else Path.cwd()
CONFIG = ROOT / "serve_config.yaml"
README = ROOT / "README.md"
REPORT_FOLDER = ROOT / "benchmarks"
RESULTS = REPORT_FOLDER / "results"
PEER_ENVIRONMENTS = ROOT / ".venv-peers"
