"""What a local server refuses: other hosts' names, other pages' requests, and bodies without end.

Any page that is open in a browser can send requests to 127.0.0.1. It can also have its own name resolve to 127.0.0.1
(DNS rebinding), and is then of the same origin as this server: so the Host header must be a name of this machine, and a
request that changes or computes anything must come from a page of this server.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from epsball.serve.images import MOST_BYTES

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

HOSTS = ("127.0.0.1", "localhost", "[::1]")
OWN = re.compile(rf"({'|'.join(map(re.escape, HOSTS))})(:[0-9]*)?", re.IGNORECASE)
MOST_BODY = 2 * MOST_BYTES + (64 << 10)
"""Bytes of a request: an image in base64 and the question about it."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: dict[str, str] = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}


class Guard:
    """Lets a request through to `inner` if it comes from this machine's own page, and adds headers to the answer."""

    def __init__(self, inner: Application) -> None:
        self.inner = inner

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # no web sockets, and nothing to start or stop
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self.refusal(scope["method"], headers)
        body = b""
        if refused is None:
            body, refused = await self._body(headers, receive)
        if refused is not None:
            status, text = refused
            await _refuse(status, text, send)
            return
        parts = [{"type": "http.request", "body": body, "more_body": False}]

        async def whole() -> Message:
            return parts.pop() if parts else await receive()

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_encoded(HEADERS)]
            await send(message)

        await self.inner(scope, whole, guarded)

    @staticmethod
    def refusal(method: str, headers: dict[str, str]) -> tuple[int, str] | None:
        """Status and reason of a refusal, by method and headers; None for a request that passes.

        >>> Guard.refusal("GET", {"host": "localhost:8000"}) is None
        True
        >>> Guard.refusal("GET", {"host": "rebound.example:8000"})[0]
        421
        """
        host = headers.get("host", "")
        if not OWN.fullmatch(host):
            return 421, f"`Host` must be {' or '.join(HOSTS)}, got {host!r}: this page is for its own machine"
        if method in ("GET", "HEAD"):
            return None
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        if (origin is not None and origin.lower() != f"http://{host.lower()}") or site not in ("same-origin", "none"):
            return 403, f"`Origin` must be http://{host}, got {origin!r}: only its own page may ask this server"
        return None

    @staticmethod
    async def _body(headers: dict[str, str], receive: Receive) -> tuple[bytes, tuple[int, str] | None]:
        """The whole body, if it is not too long."""
        length = headers.get("content-length", "0")
        too_long = 413, f"the request must have at most {MOST_BODY:,} bytes; an image at most {MOST_BYTES >> 20} MB"
        if not length.isdecimal() or int(length) > MOST_BODY:
            return b"", too_long
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return b"", (400, "the request must be sent whole; it was cut off")
            body += message.get("body", b"")
            if len(body) > MOST_BODY:
                return b"", too_long
            if not message.get("more_body", False):
                return bytes(body), None


async def _refuse(status: int, text: str, send: Send) -> None:
    body = json.dumps({"error": text}).encode()
    headers = HEADERS | {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
    }
    await send({"type": "http.response.start", "status": status, "headers": _encoded(headers)})
    await send({"type": "http.response.body", "body": body})


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
