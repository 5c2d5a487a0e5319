"""README's examples, unchanged, against the running service."""

import re
import subprocess
import sys
from pathlib import Path

import orjson

from tests.on_ray.conftest import Service

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
README_URL = "http://127.0.0.1:8000"


def code_block(language: str, excerpt: str) -> str:
    """Returns the only code block in this language that contains an excerpt."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    (text,) = [text for text in blocks if excerpt in text]
    return str(text)


def test_curl(service: Service) -> None:
    command = code_block("bash", "curl").replace(README_URL, service.url)
    reply = subprocess.run(["bash", "-c", command], capture_output=True, check=True, timeout=60)
    assert len(orjson.loads(reply.stdout)["data"][0]["embedding"]) == 384


def test_the_openai_client(service: Service) -> None:
    code = code_block("python", "OpenAI").replace(README_URL, service.url)
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert output.stdout == "384\n"


def test_another_ray_job(service: Service) -> None:
    output = service.run_driver(code_block("python", "get_app_handle") + "\nprint(vectors.shape)")
    assert output.splitlines()[-1] == "(2, 384)"
