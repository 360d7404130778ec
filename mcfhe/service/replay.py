"""Idempotency: a request that comes twice is evaluated once."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from mcfhe.service.refusal import Refusal

ENTRY_BYTES = 1 << 10  # what an answer costs beside its own bytes, about
Slot = tuple[str, str, str]  # owner, program id, request id


@dataclass(eq=False)
class Entry:
    """One request: ``answer`` is done when it is answered. ``digest`` tells whether a retry is the same request."""

    digest: str
    answer: asyncio.Future[bytes]
    expires: float = float("inf")


class Replays:
    """Answers by (owner, program, request id). Used from the event loop only.

    A finished answer is kept for ``replay_s`` seconds, the oldest dropped first beyond ``max_bytes``. Failures are
    not kept. What is at work is bounded by admission, not here.
    """

    def __init__(self, replay_s: float, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._replay_s = replay_s
        self._max_bytes = max_bytes
        self._clock = clock
        self._working: dict[Slot, Entry] = {}
        self._finished: OrderedDict[Slot, Entry] = OrderedDict()
        self._bytes = 0

    def find(self, slot: Slot, digest: str) -> asyncio.Future[bytes] | None:
        """The answer, finished or to come, of a request that is known. Refusal 409 if it had other content."""
        self._expire()
        entry = self._working.get(slot) or self._finished.get(slot)
        if entry is None:
            return None
        if entry.digest != digest:
            raise Refusal(409, f"request id {slot[2]} was used before for another content; draw a new one")
        return entry.answer

    def begin(self, slot: Slot, digest: str, answer: asyncio.Future[bytes]) -> None:
        """Remember a request that is being worked on."""
        self._working[slot] = Entry(digest, answer)
        answer.add_done_callback(lambda _: self._finish(slot))

    def _finish(self, slot: Slot) -> None:
        entry = self._working.pop(slot)
        if entry.answer.cancelled() or entry.answer.exception() is not None:
            return
        entry.expires = self._clock() + self._replay_s
        self._finished[slot] = entry
        self._bytes += ENTRY_BYTES + len(entry.answer.result())
        self._expire()

    def _expire(self) -> None:
        now = self._clock()
        while self._finished:
            first = next(iter(self._finished.values()))
            if first.expires > now and self._bytes <= self._max_bytes:
                return
            _, entry = self._finished.popitem(last=False)
            self._bytes -= ENTRY_BYTES + len(entry.answer.result())
