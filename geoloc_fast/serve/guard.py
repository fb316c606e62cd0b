"""Check who may ask, and how much at once, before any address is reached and any body is parsed.

- Host and Origin are checked, so that no page of another site and no name that suddenly means this machine can use a
  service on loopback. There are no cookies, so there is nothing for another site to ride on.
- Beyond loopback a bearer token is needed, compared in constant time.
- A body may have so many bytes, and parts, and take so many seconds; a slow one holds nothing but its own connection.
- What large bodies hold together is bounded; small ones are taken beside them.
- Every answer has a request id, and headers that let the page load nothing from anywhere else.
- One line of JSON a request goes to the log: never a file name, a position, a token or an address of a client.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Guard", "Limits", "problem"]

LOG = logging.getLogger("geoloc_fast.serve")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_OPEN = ("/healthz", "/readyz")
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Limits:
    """Attributes:
    body_bytes: of one request.
    body_seconds: until all of it is there.
    open: requests that are being received or answered at once.
    small_bytes: of a body that is always taken; what others have beyond it is counted together.
    shared_bytes: that all of them may have beyond it.
    parts: of a form.
    """

    body_bytes: int = 64 << 20
    body_seconds: float = 30.0
    open: int = 128
    small_bytes: int = 2 << 20
    shared_bytes: int = 384 << 20
    parts: int = 600


def problem(status: int, title: str, detail: str, kind: str) -> tuple[int, bytes]:
    """Status and body of an error as RFC 9457 has it; `kind` is stable, for programs."""
    content = {"type": f"urn:geoloc-fast:{kind}", "title": title, "status": status, "detail": detail}
    return status, json.dumps(content).encode()


class Guard:
    """ASGI middleware.

    Args:
        hosts: names that this service answers to, without ports.
        token: needed for every address but those that say whether it lives; None: nobody has to show one.
        counted: called with (status, seconds, route) of every request.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        *,
        hosts: frozenset[str],
        token: str | None = None,
        limits: Limits | None = None,
        counted: Callable[[int, float, str], None] | None = None,
    ) -> None:
        self.app = app
        self.hosts = hosts
        self.token = token
        self.limits = limits or Limits()
        self.counted = counted
        self._open = 0
        self._shared = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        given = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        known = given.get("x-request-id", "")
        request_id = known if _REQUEST_ID.fullmatch(known) else uuid.uuid4().hex
        status = 500
        begun = False
        held = _Held()

        async def answer(message: MutableMapping[str, Any]) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                begun, status = True, message["status"]
                names = {name.lower() for name, _ in message["headers"]}
                extra = {**HEADERS, "x-request-id": request_id, "cache-control": "no-store"}
                message["headers"] = [
                    *message["headers"],
                    *((n.encode(), v.encode()) for n, v in extra.items() if n.encode() not in names),
                ]
            await send(message)

        async def refuse(found: tuple[int, bytes], **headers: str) -> None:
            code, body = found
            if code == 503:
                headers["retry_after"] = "1"
            lines = [(b"content-type", b"application/problem+json"), (b"content-length", str(len(body)).encode())]
            lines += [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
            await answer({"type": "http.response.start", "status": code, "headers": lines})
            await answer({"type": "http.response.body", "body": body})

        self._open += 1
        try:
            refused = self._refused(scope, given)
            if refused is not None:
                await refuse(refused)
                return
            wrong = await self._body(receive, given, held)
            if wrong is not None:
                await refuse(wrong, connection="close")
                return

            async def replay() -> MutableMapping[str, Any]:
                if held.body is None:
                    return await receive()  # later only that the client has gone
                body, held.body = held.body, None  # forgotten here as soon as the form is read
                return {"type": "http.request", "body": bytes(body), "more_body": False}

            await self.app(scope, replay, answer)
        except Exception as error:
            # Where it happened, and not what: the message of an error may repeat what a client sent.
            steps = [f"{Path(step.filename).name}:{step.lineno}" for step in traceback.extract_tb(error.__traceback__)]
            LOG.error(json.dumps({"request": request_id, "error": type(error).__name__, "at": steps[-4:]}))
            if not begun:
                await refuse(
                    problem(500, "Something went wrong", "The log has the details under this request id.", "internal")
                )
        finally:
            self._open -= 1
            self._shared -= held.shared
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "none")
            if self.counted is not None:
                self.counted(status, seconds, route)
            LOG.info(
                json.dumps(
                    {
                        "request": request_id, "method": scope["method"], "route": route, "status": status,
                        "ms": round(1000 * seconds, 1),
                    }
                )
            )  # fmt: skip

    def _refused(self, scope: Scope, given: dict[str, str]) -> tuple[int, bytes] | None:
        if sum(name.lower() == b"host" for name, _ in scope["headers"]) != 1 or _name(given["host"]) not in self.hosts:
            return problem(421, "Not here", "This service does not answer to that host name.", "host")
        origin = given.get("origin")
        if origin is not None and origin not in (f"http://{given['host']}", f"https://{given['host']}"):
            return problem(403, "Another site", "Pages of other sites may not use this service.", "origin")
        if self.token is not None and scope["path"] not in _OPEN and not scope["path"].startswith("/static/"):
            shown = given.get("authorization", "")
            page = scope["path"] == "/" and scope["method"] == "GET"  # the page itself asks for the token
            if not page and not hmac.compare_digest(shown.encode(), f"Bearer {self.token}".encode()):
                return problem(401, "A token is needed", "Send Authorization: Bearer and the token.", "token")
        if self._open > self.limits.open:
            return problem(503, "Busy", "Too many requests are open; try again in a moment.", "busy")
        return None

    async def _body(self, receive: Receive, given: dict[str, str], held: _Held) -> tuple[int, bytes] | None:
        """Receives it into `held`; what is wrong with it, if anything is."""
        limits = self.limits
        large = problem(413, "Too large", f"At most {limits.body_bytes} bytes per request.", "large")
        length = given.get("content-length")
        if length is not None and (not length.isascii() or not length.isdigit() or len(length) > 15):
            return problem(400, "Bad length", "Content-Length is no number.", "length")
        if length is not None and int(length) > limits.body_bytes:
            return large
        body = bytearray()
        until = time.monotonic() + limits.body_seconds
        more = True
        while more:
            try:
                message = await asyncio.wait_for(receive(), max(0.0, until - time.monotonic()))
            except asyncio.TimeoutError:
                return problem(408, "Too slow", f"A request has {limits.body_seconds:g} seconds.", "slow")
            if message["type"] == "http.disconnect":
                return problem(400, "Cut short", "The request ended before its body did.", "cut")
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > limits.body_bytes:
                return large
            beyond = max(0, len(body) - limits.small_bytes) - held.shared
            if self._shared + beyond > limits.shared_bytes:
                return problem(503, "Busy", "Too many large requests are open; try again in a moment.", "busy")
            self._shared += beyond
            held.shared += beyond
        # Counting is a thousand times faster than the parser that would find it out.
        if _parts(body, given.get("content-type", "")) > limits.parts:
            return problem(400, "Too many parts", f"At most {limits.parts} parts a form.", "parts")
        held.body = body
        return None


@dataclass
class _Held:
    """Of one request."""

    body: bytearray | None = None
    shared: int = 0


def _parts(body: bytearray, kind: str) -> int:
    found = re.search(r'boundary="?([^";,]+)', kind)
    if found is not None:
        return body.count(b"--" + found[1].strip().encode("latin-1"))
    return body.count(b"&") if kind.startswith("application/x-www-form-urlencoded") else 0


def _name(host: str) -> str:
    """Without the port; of an IPv6 address with its brackets."""
    if host.startswith("["):
        return host[: host.find("]") + 1].lower()
    return host.rsplit(":", 1)[0].lower() if host.count(":") == 1 else host.lower()
