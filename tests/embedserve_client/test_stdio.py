"""The stdio server, on an event loop and as a process."""

import asyncio
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import pytest

from embedserve_client.base import EmbedOptions
from embedserve_client.errors import (
    EmbedError,
    HTTPError,
    NetworkError,
    RequestTimeoutError,
    ServerError,
)
from embedserve_client.space import Space
from embedserve_client.stdio import StdioServer
from embedserve_client.vectors import VectorInfo, Vectors
from tests.embedserve_client.scripted_server import SPACE, ScriptedServer, error, vector

ROOT = Path(__file__).parents[2]
INFO = VectorInfo(Space.parse(SPACE), "m", "service")


class GatedEmbedder:
    """Embeds a text when its gate opens; the text `late` times out. The first calls may fail."""

    def __init__(self, *failures: EmbedError) -> None:
        self.failures = list(failures)
        self.calls: list[tuple[list[str], str | None]] = []
        self.models: list[str | None] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.in_flight = self.max_in_flight = 0

    async def embed(self, texts: Sequence[str], **options: Unpack[EmbedOptions]) -> Vectors:
        self.calls.append((list(texts), options.get("input_type")))
        self.models.append(options.get("model"))
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        await asyncio.sleep(0)
        if texts[0] in self.gates:
            await self.gates[texts[0]].wait()
        self.in_flight -= 1
        if self.failures:
            raise self.failures.pop(0)
        if texts[0] == "late":
            raise RequestTimeoutError("The request timed out.")
        return Vectors([vector(text) for text in texts], INFO)

    async def close(self) -> None: ...


def line(request_id: Any, command: str = "encode-query", **params: Any) -> bytes:
    return json.dumps({"id": request_id, "command": command, "params": params}).encode() + b"\n"


async def run(embedder: GatedEmbedder, lines: bytes, concurrency: int = 64) -> list[dict[str, Any]]:
    replies = io.BytesIO()
    await StdioServer(embedder, io.BytesIO(lines), replies, concurrency).run()
    return [json.loads(reply) for reply in replies.getvalue().splitlines()]


async def test_embed_returns_vectors_with_their_space_and_model() -> None:
    embedder = GatedEmbedder()
    lines = (
        line("a", "embed", texts=["de", "f"])
        + line("b", "embed", texts=["de"], input_type="query", dimensions=2)
        + line("c", "embed", texts=["de"], input_type=["query"])
        + line("d", "embed", texts="de")
    )
    _, *replies = await run(embedder, lines)
    by_id = {reply["id"]: reply for reply in replies}
    expected = {"vectors": [vector("de"), vector("f")], "space": SPACE, "model": "m"}
    assert by_id["a"]["result"] == expected
    assert "`input_type` must be a string" in by_id["c"]["error"]
    assert "`embed` needs `params.texts`" in by_id["d"]["error"]
    assert embedder.calls[1:] == [(["de", "f"], None), (["de"], "query")]


async def test_a_request_may_name_a_model() -> None:
    embedder = GatedEmbedder()
    lines = (
        line("a", "embed", texts=["b"], model="m1")
        + line("b", "encode-query", text="c", model="m2")
        + line("c", "encode-batch", texts=["d"], model="m3")
        + line("d", "encode-query", text="e")
        + line("e", "encode-query", text="f", model=["m"])
    )
    replies = {reply.get("id"): reply for reply in await run(embedder, lines, concurrency=1)}
    assert embedder.models == [None, "m1", "m2", "m3", None]  # the first text tests readiness
    assert replies["e"]["error"] == "`model` must be a string."


async def test_server_reports_ready_and_replies_to_each_line() -> None:
    embedder = GatedEmbedder()
    lines = (
        line("a", text="abc")
        + line("b", query="abc")
        + line(3, "encode-batch", texts=["de", "f"])
        + b"\n"
        + line("c", "encode-batch", texts=[])
    )
    ready, *replies = await run(embedder, lines)
    assert ready == {"status": "ready"}
    assert {reply["id"]: reply["result"] for reply in replies} == {
        "a": vector("abc"),
        "b": vector("abc"),
        3: [vector("de"), vector("f")],
        "c": [],
    }
    assert embedder.calls.pop(0) == (["ready"], "query")
    input_types = sorted((texts[0], str(input_type)) for texts, input_type in embedder.calls)
    assert input_types == [("abc", "query"), ("abc", "query"), ("de", "document")]


