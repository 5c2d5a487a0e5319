"""Renders the Helm chart, with Helm's own library.

python -m tests.chart     writes configs/kubernetes/cpu.yaml and gpu.yaml
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import helm_python
import yaml

_FOLDER = Path(__file__).parents[1] / "configs" / "kubernetes"
CHART = _FOLDER / "chart"
NAME = "embedserve"
#: Manifest → the values that it is rendered with.
MANIFESTS = {
    _FOLDER / "cpu.yaml": None,
    _FOLDER / "gpu.yaml": CHART / "values-gpu.yaml",
}


def render(values: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Returns the text of each template; the values are checked against the chart's schema."""
    with helm_python.Chart.load(str(CHART)) as chart:
        chart.validate_schema(dict(values or {}))
        return chart.render(dict(values or {}), name=NAME, namespace=NAME)


def objects(values: Mapping[str, Any] | None = None) -> dict[tuple[str, str], dict[str, Any]]:
    """Returns the rendered objects by kind and name."""
    texts = render(values).values()
    documents = (d for text in texts for d in yaml.load_all(text, yaml.CSafeLoader) if d)
    return {(d["kind"], d["metadata"]["name"]): d for d in documents}


def manifest(values_file: Path | None) -> str:
    """Returns what `helm template` prints, with a comment on its origin."""
    values = yaml.safe_load(values_file.read_text("utf-8")) if values_file else None
    return "".join([*_header(values_file), *_documents(render(values))])


def _header(values_file: Path | None) -> Iterator[str]:
    option = f" -f configs/kubernetes/chart/{values_file.name}" if values_file else ""
    yield "# Generated from the chart; change that instead. docs/deploy.md describes it.\n#\n"
    yield f"#   helm template {NAME} configs/kubernetes/chart{option}\n"


def _documents(templates: Mapping[str, str]) -> Iterator[str]:
    for path, text in sorted(templates.items()):
        for document in text.split("\n---\n"):
            if document.strip():
                yield f"---\n# Source: {path}\n{document.strip()}\n"


if __name__ == "__main__":
    for file, values in MANIFESTS.items():
        file.write_text(manifest(values), "utf-8")
    sys.exit()
