"""Streams, events, memory and graph capture of one CUDA device: all that the runner asks of CUDA, in one place."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from mcfhe.engine.staging import Event

LOG = logging.getLogger(__name__)
WARM_UPS = 2  # runs before a capture: modules load and handles are made at the first
# Of the process: while any stream is captured, to wait for its device is an error, and the end of the capture.
_WHOLE_DEVICE = Lock()


def is_out_of_memory(error: BaseException) -> bool:
    """Of the device or of pinned host memory, as torch's allocators and the ops report it.

    The errors that led to this one count: a capture that runs out of memory ends with an error about the capture.
    """
    if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error):
        return True
    earlier = error.__cause__ or error.__context__
    return earlier is not None and is_out_of_memory(earlier)


@dataclass(frozen=True, eq=False)
class _Streams:
    """Those of one device, shared by all engines in the process.

    torch hands out 32 streams in turn: engines with streams of their own would in the end share some without knowing
    it, and what one enqueues would go into the graph that another captures.
    """

    compute: Any
    upload: Any
    lock: Lock = field(default_factory=Lock)


@cache
def _streams(device: torch.device) -> _Streams:
    make: Any = torch.cuda.Stream  # it has no types
    return _Streams(make(device), make(device))


def pinned(entries: int) -> Tensor:
    """Host memory that a device reads and writes by itself: int32 [entries]."""
    return torch.empty(entries, dtype=torch.int32, pin_memory=True)


def current_mark() -> Event:
    """An event after everything enqueued on the current device's current stream."""
    return _marked(torch.cuda.current_stream())


def _marked(stream: Any) -> Event:
    event: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(stream)
    return event


class CudaRuntime:
    """One device with a stream that computes and a stream that uploads.

    Everything that touches static buffers runs on the compute stream, one launch after another; uploads alone run
    beside it. Whoever enqueues on the compute stream or captures holds ``lock``, which all runtimes of a device share.
    """

    def __init__(self, device: torch.device, graphs: bool) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        self.graphs = graphs
        with _WHOLE_DEVICE:
            streams = _streams(self.device)
        self._compute, self._upload, self.lock = streams.compute, streams.upload, streams.lock
        self._pool: Any = None  # torch's type for it is private

    def compute(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._compute)

    def upload(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._upload)

    def uploaded(self) -> None:
        """What is computed from here on comes after what was uploaded up to here."""
        self._compute.wait_stream(self._upload)

    def begin(self) -> None:
        """What is computed from here on comes after the caller's stream."""
        self._compute.wait_stream(torch.cuda.current_stream(self.device))

    def end(self) -> None:
        """What the caller's stream does from here on comes after what was computed up to here."""
        torch.cuda.current_stream(self.device).wait_stream(self._compute)

    def mark(self) -> Event:
        """An event after everything enqueued on the compute stream. Waiting for it spins: a wake-up costs more."""
        return _marked(self._compute)

    def pinned(self, entries: int) -> Tensor:
        return pinned(entries)

    def packed(self, entries: int) -> Tensor:
        # Of the upload stream, since uploads wait for no other: what the allocator takes from another stream may still
        # be in use there. Both streams use it; a slot's work is over before its buffers are dropped, so nothing needs
        # record_stream.
        with self.upload():
            return torch.empty(entries, dtype=torch.int32, device=self.device)

    def free_bytes(self) -> int:
        """Free on the device, and free inside torch's allocator."""
        free, _ = torch.cuda.mem_get_info(self.device)
        return free + torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)

    def release(self) -> None:
        """Give back what no tensor and no graph holds. The graphs of the shared pool must be gone."""
        with _WHOLE_DEVICE:
            torch.cuda.synchronize(self.device)
            self._pool = None
            torch.cuda.empty_cache()

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """``function`` as a CUDA graph: what is returned replays it on the current stream. Call on the compute stream.

        The graphs share one memory pool. That is safe because none leaves a tensor in it (``function`` writes its
        result to memory from outside) and all replay on one stream. A device that refuses the capture for another
        reason than memory is served without graphs from then on, with one line in the log.
        """
        if not self.graphs:
            return function
        for _ in range(WARM_UPS):
            function()
        try:
            with _WHOLE_DEVICE:
                return self._captured(function)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            self.graphs = False
            LOG.warning("%s: CUDA graphs are off, every step is launched by itself: %s", self.device, error)
            return function

    def _captured(self, function: Callable[[], None]) -> Callable[[], None]:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # torch waits for the device and gives back what the warm-ups left, which a capture cannot take, before it
        # begins. thread_local: other threads may allocate pinned memory or upload meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._compute, capture_error_mode="thread_local"):
            function()
        return graph.replay
