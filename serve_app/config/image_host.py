"""`ImageHost`: a host from which images are fetched."""

import re
from typing import Annotated

from pydantic import AfterValidator

_HOST = re.compile(
    r"((\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(:(?P<port>[1-9][0-9]{0,4}))?"
)
_MAX_PORT = 65535


def _validate(host: str) -> str:
    """Returns the host, unless no URL can name it."""
    match = _HOST.fullmatch(host)
    if match is None or int(match["port"] or 1) > _MAX_PORT:
        raise ValueError(
            "is not a host. Write its name in lower case, without scheme and path, and with the "
            "port unless it is 80 or 443: `images.example.com`, `*.example.com`, `minio:9000`, "
            "`10.0.0.7`, `[fd00::7]:8080`"
        )
    return host


ImageHost = Annotated[str, AfterValidator(_validate)]
