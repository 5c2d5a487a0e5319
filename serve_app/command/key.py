"""`embedserve key`: generates API keys, and computes the digests that the service stores."""

import argparse
import sys
from getpass import getpass
from typing import Any

import yaml
from pydantic import ValidationError

from serve_app.access.keys import MAX_KEY_CHARS, describe_invalid_keys, digest, generate_key
from serve_app.config import ApiKey
from serve_app.errors import ConfigurationError

#: A shorter key can be found by brute force if its digest becomes known.
_MIN_CHARS = 22


def add_commands(commands: Any) -> None:
    """Adds `key` and its subcommands to the parser."""
    key = commands.add_parser(
        "key",
        help="generate an API key, or hash an existing one",
        description="Generate an API key or hash an existing one. The service stores only digests.",
    )
    subcommands = key.add_subparsers(required=True, metavar="COMMAND")

    new = subcommands.add_parser(
        "new",
        help="generate a key and its configuration entry",
        description="Generate a key and print its configuration entry to standard output. The key "
        "itself is printed to standard error, this once.",
    )
    new.add_argument("name", help="name of the key in logs, metrics and quotas")
    new.add_argument(
        "--models", nargs="+", metavar="MODEL", help="models that the key may use (default: all)"
    )
    new.add_argument(
        "--lane",
        choices=("interactive", "bulk"),
        help="lane of all requests with the key (default: the client chooses)",
    )
    for limit in ("requests per minute", "tokens per minute", "concurrent tokens"):
        option = f"--{limit.replace(' ', '-')}"
        new.add_argument(option, type=int, metavar="N", help=f"limit of {limit} (default: none)")
    new.add_argument(
        "--max-usd-per-month", metavar="USD", help="budget for each month (default: none)"
    )
    new.set_defaults(run=_new)

    hash_ = subcommands.add_parser(
        "hash",
        help="print the digest of an existing key",
        description="Read a key from standard input, with a prompt on a terminal, and print its "
        "digest.",
    )
    hash_.set_defaults(run=_hash)


def _new(arguments: argparse.Namespace) -> int:
    key = generate_key()
    options = {name: getattr(arguments, name, None) for name in ApiKey.model_fields}
    fields = {name: value for name, value in options.items() if value is not None}
    try:
        entry = ApiKey.model_validate({**fields, "sha256": digest(key)})
    except ValidationError as error:
        raise ConfigurationError(f"The key is not valid: {describe_invalid_keys(error)}.") from None
    print(f"The key of {entry.name}, which is not stored anywhere: {key}", file=sys.stderr)
    print(
        "Add this entry to the list `keys` in the file of `access.keys_file`, or to `access.keys` "
        "in the Ingress' user_config:\n",
        file=sys.stderr,
        flush=True,
    )
    print(
        yaml.safe_dump([entry.model_dump(mode="json", exclude_none=True)], sort_keys=False), end=""
    )
    return 0


def _hash(arguments: argparse.Namespace) -> int:
    key = (getpass("Key: ") if sys.stdin.isatty() else sys.stdin.read()).strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigurationError(
            "A key consists of printable ASCII characters without spaces, so that it fits into an "
            "HTTP header."
        )
    if len(key) > MAX_KEY_CHARS:
        raise ConfigurationError(f"A key has at most {MAX_KEY_CHARS} characters.")
    if len(key) < _MIN_CHARS:
        raise ConfigurationError(
            f"A key of less than {_MIN_CHARS} characters can be guessed. Generate one with "
            "`embedserve key new`."
        )
    print(digest(key))
    return 0
