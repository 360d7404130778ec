"""Memory for large values on a CPU, kept from one evaluation to the next.

A lattice evaluation writes gigabytes of values once and drops them. Fresh memory costs a page fault for every 4 KiB, on
a virtual machine that gives its free memory back to its host a far dearer one: half of the time of an evaluation,
where it was measured. Requests to one program take the same bytes, so blocks that are kept fit the next one. They are
huge pages where the system has them, and marked as free for the taking while nobody uses them (MADV_FREE): under
memory pressure the kernel takes them back.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from math import prod
from threading import Lock
from typing import Protocol

import torch
from torch import Tensor

# A block may be so many times what is asked for: more would keep a large one from the value that needs it.
_WASTE = 4
# Beyond the most that was ever in use at once, so that a small value more does not cost a large block.
_SLACK = 0.125


class Arena:
    """Blocks of memory of one engine. Thread-safe."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._free: list[mmap.mmap] = []
        self._used = 0  # bytes that leases hold
        self._most = 0  # and the most they ever held

    @property
    def kept_bytes(self) -> int:
        """Of blocks that nobody uses."""
        with self._lock:
            return sum(map(len, self._free))

    @contextmanager
    def lease(self) -> Iterator[Lease]:
        """For the values of one evaluation, all of which are dead at its end.

        After an error its blocks are not used again: threads may still be writing to them.
        """
        lease = Lease(self)
        try:
            yield lease
        except BaseException:
            lease.abandon()
            raise
        lease.end()

    def _take(self, size: int) -> mmap.mmap:
        with self._lock:
            fitting = [block for block in self._free if size <= len(block) <= _WASTE * size]
            block = min(fitting, key=len, default=None)
            if block is None:
                self._most = max(self._most, self._used + size)
                self._trim(int(self._most * (1 + _SLACK)) - self._used - size)
                block = _new_block(size)
            else:
                self._free.remove(block)
            self._used += len(block)
            self._most = max(self._most, self._used)
            return block

    def _trim(self, limit: int) -> None:
        """Keep at most ``limit`` unused bytes; the largest blocks go first."""
        kept = sum(map(len, self._free))
        self._free.sort(key=len)
        while self._free and kept > limit:
            kept -= len(self._free.pop())

    def _give(self, block: mmap.mmap, keep: bool) -> None:
        if keep:
            _advise(block, "MADV_FREE")
        with self._lock:
            self._used -= len(block)
            if keep:
                self._free.append(block)


class Memory(Protocol):
    """Where the values of an evaluation are."""

    @property
    def device(self) -> torch.device: ...
    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor: ...
    def give(self, tensor: Tensor) -> None: ...


class TorchMemory:
    """Torch's own allocator, which on a GPU keeps memory itself. For results that outlive the evaluation, too."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    @property
    def device(self) -> torch.device:
        """Where tensors are made."""
        return self._device

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """As :meth:`Lease.take`."""
        with torch.inference_mode(False):
            return torch.empty(*shape, dtype=dtype, device=self._device)

    def give(self, tensor: Tensor) -> None:
        """Nothing to do: it is back when its last reference has gone."""


HOST = TorchMemory(torch.device("cpu"))


class Lease:
    """The blocks of one evaluation: see :meth:`Arena.lease`."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._blocks: dict[int, mmap.mmap] = {}

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A dense tensor of arbitrary content that any thread may write to, inference mode or not."""
        count = prod(shape)
        if count == 0:
            return torch.empty(*shape, dtype=dtype)
        block = self._arena._take(count * dtype.itemsize)
        with torch.inference_mode(False):
            tensor = torch.frombuffer(block, dtype=dtype, count=count).view(*shape)
        self._blocks[tensor.data_ptr()] = block
        return tensor

    def give(self, tensor: Tensor) -> None:
        """Back before the end, if it was taken here: neither it nor any view of it is used again."""
        block = self._blocks.pop(tensor.data_ptr(), None)
        if block is not None:
            self._arena._give(block, keep=True)

    def end(self) -> None:
        self._close(keep=True)

    def abandon(self) -> None:
        self._close(keep=False)

    def _close(self, *, keep: bool) -> None:
        while self._blocks:
            self._arena._give(self._blocks.popitem()[1], keep)


def _new_block(size: int) -> mmap.mmap:
    """Memory of this process alone: what is shared cannot be marked as free."""
    private = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
    block = mmap.mmap(-1, size, flags=private) if private else mmap.mmap(-1, size)
    _advise(block, "MADV_HUGEPAGE")
    return block


def _advise(block: mmap.mmap, name: str) -> None:
    """Only advice: systems without it, or that refuse it, do without."""
    advice = getattr(mmap, name, None)
    if advice is not None:
        with suppress(OSError, ValueError):
            block.madvise(advice)
