"""`embedserve key`: makes API keys, and the digests that the service knows them by."""

import argparse
import sys
from getpass import getpass
from typing import Any

import yaml
from pydantic import ValidationError

from serve_app.access.keys import MAX_KEY_CHARS, describe_invalid_keys, digest, generate_key
from serve_app.config import ApiKey
from serve_app.errors import ConfigurationError

#: Fewer may be guessed, and a digest tells whoever reads it whether a guess is right.
_MIN_CHARS = 22


def add_commands(commands: Any) -> None:
    """Adds `key` with its own commands."""
    key = commands.add_parser("key", help="make an API key, or the digest of one")
    kinds = key.add_subparsers(required=True, metavar="COMMAND")

    new = kinds.add_parser(
        "new",
        help="make a key, and print the entry for the configuration",
        description="Makes a key and shows it this once. The entry for the configuration goes to "
        "the standard output, the key itself to the standard error.",
    )
    new.add_argument("name", help="what logs, metrics and quotas call it")
    new.add_argument("--models", nargs="+", metavar="MODEL", help="those that it may use")
    new.add_argument("--lane", choices=("interactive", "bulk"), help="of all its requests")
    new.add_argument("--requests-per-minute", type=int, metavar="N")
    new.add_argument("--tokens-per-minute", type=int, metavar="N")
    new.add_argument("--concurrent-tokens", type=int, metavar="N")
    new.set_defaults(run=_new)

    known = kinds.add_parser(
        "hash",
        help="print the digest of a key that there is already",
        description="Reads a key from the standard input, or asks for it, and prints its digest.",
    )
    known.set_defaults(run=_hash)


def _new(arguments: argparse.Namespace) -> int:
    key = generate_key()
    given = {name: getattr(arguments, name, None) for name in ApiKey.model_fields}
    entry = {name: value for name, value in given.items() if value is not None}
    try:
        checked = ApiKey.model_validate({**entry, "sha256": digest(key)})
    except ValidationError as error:
        raise ConfigurationError(
            f"No such key can be made: {describe_invalid_keys(error)}."
        ) from None
    print(f"The key of {checked.name}, which is kept nowhere: {key}", file=sys.stderr)
    print(
        "Put this into the list under `keys` in the file of `access.keys_file`, or under "
        "`access.keys` in the Ingress' user_config:\n",
        file=sys.stderr,
        flush=True,
    )
    listed = checked.model_dump(mode="json", exclude_none=True)
    print(yaml.safe_dump([listed], sort_keys=False), end="")
    return 0


def _hash(arguments: argparse.Namespace) -> int:
    key = (getpass("Key: ") if sys.stdin.isatty() else sys.stdin.read()).strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigurationError("A key is one word of ASCII characters, or no header can hold it.")
    if len(key) > MAX_KEY_CHARS:
        raise ConfigurationError(f"A key has {MAX_KEY_CHARS} characters at the most.")
    if len(key) < _MIN_CHARS:
        raise ConfigurationError(
            f"A key of less than {_MIN_CHARS} characters may be guessed: make one with "
            "`embedserve key new`."
        )
    print(digest(key))
    return 0
