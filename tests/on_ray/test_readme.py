"""README's examples, as they stand there, against the running service."""

import re
import subprocess
import sys
from pathlib import Path

import orjson

from tests.on_ray.conftest import Service

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
HERE = "http://127.0.0.1:8000"


def block(language: str, words: str) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    (found,) = [text for text in blocks if words in text]
    return str(found)


def test_curl(service: Service) -> None:
    command = block("bash", "curl").replace(HERE, service.url)
    reply = subprocess.run(["bash", "-c", command], capture_output=True, check=True, timeout=60)
    assert len(orjson.loads(reply.stdout)["data"][0]["embedding"]) == 384


def test_the_openai_client(service: Service) -> None:
    code = block("python", "OpenAI").replace(HERE, service.url)
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert printed.stdout == "384\n"


def test_another_ray_job(service: Service) -> None:
    printed = service.drive(block("python", "get_app_handle") + "\nprint(vectors.shape)")
    assert printed.splitlines()[-1] == "(2, 384)"
