"""The `/docs` page against the OpenAPI document."""

import html
import json
import re
import shlex
import subprocess
from typing import Any

from starlette.testclient import TestClient

from serve_app.web.schema.docs_page import docs_html
from tests.web.schema.test_openapi import ENDPOINTS, operations


def test_the_page_shows_every_path_and_every_field(
    client: TestClient, document: dict[str, Any]
) -> None:
    reply = client.get("/docs")
    assert reply.headers["content-type"].startswith("text/html")
    for path, _, _ in operations(document):
        assert f"<code>{path}</code>" in reply.text, path
    for _, endpoint in ENDPOINTS:
        for field in endpoint.fields:
            assert f"<code>{field.name}</code>" in reply.text, field.name
            parts = [html.escape(part) for part in field.description.split("`")]
            assert all(part in reply.text for part in parts), field.name


def test_the_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    text = client.get("/docs").text
    assert not re.search(r"<(script|img|link|iframe|object|embed|base)\b|@import|url\(", text)
    links = re.findall(r"""(?:href|src|action)=["']?([^"'\s>]+)""", text)
    assert links
    assert all(link.startswith("#") or link == "openapi.json" for link in links)
    assert set(re.findall(r"//[\w.:-]+", text)) == {"//testserver"}


def test_types_are_abbreviated(client: TestClient) -> None:
    text = client.get("/docs").text
    row = re.search(r"<tr><td><code>input</code>.*?</tr>", text, re.DOTALL)
    assert row
    assert "<code>string | integer[] | (string | {text} | integer[])[]</code>" in row[0]
    assert "u0000" not in text


def test_html_is_escaped(document: dict[str, Any]) -> None:
    evil = "<script>alert('x')</script> & \"y\""
    document["info"]["title"] = document["info"]["description"] = evil
    document["tags"] = [{"name": evil}]
    (post,) = document["paths"]["/v1/embeddings"].values()
    post["tags"], post["summary"] = [evil], evil
    content = post["requestBody"]["content"]["application/json"]
    content["examples"] = {evil: {"value": {"input": evil}}}
    content["schema"]["properties"] = {evil: {"enum": [evil], "description": evil}}
    post["responses"] = {"200": {"description": evil}}
    document["paths"] = {f"/{evil}": {"post": post}}
    page = docs_html(document, f"http://{evil}")
    assert "<script" not in page
    assert "'x'" not in page
    assert '"y"' not in page
    assert html.escape(evil) in page


def commands(text: str) -> list[str]:
    """Returns the commands of a page."""
    return [html.unescape(command) for command in re.findall(r"<pre>(.*?)</pre>", text, re.DOTALL)]


def test_each_command_succeeds(client: TestClient) -> None:
    requested = set()
    for command in commands(client.get("/docs").text):
        arguments = shlex.split(command)
        assert arguments[0] == "curl"
        method = arguments[2] if arguments[1] == "-X" else "POST" if "-d" in arguments else "GET"
        (url,) = (argument for argument in arguments if argument.startswith("http"))
        headers = dict(
            arguments[i + 1].split(": ", 1)
            for i, argument in enumerate(arguments)
            if argument == "-H"
        )
        data = arguments[arguments.index("-d") + 1] if "-d" in arguments else None
        reply = client.request(method, url, headers=headers, content=data)
        assert reply.is_success, command
        requested.add((method, url))
    assert len(requested) == len(list(operations(client.get("/openapi.json").json())))


def test_commands_are_quoted_for_the_shell(document: dict[str, Any]) -> None:
    value = {"input": "it's $HOME & `id`"}
    (post,) = document["paths"]["/v1/embeddings"].values()
    post["requestBody"]["content"]["application/json"]["examples"] = {"x": {"value": value}}
    (command,) = [text for text in commands(docs_html(document, "http://h")) if "$HOME" in text]
    printed = subprocess.run(
        ["sh", "-c", command.replace("curl", "printf '%s\\n'", 1)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(printed.stdout.splitlines()[-1]) == value


def test_commands_have_a_key_where_one_is_needed(document: dict[str, Any]) -> None:
    assert not any(
        "Authorization" in command for command in commands(docs_html(document, "http://h"))
    )
    document["security"] = [scheme for scheme in document["security"] if scheme]
    with_key = {
        c.split()[-1 if "-d" not in c else 1]: c for c in commands(docs_html(document, "http://h"))
    }
    assert 'Bearer $EMBEDSERVE_API_KEY"' in with_key["http://h/v1/embeddings"]
    assert "Authorization" not in with_key["http://h/health"]
