"""HTTP/1.1 connections of a service without a proxy: limits on headers, and errors as JSON.

bytes → uvicorn's parser → application
"""

from asyncio import TimerHandle, Transport
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from serve_app.errors import ClientError, HeaderTimeout, HeaderTooLarge, InvalidRequest
from serve_app.web.dialects.openai import render_error

#: Longest time for a client to send the header of a request.
HEADER_TIMEOUT_S = 10.0
MAX_HEADER_BYTES = 32768
#: Time to read an error. Closing a connection with unread data resets it, which can discard the
#: error.
_LINGER_S = 1.0
#: How long an idle connection is kept when the service stops. A client that sends a request at the
#: moment at which its connection closes can't know whether it was read.
_LAST_REQUEST_S = 0.5
_INVALID_HTTP = "The request is not valid HTTP."


class HttpProtocol(HttpToolsProtocol):
    """One connection. Adds to uvicorn's protocol what a proxy would do."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_header = True
        self._header_bytes = 0
        self._is_refused = False
        self._header_timer: TimerHandle | None = None
        self._is_stopping = False
        self._idle_timer: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Limits the time to the first request."""
        super().connection_made(transport)
        self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the timers."""
        self._stop_header_timer()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parses data; limits the size of a header and the time until it is complete."""
        if self._is_refused:
            return
        super().data_received(data)
        if not self._in_header or self._is_refused:
            return
        self._header_bytes += len(data)
        if self._header_bytes > MAX_HEADER_BYTES:
            self._refuse(
                HeaderTooLarge(f"The header of a request is limited to {MAX_HEADER_BYTES} bytes.")
            )
        elif self._header_timer is None:
            self._start_header_timer()

    def on_message_begin(self) -> None:
        """Expects a header."""
        super().on_message_begin()
        self._in_header, self._header_bytes = True, 0

    def on_headers_complete(self) -> None:
        """Starts the request."""
        self._in_header = False
        self._stop_header_timer()
        super().on_headers_complete()
        if self._is_stopping:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        """Closes after the request in flight, or after one that arrives right now."""
        self._is_stopping = True
        if self._is_idle():
            self._idle_timer = self.loop.call_later(_LAST_REQUEST_S, self._close_if_idle)
        else:
            super().shutdown()

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _close_if_idle(self) -> None:
        """Closes, unless a request has begun: its response, or the header's timer, closes."""
        if self._is_idle() and not (self._in_header and self._header_bytes):
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answers data that isn't HTTP, unless the response to a request before it is due."""
        cycle = self.cycle
        if cycle is not None and not cycle.more_body and not cycle.response_complete:
            cycle.keep_alive = False
            self.flow.pause_reading()
        else:
            self._refuse(InvalidRequest(_INVALID_HTTP))

    def _start_header_timer(self) -> None:
        self._header_timer = self.loop.call_later(HEADER_TIMEOUT_S, self._on_header_timeout)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _on_header_timeout(self) -> None:
        if not self.transport.is_closing():
            message = f"The header of a request did not arrive within {HEADER_TIMEOUT_S:g} s."
            self._refuse(HeaderTimeout(message))

    def _refuse(self, error: ClientError) -> None:
        """Answers in OpenAI's format, since no path selects a dialect, and closes."""
        status, body, _ = render_error(error)
        self.transport.write(
            STATUS_LINE[status]
            + b"content-type: application/json\r\nconnection: close\r\n"
            + b"content-length: %d\r\n\r\n" % len(body)
            + body
        )
        self.transport.write_eof()
        self._is_refused = True
        self._stop_header_timer()
        self._header_timer = self.loop.call_later(_LINGER_S, self.transport.close)
