"""Clients that send requests until the service accepts no more connections.

python -m tests.drain_load URL [--key KEY]      prints the counts as JSON
"""

import argparse
import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass, field

import aiohttp

CLIENTS = 20
_TEXTS = 4


@dataclass(slots=True)
class Counts:
    """What became of the requests."""

    succeeded: int = 0
    refused: int = 0  #: connections that the service didn't accept: the clients' last requests
    failures: list[str] = field(default_factory=list)  #: of requests on accepted connections


async def send_until_refused(
    url: str,
    *,
    key: str | None = None,
    dimensions: int = 384,
    time_limit_s: float = 120.0,
    counts: Counts | None = None,
) -> Counts:
    """Returns the counts once each client has been refused.

    Each client keeps a connection, and sends one request after another, always with new texts.

    Args:
        url: of the service.
        key: API key.
        dimensions: of the vectors.
        time_limit_s: after which clients stop all the same.
        counts: what is counted meanwhile; None: new ones.
    """
    counts = Counts() if counts is None else counts
    deadline = time.monotonic() + time_limit_s
    headers = {"authorization": f"Bearer {key}"} if key else {}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        clients = (_send(session, url, n, dimensions, deadline, counts) for n in range(CLIENTS))
        await asyncio.gather(*clients)
    return counts


async def _send(
    session: aiohttp.ClientSession,
    url: str,
    client: int,
    dimensions: int,
    deadline: float,
    counts: Counts,
) -> None:
    number = 0
    while time.monotonic() < deadline:
        number += 1
        texts = [
            f"client {client} request {number} text {n} " + "word " * 40 for n in range(_TEXTS)
        ]
        try:
            async with session.post(f"{url}/v1/embeddings", json={"input": texts}) as reply:
                body = await reply.json()
                vectors = [entry["embedding"] for entry in body.get("data", [])]
                if reply.status == 200 and [len(v) for v in vectors] == [dimensions] * _TEXTS:
                    counts.succeeded += 1
                else:
                    counts.failures.append(f"{reply.status} {str(body)[:200]}")
        except aiohttp.ClientConnectorError:
            counts.refused += 1
            return
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            counts.failures.append(repr(error))


def main() -> int:
    """Prints the counts; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--key")
    arguments = parser.parse_args()
    counts = asyncio.run(send_until_refused(arguments.url, key=arguments.key))
    print(json.dumps(asdict(counts)))
    return 1 if counts.failures else 0


if __name__ == "__main__":
    sys.exit(main())
