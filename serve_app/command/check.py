"""`embedserve check`: an end-to-end test of a running service."""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any, Literal

from embedserve_client.errors import EmbedError, HTTPError
from embedserve_client.settings import DEFAULT_URL
from serve_app.command.checked_service import CheckedService, CheckFailed, CheckSkipped
from serve_app.command.progress import print_step
from serve_app.command.service_checks import HEALTH, INFO, checks

_DESCRIPTION = """\
Test a running service from end to end: its health, each API that it speaks, token counts, the
cache, API keys, a stream of 1,000 texts, vectors of the default model, and the metrics. The check
takes some seconds and leaves nothing on the service but cache entries of random texts.
"""
_EPILOG = """\
A key with a limit of requests or tokens per minute may be too small for the check.

exit status: 0 every check succeeded or was skipped, 1 one failed, 2 usage error, 3 the service is
unreachable
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a check ended."""

    name: str
    state: Literal["ok", "failed", "skipped"]
    seconds: float
    remark: str


def add_commands(commands: Any) -> None:
    """Adds `check` to the parser."""
    check = commands.add_parser(
        "check",
        help="test a running service from end to end",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument(
        "url",
        nargs="?",
        metavar="URL",
        help=f"URL of the service (default: EMBEDSERVE_URL, or {DEFAULT_URL})",
    )
    check.add_argument(
        "--key",
        help="API key (default: EMBEDSERVE_API_KEY, which other users of the machine don't see)",
    )
    check.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="timeout of each request (default: %(default)g)",
    )
    check.add_argument("--json", action="store_true", help="print the result as JSON")
    check.set_defaults(run=_check)


def _check(arguments: argparse.Namespace) -> int:
    with closing(CheckedService(arguments.url, arguments.key, arguments.timeout)) as service:
        outcomes = []
        for outcome in run_checks(service):
            outcomes.append(outcome)
            if not arguments.json:
                timing = f"{outcome.name:<26} {outcome.seconds:5.2f} s"
                print_step(outcome.state, f"{timing}  {outcome.remark}")
    failed = [outcome.name for outcome in outcomes if outcome.state == "failed"]
    if arguments.json:
        report = [asdict(outcome) for outcome in outcomes]
        print(json.dumps({"url": service.url, "ok": not failed, "checks": report}))
    else:
        verdict = f"fails at: {', '.join(failed)}" if failed else "works"
        print_step("verdict", f"the service at {service.url} {verdict}")
    return 1 if failed else 0


def run_checks(service: CheckedService) -> Iterator[Outcome]:
    """Yields the outcome of each check as soon as it is known.

    Raises:
        NetworkError: the service is unreachable.
        RequestTimeoutError: it doesn't answer.
    """
    failed_prerequisite = None
    for name, check in checks():
        started_at = time.monotonic()
        state: Literal["ok", "failed", "skipped"] = "ok"
        try:
            if failed_prerequisite:
                raise CheckSkipped(f"`{failed_prerequisite}` has failed")
            remark = check(service)
        except CheckSkipped as reason:
            state, remark = "skipped", str(reason)
        except (CheckFailed, EmbedError) as error:
            if name == HEALTH and isinstance(error, EmbedError):
                raise
            state, remark = "failed", str(error)
            if isinstance(error, HTTPError) and error.status == 401:
                remark += " Set EMBEDSERVE_API_KEY, or pass it with --key."
        except (LookupError, TypeError, ValueError) as error:  # any server may be at the URL
            state, remark = "failed", f"an unexpected reply: {error!r}"
        if state == "failed" and name in (HEALTH, INFO):
            failed_prerequisite = name
        yield Outcome(name, state, round(time.monotonic() - started_at, 3), remark)
