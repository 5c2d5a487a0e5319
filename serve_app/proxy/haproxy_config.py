"""Completes the HAProxy configuration that Ray Serve generates.

Ray's text → sections → changes in `defaults`, the frontend and the backends → text
"""

import json
import re
from collections.abc import Iterator

#: Headers that Ray reads before the application, some of which it can't decode without a 500.
_RAY_HEADERS = (
    "x-session-id",
    "x-request-timeout-seconds",
    "x-request-disconnect-disabled",
    "serve_multiplexed_model_id",
    "serve-multiplexed-model-id",
)
#: A client's time limit, in whole seconds; Ray's proxy enforces it, where no replica is left that
#: would. The seconds that are added let a replica answer first, in the dialect of the request.
_TIME_LIMIT = (
    "    http-request set-header x-request-timeout-seconds %[req.hdr(x-request-timeout-s),add(2)]"
    " if METH_POST { req.hdr(x-request-timeout-s) -m reg ^[0-9]{1,6}([.][0-9]*)?$ }\n"
)
#: Longest time for a client to send a request's header.
_HEADER_TIMEOUT_S = 10
#: HAProxy's limits for headers. It answers a request beyond them in HTML, before any rule applies.
#: A buffer also bounds the requests that HAProxy can send again when a replica dies.
_LIMITS = "    tune.bufsize 32768\n    tune.http.maxhdr 1000\n"
#: Digits of the largest `Content-Length` that fits into 63 bits.
_MAX_DIGITS = 19
#: Bodies of up to this size fit into a buffer, next to the header.
_MAX_BUFFERED_BYTES = 24_000
#: Longest time for a client to send such a body.
_BODY_TIMEOUT_S = 30
#: A replica whose machine answers nothing for six seconds has failed, however long a request takes:
#: the kernel of a machine that runs acknowledges data and probes even while the replica computes.
_DEAD_MACHINE = (
    "option srvtcpka",
    "srvtcpka-idle 3s",
    "srvtcpka-intvl 1s",
    "srvtcpka-cnt 3",
    "default-server tcp-ut 6s",
)
#: The environment variable with the descriptor of the listening socket that HAProxy inherits.
LISTENER_VARIABLE = "EMBEDSERVE_HAPROXY_LISTENER"
_HTTP_BIND = re.compile(r"^(frontend http_frontend\n    bind )(\S*):(\d+)$", re.MULTILINE)
_APPLICATION = re.compile(r"^    use_backend ", re.MULTILINE)
#: Suffix of the copy of a backend that serves GET and HEAD requests.
_READS = "-reads"
#: HAProxy's own errors: status → error code, message, seconds of `Retry-After` or None.
_ERRORS: dict[int, tuple[str, str, int | None]] = {
    400: (
        "invalid_request",
        "The request is not valid HTTP, or the client closed its sending side before the response.",
        None,
    ),
    404: ("unknown_url", "No application is served at this path.", None),
    408: (
        "request_timeout",
        f"The headers did not arrive within {_HEADER_TIMEOUT_S} s, or the body not within "
        f"{_BODY_TIMEOUT_S} s.",
        None,
    ),
    413: ("body_too_large", "The request is too large.", None),
    500: ("internal_error", "The proxy failed in a way it did not expect.", None),
    502: ("unavailable", "The replica ended before its response; try again.", 1),
    503: ("unavailable", "The service is starting, or its replicas are down; try again.", 1),
    504: ("deadline_exceeded", "The replica did not respond in time; try again.", 1),
}
#: Errors in plain text → the status that replaces them. 400 and 500 are by the HTTP server of a
#: replica (control characters in a header; a replica that ends), 408 and 503 by Ray.
_PLAIN_ERRORS = {400: 400, 408: 504, 500: 500, 503: 503}


def complete(config: str) -> str:
    """Returns Ray's configuration with the behavior that this service promises.

    - Splicing is off: while the kernel moves a body, HAProxy doesn't see that the client left.
    - HAProxy's own errors, and those of Ray and of its HTTP servers, are JSON, with `Retry-After`
      where a retry helps.
    - The time limit that a client sets also holds while no replica runs. Ray's proxy lets requests
      wait for one.
    - A client that sends its header slowly is disconnected.
    - A body that fits into a buffer is received before a replica is selected: only a complete
      request can be sent again when a replica dies.
    - A machine that vanishes without closing its connections is noticed within seconds. Otherwise
      its requests in flight wait for minutes.
    - `x-forwarded-for` tells replicas the address of the client, unless it is set already.
    - A request whose `Content-Length` overflows ends its connection.
    - Headers that Ray interprets are removed, since Ray answers some values with a plain 500.
    - Replies don't name the HTTP server of the replicas.
    - GET and HEAD requests are answered although the client has closed its sending side, which RFC
      9112 (section 9.6) allows. For POST requests that means that the client left.

    A configuration that is complete already stays as it is.
    """
    if _LIMITS in config:
        return config
    sections = re.split(r"^(?=\S)", config, flags=re.MULTILINE)
    return "".join(text for section in sections for text in _complete_section(section, config))