async def test_server_is_ready_when_a_vector_can_be_computed() -> None:
    embedder = GatedEmbedder()
    embedder.gates["ready"] = asyncio.Event()
    replies = io.BytesIO()
    server = StdioServer(embedder, io.BytesIO(line("a", text="abc")), replies)
    running = asyncio.create_task(server.run())
    while not embedder.in_flight:
        await asyncio.sleep(0)
    assert replies.getvalue() == b""
    embedder.gates["ready"].set()
    await running
    ready, reply = map(json.loads, replies.getvalue().splitlines())
    assert ready == {"status": "ready"}
    assert reply == {"id": "a", "result": vector("abc")}


async def test_server_waits_for_a_service_that_starts() -> None:
    embedder = GatedEmbedder(NetworkError("Can't connect"), ServerError("loading", 503))
    replies, reasons = io.BytesIO(), list[str]()
    requests = io.BytesIO(line("a", text="abc"))
    await StdioServer(embedder, requests, replies, on_progress=reasons.append).run()
    assert replies.getvalue().splitlines()[0] == b'{"status":"ready"}'
    assert reasons == ["Can't connect", "loading (status 503)"]


async def test_server_is_never_ready_where_no_vector_can_be_computed() -> None:
    replies = io.BytesIO()
    requests = io.BytesIO(line("a", text="abc"))
    with pytest.raises(HTTPError, match="Unknown key"):
        await StdioServer(GatedEmbedder(HTTPError("Unknown key", 401)), requests, replies).run()
    failures = [NetworkError("Can't connect")] * 9
    requests = io.BytesIO(line("a", text="abc"))
    server = StdioServer(GatedEmbedder(*failures), requests, replies, ready_timeout_s=0.0)
    with pytest.raises(NetworkError):
        await server.run()
    assert replies.getvalue() == b""


async def test_replies_are_not_in_request_order() -> None:
    embedder = GatedEmbedder()
    embedder.gates["first"] = asyncio.Event()
    stdin_read, stdin_write = os.pipe()
    stdout_read, stdout_write = os.pipe()
    with (
        os.fdopen(stdin_read, "rb") as requests,
        os.fdopen(stdout_write, "wb") as replies,
        os.fdopen(stdout_read) as output,
    ):
        running = asyncio.create_task(StdioServer(embedder, requests, replies).run())
        os.write(stdin_write, line(1, text="first") + line(2, text="second"))
        lines = [await asyncio.to_thread(output.readline) for _ in range(2)]
        assert json.loads(lines[1])["id"] == 2
        embedder.gates["first"].set()
        assert json.loads(await asyncio.to_thread(output.readline))["id"] == 1
        os.close(stdin_write)
        await running


async def test_concurrency_is_bounded() -> None:
    embedder = GatedEmbedder()
    embedder.gates = dict.fromkeys((f"text {i}" for i in range(100)), asyncio.Event())
    lines = b"".join(line(i, text=f"text {i}") for i in range(100))
    running = asyncio.create_task(run(embedder, lines, concurrency=5))
    while embedder.in_flight < 5:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.1)  # time for a sixth request
    embedder.gates["text 0"].set()
    assert len(await running) == 101
    assert embedder.max_in_flight == 5


@pytest.mark.parametrize(
    ("malformed", "request_id", "message"),
    [
        (b"not json\n", None, "isn't JSON"),
        (b"[1]\n", None, "isn't of the form"),
        (b"\xff\xfe\n", None, "isn't JSON"),
        (line("x", "encode"), "x", "Unknown command 'encode'"),
        (line("x"), "x", "needs `params.text`"),
        (line("x", text=3), "x", "needs `params.text`"),
        (line("x", "encode-batch", texts="abc"), "x", "needs `params.texts`"),
        (line("x", "encode-batch", texts=["a", None]), "x", "needs `params.texts`"),
        (b'{"id": "x", "command": "encode-query"}\n', "x", "`params` must be an object"),
        (line("x", text="late"), "x", "timed out"),
    ],
)
async def test_malformed_line_gets_an_error_and_the_next_line_a_result(
    malformed: bytes, request_id: Any, message: str
) -> None:
    _, *replies = await run(GatedEmbedder(), malformed + line("good", text="abc"))
    reply_by_id = {reply["id"]: reply for reply in replies}
    assert message in reply_by_id[request_id]["error"]
    assert reply_by_id["good"]["result"] == vector("abc")


