"""HTTP/1.1 on asyncio and httptools: whole requests in, whole responses out.

The handler is called inline, in the order of a connection's requests, so pipelining needs no queue.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import cast

import httptools

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 * 2**20
MAX_HEAD_BYTES = 64 * 2**10
JSON = "application/json"
HOP = ("connection", "upgrade", "http2-settings", "expect")
"""Headers that have been dealt with when an upgrade is declined."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A whole request."""

    method: str
    path: str
    """Percent-encoded, without the query."""
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """A whole response."""

    status: int = 200
    body: bytes = b""
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Request], Response]


class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, handler: Handler, open_connections: set[Connection]) -> None:
        self._handler = handler
        self._open = open_connections
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._stopping = False
        self._num_begun = 0
        self._begin()

    def _begin(self) -> None:
        """Expect a request."""
        self._num_begun += 1
        self._reading = False
        self._in_head = True
        self._fed_bytes = 0
        self._url = b""
        self._headers: dict[str, str] = {}
        self._head_bytes = 0
        self._body: list[bytes] = []
        self._body_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; part of asyncio.Protocol, as are the next five."""
        self._transport = cast(asyncio.Transport, transport)
        self._open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._open.discard(self)
        self._transport = None

    def pause_writing(self) -> None:
        """The client reads slowly: read no further request of it."""
        if self._transport:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """The client has caught up."""
        if self._transport:
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Parse; the parser calls the `on_` methods."""
        num_begun = self._num_begun
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            self._refuse(400, f"not HTTP/1.1: {error}")
        if self._num_begun == num_begun:
            self._count_fed(len(data))

    def stop(self) -> None:
        """Close behind the request that has begun, or at once; what was written is sent first."""
        self._stopping = True
        if self._transport and not self._reading:
            self._transport.close()

    def abort(self) -> None:
        """Close at once; what was not sent is lost."""
        if self._transport:
            self._transport.abort()

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._reading = True

    def on_url(self, url: bytes) -> None:
        """A part of the request's target."""
        self._url += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")
        self._count_head(len(name) + len(value))

    def on_headers_complete(self) -> None:
        """Let a client that asks first go on."""
        self._in_head = False
        if self._headers.get("expect", "").lower() == "100-continue" and self._transport:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._body_bytes += len(body)
        if self._body_bytes > MAX_BODY_BYTES:
            self._refuse(413, f"a body may have {MAX_BODY_BYTES} bytes")
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """Handle the request and write the response."""
        transport = self._transport
        if transport is None or transport.is_closing() or self._parser.should_upgrade():
            return
        request = Request(
            method=self._parser.get_method().decode("latin-1"),
            path=self._url.partition(b"?")[0].decode("latin-1"),
            headers=self._headers,
            body=b"".join(self._body),
        )
        keep_alive = self._parser.should_keep_alive() and not self._stopping
        self._begin()
        try:
            response = self._handler(request)
        except Exception:
            logger.exception("%s %s failed", request.method, request.path)
            response = Response(status=500, body=b'{"error": "internal error"}')
        transport.write(render(response, keep_alive, with_body=request.method != "HEAD"))
        if not keep_alive:
            transport.close()

    def _parse(self, data: bytes) -> None:
        while data:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as offered:
                data = self._without_upgrade() + data[offered.args[0] :]

    def _without_upgrade(self) -> bytes:
        """The head read last, as if no upgrade had been offered: RFC 9110, section 7.8, allows it.

        The parser takes the body behind an offer for another protocol, so it reads the head again.
        """
        method = self._parser.get_method()
        if method == b"CONNECT":
            self._refuse(400, "CONNECT is not supported")
            return b""
        lines = [method + b" " + self._url + b" HTTP/1.1"]
        lines += [f"{n}: {v}".encode("latin-1") for n, v in self._headers.items() if n not in HOP]
        self._parser = httptools.HttpRequestParser(self)
        self._begin()
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _count_fed(self, num_bytes: int) -> None:
        """Bound what the parser keeps of a request that goes on and on."""
        self._fed_bytes += num_bytes
        if self._in_head and self._fed_bytes > MAX_HEAD_BYTES:
            self._refuse(431, f"the head may have {MAX_HEAD_BYTES} bytes")
        elif self._fed_bytes > MAX_HEAD_BYTES + MAX_BODY_BYTES:
            self._refuse(413, f"a body may have {MAX_BODY_BYTES} bytes")

    def _count_head(self, num_bytes: int) -> None:
        self._head_bytes += num_bytes
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, f"the head may have {MAX_HEAD_BYTES} bytes")

    def _refuse(self, status: int, message: str) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        body = json.dumps({"error": message}).encode()
        self._transport.write(render(Response(status=status, body=body), False, with_body=True))
        self._transport.close()


def render(response: Response, keep_alive: bool, *, with_body: bool) -> bytes:
    """Bytes of a response."""
    lines = [
        f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}",
        f"content-type: {response.content_type}",
        f"content-length: {len(response.body)}",
        *(f"{name}: {value}" for name, value in response.headers.items()),
    ]
    if not keep_alive:
        lines.append("connection: close")
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    return head + response.body if with_body else head
