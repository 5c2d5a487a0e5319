"""The service's subcommands of `embedserve`: a plugin of the client's command.

The client loads this module through the entry point `embedserve.commands` and uses `add_commands`,
`EXAMPLES` and `ERRORS`.
"""

import argparse
import sys
from typing import Any

from embedserve_client.command.main import main
from serve_app.command import (
    autoscale,
    cache,
    capacity,
    check,
    cost,
    deploy,
    key,
    models,
    prepare,
    run,
    serve,
    shadow,
    simulate,
    top,
)
from serve_app.command.service_process import StartupError
from serve_app.config import settings_markdown
from serve_app.errors import EmbedServeError

EXAMPLES = """\
  embedserve serve                         serve serve_config.yaml until Ctrl-C
  embedserve serve gpu                     serve another packaged configuration, or a file
  embedserve serve --port 8001             run a second service on this machine
  embedserve run --workers 3 -- python app.py
                                           run a service and three workers that use it
  embedserve check http://127.0.0.1:8000   test a running service from end to end
  embedserve top                           show what the running service does
  embedserve deploy my.yaml                apply a changed configuration to the running service
  embedserve prepare                       prepare the models, for example in an image build
  embedserve models list                   print the prepared models of this machine
  embedserve models status                 print the models of the running service
  embedserve models predefined             print the models that need no source, with their prices
  embedserve autoscale explain             print how many replicas are wanted, and why
  embedserve cache warm texts.jsonl        embed the texts of a file to fill the cache
  embedserve cache stats                   print the size and the hit rate of each cache
  embedserve cost --by model,day           print what models and days have cost
  embedserve shadow report                 compare the second model of an alias with the first
  embedserve simulate spike --cost 0.015,0.0003
                                           simulate autoscaling, next to Ray's own policy
  embedserve capacity plan --cost 0.002,0.0001 --rate 300/s --p99 50ms
                                           print replicas and configuration for a load
  embedserve key new alice                 generate an API key and its configuration entry
  embedserve settings                      print every setting with its default
"""
#: Exceptions whose messages are printed without a traceback.
ERRORS = (EmbedServeError, StartupError)


def add_commands(commands: Any) -> None:
    """Adds the subcommands to the parser of `embedserve`."""
    modules = (
        serve,
        run,
        check,
        prepare,
        deploy,
        autoscale,
        cache,
        cost,
        simulate,
        capacity,
        key,
        shadow,
        top,
    )
    for module in modules:
        module.add_commands(commands)
    settings = commands.add_parser(
        "settings",
        help="print all settings as Markdown tables",
        description="Print all settings as Markdown tables: name, default and effect.",
    )
    settings.set_defaults(run=_print_settings)


def extend_commands(commands: Any) -> None:
    """Adds subcommands to the client's `embedserve models`."""
    models.add_commands(commands.choices["models"].add_subparsers(metavar="COMMAND"))


def _print_settings(arguments: argparse.Namespace) -> int:
    print(settings_markdown(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