def has_application(config: str) -> bool:
    """Whether requests reach an application."""
    return _APPLICATION.search(config) is not None


def http_address(config: str) -> tuple[str, int] | None:
    """Returns the host and the port at which HTTP is served; None if it is an inherited socket."""
    bind = _HTTP_BIND.search(config)
    return None if bind is None else (bind[2].strip("[]"), int(bind[3]))


def with_inherited_listener(config: str) -> str:
    """Returns a configuration whose HAProxy serves HTTP at the socket that it inherits."""
    return _HTTP_BIND.sub(rf"\1fd@${{{LISTENER_VARIABLE}}}", config)


def without_admin_socket(config: str) -> str:
    """Returns a configuration whose HAProxy doesn't take the admin socket of another one."""
    return re.sub(r"^    stats socket .*\n", "", config, flags=re.MULTILINE)


def _complete_section(section: str, config: str) -> Iterator[str]:
    kind, _, name = section.partition("\n")[0].partition(" ")
    if kind == "global":
        yield section + _LIMITS
    elif kind == "defaults":
        yield _complete_defaults(section)
    elif name == "http_frontend":
        yield _complete_frontend(section)
    elif name == "default_backend":
        status = 404 if has_application(config) else 503
        yield f"{kind} {name}\n    http-request return status {status} {_error_body(status)}\n"
    elif kind == "backend" and "\n    option httpchk" in section:
        yield section
        yield _reads_backend(section, name)
    else:
        yield section


def _complete_defaults(section: str) -> str:
    section = re.sub(r"^    (errorfile|option splice-).*\n", "", section, flags=re.MULTILINE)
    errors = [
        f"    http-error status {status} {_error_body(status)}\n"
        for status in _ERRORS
        if status != 404  # HAProxy itself has no such error
    ]
    added = [
        f"timeout http-request {_HEADER_TIMEOUT_S}s",
        *_DEAD_MACHINE,
        "option forwardfor if-none",
    ]
    return section + "".join(f"    {line}\n" for line in added) + "".join(errors)


def _complete_frontend(section: str) -> str:
    # HAProxy takes such a length for another one, and the rest of the body for a request.
    rules = [f"    http-request reject if {{ req.hdr(content-length) -m len gt {_MAX_DIGITS} }}\n"]
    rules += [f"    http-request del-header {name}\n" for name in _RAY_HEADERS]
    rules.append(_TIME_LIMIT)
    rules.append(
        "    http-request del-header x-request-id"
        " if { req.hdr(x-request-id) -m reg [^\\x21-\\x7e] }\n"
    )
    rules.append(
        f"    http-request wait-for-body time {_BODY_TIMEOUT_S}s"
        f" if METH_POST {{ req.hdr_val(content-length) le {_MAX_BUFFERED_BYTES} }}\n"
    )
    rules += [
        f"    http-response return status {status} {_error_body(status)}"
        f" if {{ status {plain} }} {{ res.hdr(content-type) -m beg text/plain }}\n"
        for plain, status in _PLAIN_ERRORS.items()
    ]
    # Ray starts uvicorn without a setting for its header `server: uvicorn`.
    rules.append("    http-response del-header server\n")
    section = re.sub(r"^    bind .*\n", lambda m: m[0] + "".join(rules), section, flags=re.M)
    return re.sub(
        r"^    use_backend (\S+) if (is_\S+)\n",
        rf"    use_backend \1{_READS} if METH_GET \2\n\g<0>",
        section,
        flags=re.MULTILINE,
    )


def _reads_backend(section: str, name: str) -> str:
    """Returns a copy of a backend without `abortonclose`, with the health of the same servers."""
    section = section.replace(f"backend {name}\n", f"backend {name}{_READS}\n", 1)
    section = re.sub(
        r"^    (option httpchk|http-check|default-server).*\n", "", section, flags=re.MULTILINE
    )
    section = re.sub(
        r"^(    server (\S+) \S+) check( .*?)?( backup)?$",
        rf"\1 track {name}/\2\4",
        section,
        flags=re.MULTILINE,
    )
    return f"{section}    no option abortonclose\n"


def _error_body(status: int) -> str:
    """Returns the arguments of `http-error` or `return` for an error in OpenAI's envelope."""
    code, message, retry_after_s = _ERRORS[status]
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": None, "code": code}
    body = json.dumps({"error": error, "detail": message})
    header = "" if retry_after_s is None else f" hdr retry-after {retry_after_s}"
    return f"content-type application/json string '{body}'{header}"
