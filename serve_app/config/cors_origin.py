"""`CorsOrigin`: an origin as browsers send it, or a pattern of origins."""

import re
from typing import Annotated

from pydantic import AfterValidator

_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://([a-z0-9*_-]+(\.[a-z0-9*_-]+)*|\[[0-9a-f:]+\])"
    r"(:(?P<port>[1-9][0-9]{0,4}|\*))?"
)
#: Ports that browsers leave out of the header `Origin`.
_DEFAULT_PORTS = {("http", "80"), ("https", "443")}


def _validate(origin: str) -> str:
    """Returns the origin, unless no browser sends a matching one."""
    if origin in ("*", "null"):
        return origin
    match = _ORIGIN.fullmatch(origin)
    if match is None or (match["scheme"], match["port"]) in _DEFAULT_PORTS:
        raise ValueError(
            "no browser sends such an origin. Write scheme and host in lower case, and the port "
            "unless it is the default, without path or trailing slash: `https://app.example`, "
            "`https://*.app.example`, `http://localhost:3000`, `chrome-extension://*`, or `*`"
        )
    return origin


CorsOrigin = Annotated[str, AfterValidator(_validate)]
