"""Where residues wait on their way to a device and back: pinned host memory, and its twin on the device for the way in.

A residue is below 2^31, so it travels as int32 and is widened on the device: half the bytes on the bus. Slots grow to
the largest tile they have carried and are then reused, so that steady traffic allocates nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from queue import Empty, SimpleQueue
from threading import Lock
from typing import Protocol

from torch import Tensor

Allocate = Callable[[int], Tensor]  # entries -> int32 [entries]


class Event(Protocol):
    """What of torch.cuda.Event is used."""

    def synchronize(self) -> None: ...


class Growing:
    """One int32 buffer that only ever grows; ``view(shape)`` is its beginning, dense, in that shape."""

    def __init__(self, allocate: Allocate) -> None:
        self._allocate = allocate
        self._buffer: Tensor | None = None

    @property
    def entries(self) -> int:
        return 0 if self._buffer is None else self._buffer.numel()

    def view(self, shape: Sequence[int]) -> Tensor:
        count = prod(shape)
        if self._buffer is None or self._buffer.numel() < count:
            self._buffer = None  # the old one first: both together may not fit
            self._buffer = self._allocate(count)
        return self._buffer[:count].view(*shape)

    def drop(self) -> None:
        self._buffer = None


class Slot:
    """The buffers of one tile in flight."""

    def __init__(self, host: Allocate, device: Allocate) -> None:
        self.host_in, self.device_in, self.host_out = Growing(host), Growing(device), Growing(host)
        self.done: Event | None = None  # recorded when the download is enqueued

    def wait(self) -> None:
        """Until the device no longer reads or writes the buffers."""
        if self.done is not None:
            self.done.synchronize()
            self.done = None

    def drop(self) -> None:
        for buffer in (self.host_in, self.device_in, self.host_out):
            buffer.drop()


class Slots:
    """A fixed number of slots shared by all requests, so that one copies while another computes.

    A caller that already holds a slot must not wait for a second one (two such callers would wait for each other):
    it takes with ``wait=False`` and, given None, finishes one of its own. Where somebody is ``waiting`` for a first
    slot, a caller with several gives one back, so that a small request does not wait for the whole of a large one.
    """

    def __init__(self, count: int, host: Allocate, device: Allocate) -> None:
        self.all = tuple(Slot(host, device) for _ in range(count))
        self._free: SimpleQueue[Slot] = SimpleQueue()
        self._lock = Lock()
        self.waiting = 0
        for slot in self.all:
            self._free.put(slot)

    def take(self, wait: bool) -> Slot | None:
        try:
            return self._free.get_nowait()
        except Empty:
            if not wait:
                return None
        with self._lock:
            self.waiting += 1
        try:
            return self._free.get()
        finally:
            with self._lock:
                self.waiting -= 1

    def give(self, slot: Slot) -> None:
        """Back to the others, once the device has finished with it."""
        try:
            slot.wait()
        finally:  # after an error too: whoever waits for a slot is to meet the error, not to wait for ever
            self._free.put(slot)

    def drop_free(self) -> None:
        """Release the memory of slots that nobody holds."""
        held: list[Slot] = []
        while (slot := self.take(wait=False)) is not None:
            slot.drop()
            held.append(slot)
        for slot in held:
            self._free.put(slot)