class Worker:
    """A process that runs `embedserve stdio`."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "embedserve_client.command.main", "stdio", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
        )

    def write(self, content: bytes) -> None:
        assert self.process.stdin
        self.process.stdin.write(content)
        self.process.stdin.flush()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout
        reply: dict[str, Any] = json.loads(self.process.stdout.readline())
        return reply

    def close(self) -> int:
        self.process.communicate(timeout=30)
        return self.process.returncode


def test_worker_embeds_through_a_service(server: ScriptedServer) -> None:
    worker = Worker("--url", server.url)
    assert worker.read() == {"status": "ready"}
    server.script = [error(400, "Text 0 is empty.")]
    worker.write(line("bad", text=""))
    assert worker.read() == {"id": "bad", "error": "Text 0 is empty."}
    worker.write(b"".join(line(i, text=f"text {i}") for i in range(200)))
    results = {reply["id"]: reply["result"] for reply in (worker.read() for _ in range(200))}
    assert results == {i: vector(f"text {i}") for i in range(200)}
    assert worker.close() == 0


def test_worker_is_ready_when_its_service_is(server: ScriptedServer) -> None:
    server.script = [error(503), error(503)]
    worker = Worker("--url", server.url)
    assert worker.read() == {"status": "ready"}
    assert [body["input"] for body in server.bodies] == [["ready"]] * 3
    assert worker.close() == 0


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--url", "http://127.0.0.1:9", "--ready-timeout", "3"), 3, "Can't connect"),
        (("--local", "/no/such/model"), 1, "There is no model at /no/such/model"),
    ],
    ids=["service", "local"],
)
def test_worker_without_vectors_exits_with_the_reason(
    arguments: tuple[str, ...], status: int, message: str
) -> None:
    worker = Worker(*arguments)
    output, errors = worker.process.communicate(line(1, text="a"), timeout=60)
    assert (output, worker.process.returncode) == (b"", status)
    assert message in errors.decode().splitlines()[-1]


def test_worker_that_is_not_ready_exits_with_its_caller() -> None:
    assert Worker("--url", "http://127.0.0.1:9").close() == 0


def test_worker_terminates_while_it_waits_for_input(server: ScriptedServer) -> None:
    worker = Worker("--url", server.url)
    worker.read()
    worker.process.terminate()
    assert worker.process.wait(30) != 0
    worker.close()


def run_once(
    server: ScriptedServer, *arguments: str, stdin: str = ""
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [
            *(sys.executable, "-m", "embedserve_client.command.main", "stdio"),
            *("--url", server.url, *arguments),
        ],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )


def test_single_result(server: ScriptedServer) -> None:
    def result(*arguments: str, stdin: str = "") -> Any:
        return json.loads(run_once(server, *arguments, stdin=stdin).stdout)

    assert result("encode-query", "abc") == vector("abc")
    assert result("encode-query", stdin="abc\n") == vector("abc")
    assert result("encode-batch", "abc", "de") == [vector("abc"), vector("de")]
    assert result("encode-batch", stdin='["abc"]') == [vector("abc")]
    failed = run_once(server, "encode-batch", stdin="abc")
    assert failed.returncode == 1
    assert "isn't a JSON list of strings" in failed.stderr


def test_a_script_of_ones_own_has_the_modes_of_a_worker(
    server: ScriptedServer, tmp_path: Path
) -> None:
    script = tmp_path / "embedding_worker.py"
    script.write_text(
        "import sys\n"
        "from embedserve_client.command.main import main\n"
        'sys.exit(main(["stdio", *sys.argv[1:]]))\n'
    )

    def run_script(mode: str, stdin: str = "", *arguments: str) -> list[Any]:
        completed = subprocess.run(
            [sys.executable, str(script), mode, *arguments],
            input=stdin,
            env={**os.environ, "EMBEDSERVE_URL": server.url},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return [json.loads(reply) for reply in completed.stdout.splitlines()]

    assert run_script("encode-query", "", "abc") == [vector("abc")]
    assert run_script("encode-batch", '["abc", "de"]') == [[vector("abc"), vector("de")]]
    requests = line("1", text="abc") + line("2", "encode-batch", texts=["de"])
    ready, *replies = run_script("server", requests.decode())
    assert ready == {"status": "ready"}
    assert {reply["id"]: reply["result"] for reply in replies} == {
        "1": vector("abc"),
        "2": [vector("de")],
    }


def test_other_output_goes_to_standard_error() -> None:
    code = (
        "import sys; from embedserve_client.stdio import claim_standard_streams\n"
        "requests, replies = claim_standard_streams()\n"
        "print('noise'); sys.stdout.flush(); replies.write(b'{}\\n'); replies.flush()"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert (process.stdout, process.stderr) == ("{}\n", "noise\n")
