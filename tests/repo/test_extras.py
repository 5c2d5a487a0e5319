"""The service and its extras work where nothing else is installed."""

import os
import subprocess
from pathlib import Path

import httpx2
import pytest
import yaml

from serve_app.command.ports import free_port
from tests import isolated_environment
from tests.clients.conftest import bundled_encodings

#: Extras of this repository's own tests, which install all of them.
OF_THE_TESTS = {"clients", "dev"}
PROGRAMS = {
    "tiktoken": """
from serve_app.service.openai_token_ids import TiktokenDecoder
print(TiktokenDecoder("cl100k_base").decode((15339, 1917)))
""",
    "openai": """
from serve_app.providers.openai_provider import OpenAIProvider
print(OpenAIProvider.library)
""",
    "cohere": """
from serve_app.providers.cohere_provider import CohereProvider
print(CohereProvider.library)
""",
    "voyage": """
from serve_app.providers.voyage_provider import VoyageProvider
print(VoyageProvider.library)
""",
    "otel": """
from serve_app.config import TracingConfig
from serve_app.tracing import check_tracing
check_tracing(TracingConfig(endpoint="http://127.0.0.1:4318"))
print("traced")
""",
    "int8": """
from serve_app.model_prep.int8_quantization import quantize
print(quantize.__name__)
""",
    "bench": """
from embedserve_client.command.main import main
from embedserve_benchmarks.report import plots, publish
try:
    main(["bench", "--help"])
except SystemExit as end:
    print(end.code)
""",
}
OUTPUT = {
    "tiktoken": "hello world\n",
    "openai": "openai\n",
    "cohere": "cohere\n",
    "voyage": "voyageai\n",
    "otel": "traced\n",
    "int8": "quantize\n",
    "bench": "0\n",
}


def environment_variables(tmp_path: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "TIKTOKEN_CACHE_DIR": bundled_encodings(),
    }


def test_each_extra_is_tested() -> None:
    assert set(PROGRAMS) | OF_THE_TESTS == isolated_environment.extras("embedserve")


@pytest.mark.parametrize("extra", PROGRAMS)
def test_extra(extra: str, tmp_path: Path) -> None:
    python = isolated_environment.create(tmp_path / "venv", f"embedserve[{extra}]")
    check = "import importlib.util as u; assert u.find_spec('faiss') is None\n"
    completed = subprocess.run(
        [python, "-c", check + PROGRAMS[extra]],
        cwd=tmp_path,
        env=environment_variables(tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.endswith(OUTPUT[extra])


def test_the_service_needs_no_extra(tmp_path: Path) -> None:
    python = isolated_environment.create(tmp_path / "venv", "embedserve")
    config = tmp_path / "config.yaml"
    text = (isolated_environment.ROOT / "configs" / "one-machine.yaml").read_text("utf-8")
    settings = yaml.safe_load(text)
    settings["applications"][0]["args"] |= {
        "model": {"name": "hashing", "source": "hashing:64"},
        "cache": {"data_dir": str(tmp_path / "cache")},
    }
    config.write_text(yaml.safe_dump(settings), "utf-8")
    port = free_port()
    with subprocess.Popen(
        [
            *(python, "-m", "embedserve_client.command.main", "serve", str(config)),
            *("--standalone", "--until-eof", "--port", str(port)),
        ],
        cwd=tmp_path,
        env=environment_variables(tmp_path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as service:
        assert service.stdout
        assert service.stdin
        while "ready" not in (line := service.stdout.readline()):
            assert line, "The service ended before it was ready."
        url = f"http://127.0.0.1:{port}/v1/embeddings"
        reply = httpx2.post(url, json={"input": "a text"}, timeout=30)
        assert len(reply.json()["data"][0]["embedding"]) == 64
        service.stdin.close()
        assert service.wait(60) == 0
