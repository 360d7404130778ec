"""What may be inside at once: a number of requests and a number of bytes. Everything else is told to come back."""

from __future__ import annotations

from types import TracebackType

import anyio
from starlette.requests import Request

from mcfhe.service.refusal import Refusal
from mcfhe.service.settings import ServiceSettings


class Gate:
    """Counts requests and body bytes inside. Used from the event loop only."""

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self.requests = 0
        self.bytes = 0
        self._max_requests = max_requests
        self._max_bytes = max_bytes

    def enter(self) -> Ticket:
        """A ticket for one request; Refusal 429 when all are out."""
        if self.requests >= self._max_requests:
            raise Refusal(429, f"busy: {self.requests} requests are waiting; come back later", retry_after_s=1)
        self.requests += 1
        return Ticket(self)

    def reserve(self, count: int) -> None:
        """Room for ``count`` more bytes; Refusal 429 if there is none."""
        if self.bytes + count > self._max_bytes:
            raise Refusal(429, "busy: too many bytes are waiting; come back later", retry_after_s=1)
        self.bytes += count


class Ticket:
    """The place of one request. Given back at the end of a ``with`` block unless :meth:`keep` was called in it."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._bytes = 0
        self._kept = False
        self._released = False

    def reserve(self, count: int) -> None:
        self._gate.reserve(count)
        self._bytes += count

    def keep(self) -> None:
        """Whoever works on the request calls :meth:`release` when that is done."""
        self._kept = True

    def release(self) -> None:
        if not self._released:
            self._released = True
            self._gate.requests -= 1
            self._gate.bytes -= self._bytes

    def __enter__(self) -> Ticket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._kept:
            self.release()


async def read_body(request: Request, ticket: Ticket, settings: ServiceSettings, limit: int) -> bytes:
    """The whole body, at most ``limit`` bytes, charged to the ticket as it grows.

    Refusal 413 as soon as it is known to be too large, 415 for another content type or a compressed body, 408 when it
    takes longer than ``body_timeout_s``, 429 when there is no room for it now.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/octet-stream" or request.headers.get("content-encoding", "identity") != "identity":
        raise Refusal(415, "body: send application/octet-stream, not compressed")
    too_large = Refusal(413, f"body: larger than the {limit} bytes that are taken; send fewer images at a time")
    declared = request.headers.get("content-length")
    if declared is not None:
        if not declared.isdecimal() or int(declared[:20]) > limit:
            raise too_large
        ticket.reserve(int(declared))
    body, reserved = bytearray(), int(declared or 0)
    try:
        with anyio.fail_after(settings.body_timeout_s):
            async for chunk in request.stream():
                if len(body) + len(chunk) > limit:
                    raise too_large
                if len(body) + len(chunk) > reserved:
                    ticket.reserve(len(body) + len(chunk) - reserved)
                    reserved = len(body) + len(chunk)
                body += chunk
    except TimeoutError:
        raise Refusal(408, f"body: not complete after {settings.body_timeout_s:g} s; send it faster") from None
    return bytes(body)
