"""`embedserve health | info | models`: what a service says of itself."""

import argparse
import json
from typing import Any

from embedserve_client.client import Client
from embedserve_client.command.whom import add_url


def add_commands(commands: Any) -> None:
    """Adds the commands."""
    for name, run, words in (
        ("health", _health, "whether a service is there and can embed; exit status 0 if so"),
        ("info", _info, "what a service serves, and what runs it"),
        ("models", _models, "the names of what a service serves"),
    ):
        parser = commands.add_parser(name, help=words, description=f"Tells {words}.")
        add_url(parser)
        parser.add_argument("--json", action="store_true", help="print it as JSON")
        parser.set_defaults(run=run)


def _health(arguments: argparse.Namespace) -> int:
    with Client(arguments.url) as client:
        health = client.health()
    if arguments.json:
        print(json.dumps(health))
    else:
        reason = f": {health['reason']}" if health.get("reason") else ""
        print(f"{health.get('status')}  {health.get('model')} at {client.url}{reason}")
    return 0 if health.get("status") in ("ok", "degraded") else 1


def _info(arguments: argparse.Namespace) -> int:
    with Client(arguments.url) as client:
        info = client.info()
    if arguments.json:
        print(json.dumps(info))
        return 0
    width = max(map(len, info))
    for name, value in info.items():
        print(f"{name:<{width}}  {_plain(value)}")
    return 0


def _plain(value: Any) -> str:
    match value:
        case None:
            return "-"
        case list():
            return ", ".join(map(_plain, value)) or "-"
        case dict():
            return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
        case _:
            return str(value)


def _models(arguments: argparse.Namespace) -> int:
    with Client(arguments.url) as client:
        models = client.models()
    print(json.dumps(models) if arguments.json else "\n".join(models))
    return 0
