"""Each extra of the client does what its documentation says, where nothing else is installed."""

import os
import subprocess
from pathlib import Path

import pytest

from tests import isolated_environment
from tests.embedserve_client.scripted_server import ScriptedServer

PROGRAMS = {
    "": """
from embedserve_client import Client
from embedserve_client.command.main import main
open("texts.txt", "w").write("abc\\n")
assert main(["embed", "texts.txt", "--quiet"]) == 0
import numpy as np
print(np.load("texts.npy").shape, Client().embed(["abc"]).space.precision)
""",
    "local": """
from embedserve_client import Client
vectors = Client("http://127.0.0.1:9", fallback="local").embed(["a text"])
print(vectors.source, vectors.shape)
from embedserve_client.compat.ipc import get_embedding_model
print(get_embedding_model().encode("abc", convert_to_tensor=True).shape)
""",
    "parquet": """
import pyarrow as pa, pyarrow.parquet as pq
from embedserve_client.command.main import main
pq.write_table(pa.table({"text": ["abc", "de"]}), "rows.parquet")
assert main(["embed", "rows.parquet", "-o", "out.parquet", "--quiet"]) == 0
print(pq.read_table("out.parquet").column_names)
""",
    "search": """
from embedserve_client import Client, VectorIndex
client = Client()
VectorIndex.build(["abc", "de"], client).save("index")
print(VectorIndex.load("index", client).search("de", k=1)[0].metadata)
""",
    "pgvector": """
from embedserve_client.command.main import main
assert main(["migrate", "postgresql://127.0.0.1:9/d", "--table", "t"]) == 1
from embedserve_client.migration.pgvector_store import PgVectorStore
print(PgVectorStore.__name__)
""",
    "ray": """
import ray.data
from ray.serve.handle import DeploymentHandle
from embedserve_client.ray import Embedder, embed_dataset
print(Embedder.__name__, embed_dataset.__name__)
""",
}
OUTPUT = {
    "": "(1, 4) fp32\n",
    "local": "local (1, 384)\ntorch.Size([4])\n",
    "parquet": "['text', 'embedding']\n",
    "search": "de\n",
    "pgvector": "PgVectorStore\n",
    "ray": "Embedder embed_dataset\n",
}
#: A library of another extra, which proves that the environment is isolated.
ABSENT = {
    "pgvector": "faiss",
    "": "torch",
    "local": "faiss",
    "parquet": "faiss",
    "search": "torch",
    "ray": "torch",
}


def test_each_extra_is_tested() -> None:
    assert set(PROGRAMS) == {"", *isolated_environment.extras("embedserve-client")}


@pytest.mark.parametrize("extra", PROGRAMS)
def test_extra(extra: str, server: ScriptedServer, tmp_path: Path) -> None:
    requirement = f"embedserve-client[{extra}]" if extra else "embedserve-client"
    python = isolated_environment.create(tmp_path / "venv", requirement)
    check = f"import importlib.util as u; assert u.find_spec({ABSENT[extra]!r}) is None\n"
    completed = subprocess.run(
        [python, "-c", check + PROGRAMS[extra]],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "EMBEDSERVE_URL": server.url},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout == OUTPUT[extra]
