"""What may be inside at once: a number of requests and a number of bytes. Everything else is told to come back."""

from __future__ import annotations

from types import TracebackType

import anyio
from starlette.requests import Request

from mcfhe.service.refusal import Refusal
from mcfhe.service.settings import ServiceSettings


class Quota:
    """A number of places: half of them kept for the owners, the same for each, the rest for whoever comes.

    So no owner can take all: another finds what is kept for it, whatever the others do. A single owner has all.
    """

    def __init__(self, limit: int, owners: int = 1) -> None:
        self.taken = 0
        self._kept = limit // (2 * owners)  # for each owner
        self._common = limit - self._kept * owners
        self._by_owner: dict[str, int] = {}

    @property
    def most(self) -> int:
        """What one owner can have at best, while no other has anything."""
        return self._kept + self._common

    def take(self, owner: str, count: int) -> bool:
        """Whether there was room for ``count`` more of this owner; then they are taken."""
        used = self._by_owner.get(owner, 0)
        beyond = sum(max(0, other - self._kept) for other in self._by_owner.values()) - max(0, used - self._kept)
        if beyond + max(0, used + count - self._kept) > self._common:
            return False
        self._by_owner[owner] = used + count
        self.taken += count
        return True

    def give(self, owner: str, count: int) -> None:
        self._by_owner[owner] -= count
        if not self._by_owner[owner]:
            del self._by_owner[owner]
        self.taken -= count


def room_for(count: int, owners: int) -> int:
    """The limit of a :class:`Quota` of which each owner can have ``count`` at best, or a few more."""
    return -(-2 * owners * count // (owners + 1)) + 2 * owners


class Gate:
    """Counts requests and body bytes inside, by owner (a token). Used from the event loop only."""

    def __init__(self, max_requests: int, max_bytes: int, owners: int = 1) -> None:
        self.requests = Quota(max_requests, owners)
        self.bytes = Quota(max_bytes, owners)

    def enter(self, owner: str) -> Ticket:
        """A ticket for one request; Refusal 429 when all are out."""
        if not self.requests.take(owner, 1):
            raise Refusal(429, "busy: too many requests are waiting; come back later", retry_after_s=1)
        return Ticket(self, owner)


class Ticket:
    """The place of one request. Given back at the end of a ``with`` block unless :meth:`keep` was called in it."""

    def __init__(self, gate: Gate, owner: str) -> None:
        self._gate = gate
        self._owner = owner
        self._bytes = 0
        self._kept = False
        self._released = False

    def reserve(self, count: int) -> None:
        """Room for ``count`` more bytes; Refusal 429 if there is none."""
        if not self._gate.bytes.take(self._owner, count):
            raise Refusal(429, "busy: too many bytes are waiting; come back later", retry_after_s=1)
        self._bytes += count

    def keep(self) -> None:
        """Whoever works on the request calls :meth:`release` when that is done."""
        self._kept = True

    def release(self) -> None:
        if not self._released:
            self._released = True
            self._gate.requests.give(self._owner, 1)
            if self._bytes:
                self._gate.bytes.give(self._owner, self._bytes)

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
