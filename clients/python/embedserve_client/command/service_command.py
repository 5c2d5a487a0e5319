"""`embedserve health | info | models`: the state and the models of a service."""

import argparse
import json
from typing import Any

from embedserve_client.client import Client
from embedserve_client.command.backend_options import add_model_option, add_url_option

_PREPARED_MODELS = (
    "With the service installed, `embedserve models status` prints state, replicas and memory of "
    "each, and `embedserve models list | prepare | remove | verify` manages the prepared models of "
    "this machine."
)


def add_commands(commands: Any) -> None:
    """Adds the subcommands."""
    for name, run, description in (
        ("health", _health, "print the health of a service; exit status 0 if it can embed"),
        ("info", _info, "print the model, engine and versions of a service"),
        ("models", _models, "print the names of the served models"),
    ):
        parser = commands.add_parser(
            name, help=description, description=f"{description.capitalize()}."
        )
        add_url_option(parser)
        parser.add_argument("--json", action="store_true", help="print JSON")
        parser.set_defaults(run=run)
        if name != "models":
            add_model_option(parser)
        else:
            parser.epilog = _PREPARED_MODELS


def _health(arguments: argparse.Namespace) -> int:
    with Client(arguments.url) as client:
        health = client.health(model=arguments.model)
    if arguments.json:
        print(json.dumps(health))
    else:
        reason = f": {health['reason']}" if health.get("reason") else ""
        print(f"{health.get('status')}  {health.get('model')} at {client.base_url}{reason}")
    return 0 if health.get("status") in ("ok", "degraded") else 1


def _info(arguments: argparse.Namespace) -> int:
    with Client(arguments.url) as client:
        info = client.info(model=arguments.model)
    if arguments.json:
        print(json.dumps(info))
        return 0
    width = max(map(len, info))
    for name, value in info.items():
        print(f"{name:<{width}}  {_format(value)}")
    return 0


def _format(value: Any) -> str:
    match value:
        case None:
            return "-"
        case list():
            return ", ".join(map(_format, value)) or "-"
        case dict():
            return ", ".join(f"{name} {_format(item)}" for name, item in value.items())
        case _:
            return str(value)


def _models(arguments: argparse.Namespace) -> int:
    with Client(arguments.url) as client:
        models = client.models()
    print(json.dumps(models) if arguments.json else "\n".join(models))
    return 0
