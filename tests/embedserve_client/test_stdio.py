"""The bridge over standard input and output, as a process and in a loop."""

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

from embedserve_client.base import How
from embedserve_client.errors import Timeout
from embedserve_client.space import Space
from embedserve_client.stdio import Bridge
from embedserve_client.vectors import About, Vectors
from tests.embedserve_client.scripted import SPACE, Scripted, refuse, vector

ROOT = Path(__file__).parents[2]
ABOUT = About(Space.parse(SPACE), "m", "service")


class Slow:
    """Answers each text when it is told to, or fails."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], str | None]] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.under_way = self.most = 0

    async def embed(self, texts: Sequence[str], **how: Unpack[How]) -> Vectors:
        self.asked.append((list(texts), how.get("input_type")))
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0)
        if texts[0] in self.gates:
            await self.gates[texts[0]].wait()
        self.under_way -= 1
        if texts[0] == "late":
            raise Timeout("The call's time ran out.")
        return Vectors([vector(text) for text in texts], ABOUT)

    async def close(self) -> None: ...


def line(name: Any, command: str = "encode-query", **params: Any) -> bytes:
    return json.dumps({"id": name, "command": command, "params": params}).encode() + b"\n"


async def run(embedder: Slow, lines: bytes, most: int = 64) -> list[dict[str, Any]]:
    replies = io.BytesIO()
    await Bridge(embedder, io.BytesIO(lines), replies, most).run()
    return [json.loads(reply) for reply in replies.getvalue().splitlines()]


async def test_it_says_that_it_is_ready_and_answers_each_line() -> None:
    embedder = Slow()
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
    purposes = sorted((texts[0], str(purpose)) for texts, purpose in embedder.asked)
    assert purposes == [("abc", "query"), ("abc", "query"), ("de", "document")]


async def test_answers_come_when_they_are_ready_not_in_the_order_of_questions() -> None:
    embedder = Slow()
    embedder.gates["first"] = asyncio.Event()
    read, write = os.pipe()
    got, give = os.pipe()
    with os.fdopen(read, "rb") as lines, os.fdopen(give, "wb") as replies, os.fdopen(got) as shown:
        running = asyncio.create_task(Bridge(embedder, lines, replies).run())
        os.write(write, line(1, text="first") + line(2, text="second"))
        answers = [await asyncio.to_thread(shown.readline) for _ in range(2)]
        assert json.loads(answers[1])["id"] == 2
        embedder.gates["first"].set()
        assert json.loads(await asyncio.to_thread(shown.readline))["id"] == 1
        os.close(write)
        await running


async def test_no_more_are_read_than_may_be_under_way() -> None:
    embedder = Slow()
    embedder.gates = dict.fromkeys((f"text {i}" for i in range(100)), asyncio.Event())
    lines = b"".join(line(i, text=f"text {i}") for i in range(100))
    running = asyncio.create_task(run(embedder, lines, most=5))
    while embedder.under_way < 5:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.1)  # for more to come, if any do
    embedder.gates["text 0"].set()
    assert len(await running) == 101
    assert embedder.most == 5


@pytest.mark.parametrize(
    ("wrong", "name", "words"),
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
        (line("x", text="late"), "x", "time ran out"),
    ],
)
async def test_a_bad_line_gets_an_error_and_the_next_one_its_answer(
    wrong: bytes, name: Any, words: str
) -> None:
    _, *replies = await run(Slow(), wrong + line("good", text="abc"))
    told = {reply["id"]: reply for reply in replies}
    assert words in told[name]["error"]
    assert told["good"]["result"] == vector("abc")


class Worker:
    """`embedserve stdio` as a program starts it."""

    def __init__(self, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "embedserve_client.command.main", "stdio", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
        )

    def ask(self, content: bytes) -> None:
        assert self.process.stdin
        self.process.stdin.write(content)
        self.process.stdin.flush()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def end(self) -> int:
        self.process.communicate(timeout=30)
        return self.process.returncode


def test_it_serves_a_program_over_a_service(server: Scripted) -> None:
    worker = Worker("--url", server.url)
    assert worker.read() == {"status": "ready"}
    server.script = [refuse(400, "Text 0 is empty.")]
    worker.ask(line("bad", text=""))
    assert worker.read() == {"id": "bad", "error": "Text 0 is empty."}
    worker.ask(b"".join(line(i, text=f"text {i}") for i in range(200)))
    found = {reply["id"]: reply["result"] for reply in (worker.read() for _ in range(200))}
    assert found == {i: vector(f"text {i}") for i in range(200)}
    assert worker.end() == 0


def test_a_service_that_is_away_is_an_error_of_each_request() -> None:
    worker = Worker("--url", "http://127.0.0.1:9", "--timeout", "0.5")
    assert worker.read() == {"status": "ready"}
    worker.ask(line(1, text="a"))
    assert "Nobody answers" in worker.read()["error"]
    assert worker.end() == 0


def test_it_ends_when_it_is_told_to_while_it_waits_for_lines(server: Scripted) -> None:
    worker = Worker("--url", server.url)
    worker.read()
    worker.process.terminate()
    assert worker.process.wait(30) != 0
    worker.end()


def one_shot(server: Scripted, *words: str, given: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [
            *(sys.executable, "-m", "embedserve_client.command.main", "stdio"),
            *("--url", server.url, *words),
        ],
        input=given,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )


def test_one_result_and_no_more(server: Scripted) -> None:
    def result(*words: str, given: str = "") -> Any:
        return json.loads(one_shot(server, *words, given=given).stdout)

    assert result("encode-query", "abc") == vector("abc")
    assert result("encode-query", given="abc\n") == vector("abc")
    assert result("encode-batch", "abc", "de") == [vector("abc"), vector("de")]
    assert result("encode-batch", given='["abc"]') == [vector("abc")]
    failed = one_shot(server, "encode-batch", given="abc")
    assert failed.returncode == 1
    assert "isn't a JSON list of texts" in failed.stderr


def test_what_else_prints_does_not_get_between_the_lines() -> None:
    code = (
        "import sys; from embedserve_client.stdio import private_streams\n"
        "lines, replies = private_streams()\n"
        "print('noise'); sys.stdout.flush(); replies.write(b'{}\\n'); replies.flush()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("{}\n", "noise\n")
