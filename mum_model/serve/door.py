"""Every HTTP request passes here first: it gets an id, a body of limited size and time, and a line in the log.

What requests and answers hold in memory is counted here, until it is used or taken.
"""

import asyncio
import json
import logging
import re
import uuid
from time import perf_counter
from typing import Any

from mum_model.serve.logs import REQUEST_ID
from mum_model.serve.metrics import ERRORS

logger = logging.getLogger(__name__)

VERSION_IN_PATH = re.compile(r"(/v2/models/[^/:]+)/versions/([^/]+)")
"""kserve knows no versions; a version of a model is a model of its own, named `model:version`."""

SAFE_ID = re.compile(r"[\w.:+=/-]{1,128}")

PROBES = ("/v2/health/live", "/v2/health/ready", "/metrics")
"""Asked every few seconds, so their success is not worth a line."""

KINDS = {400: "format", 408: "format", 413: "size", 503: "overloaded"}
"""How a refusal is counted."""


PART = 1 << 18
"""Bytes of an answer that are handed over at once; the next part waits until the client has taken most of them."""


class _RefusedError(Exception):
    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class Door:
    """An ASGI application around another."""

    def __init__(self, app: Any, max_bytes: int, max_held_bytes: int, body_seconds: float):
        """Wrap an application.

        Args:
            app: The application.
            max_bytes: Of a request's body; more is refused with 413, by its header alone where it has one.
            max_held_bytes: Of the bodies of all requests that are being read or answered, and of answers that clients
                have not taken yet; more is refused with 503.
            body_seconds: For a body to arrive; a slower one is refused with 408.
        """
        self._app, self._max_bytes, self._max_held_bytes = app, max_bytes, max_held_bytes
        self._body_seconds = body_seconds
        self._held_bytes = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection's request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if SAFE_ID.fullmatch(given) else uuid.uuid4().hex
        REQUEST_ID.set(request_id)
        scope["path"] = VERSION_IN_PATH.sub(r"\1:\2", scope["path"])
        start, status = perf_counter(), 500
        parts: list[bytes] = []

        async def send_with_id(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                # kserve says 501, "not implemented", to a verb or parameter that is nowhere: the client's mistake.
                status = message["status"] = 400 if message["status"] == 501 else message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
                await send(message)
            else:
                await self._send_body(message, send)

        try:
            await self._read(parts, headers, receive)
            await self._app(scope, _replayed(b"".join(parts), receive), send_with_id)
        except _RefusedError as refusal:
            ERRORS.labels(KINDS[refusal.status]).inc()
            await _answer(send_with_id, refusal)
        finally:
            self._held_bytes -= sum(map(len, parts))
            if status >= 400 or scope["path"] not in PROBES:
                facts = {"method": scope["method"], "path": scope["path"], "status": status}
                logger.info("request", extra={"facts": {**facts, "seconds": round(perf_counter() - start, 4)}})

    async def _read(self, parts: list[bytes], headers: dict[bytes, bytes], receive: Any) -> None:
        """Read the whole body."""
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._max_bytes:
            raise self._too_large(f"{length.decode('latin-1')} bytes")
        try:
            await asyncio.wait_for(self._read_parts(parts, receive), self._body_seconds)
        except TimeoutError:
            raise _RefusedError(408, f"the body did not arrive within {self._body_seconds:g} s") from None

    async def _read_parts(self, parts: list[bytes], receive: Any) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _RefusedError(400, "the client went away before its body had arrived")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            self._held_bytes += len(parts[-1])
            if size > self._max_bytes:
                raise self._too_large(f"more than {self._max_bytes} bytes")
            if size and self._held_bytes > self._max_held_bytes:  # a probe has no body and is always welcome
                raise _RefusedError(
                    503, f"requests of {self._max_held_bytes} bytes are being answered; try again in 1 s"
                )
            more = message.get("more_body", False)

    async def _send_body(self, message: Any, send: Any) -> None:
        """Hand an answer over as fast as the client takes it."""
        body, taken = message.get("body", b""), 0
        self._held_bytes += len(body)
        try:
            while len(body) - taken > PART:
                await send({**message, "body": body[taken : taken + PART], "more_body": True})
                taken += PART
            await send({**message, "body": body[taken:]})
        finally:
            self._held_bytes -= len(body)

    def _too_large(self, got: str) -> _RefusedError:
        return _RefusedError(
            413, f"expected a body of at most {self._max_bytes} bytes, got {got}; send fewer images at once"
        )


def _replayed(body: bytes, receive: Any) -> Any:
    """A `receive` that gives a body at once."""
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive_body() -> Any:
        return next(messages, None) or await receive()

    return receive_body


async def _answer(send: Any, refusal: _RefusedError) -> None:
    body = json.dumps({"error": str(refusal)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    # The rest of the body is not read, so this connection cannot carry another request.
    headers.append((b"connection", b"close"))
    if refusal.status == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
