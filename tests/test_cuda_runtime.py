"""CudaRuntime's order of calls, on a pretend torch.cuda. What the calls do is in tests/gpu."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import cycle
from threading import Event, get_ident

import pytest
import torch

from mcfhe.engine import cuda_runtime
from mcfhe.engine.cuda_runtime import CudaRuntime

DEVICE = torch.device("cuda:0")


class PretendCuda:
    """As torch and CUDA: 32 streams are handed out in turn; a device cannot be waited for while any is captured."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.capturing: set[int] = set()  # threads
        self.current: list[object] = []
        self._pool = cycle([object() for _ in range(32)])
        monkeypatch.setattr(cuda_runtime, "_streams", cache(cuda_runtime._streams.__wrapped__))
        monkeypatch.setattr(torch.cuda, "Stream", lambda _: next(self._pool))
        for name in ("CUDAGraph", "graph_pool_handle"):
            monkeypatch.setattr(torch.cuda, name, lambda *_: type("Made", (), {"replay": print})())
        for name in ("stream", "graph", "synchronize", "empty_cache"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))

    @contextmanager
    def stream(self, stream: object) -> Iterator[None]:
        self.current.append(stream)
        yield
        self.current.pop()

    @contextmanager
    def graph(self, *_: object, **__: object) -> Iterator[None]:
        self.synchronize()
        self.capturing.add(get_ident())
        try:
            yield
        finally:
            self.capturing.discard(get_ident())

    def synchronize(self, *_: object) -> None:
        if self.capturing:
            raise RuntimeError("operation not permitted when stream is capturing")

    empty_cache = synchronize


@pytest.mark.parametrize("second", ["release", "capture"])
def test_nobody_waits_for_the_device_while_another_engine_captures(
    monkeypatch: pytest.MonkeyPatch, second: str
) -> None:
    """A server has one engine, with a runtime of its own, for every profile and program."""
    cuda = PretendCuda(monkeypatch)
    first, other = CudaRuntime(DEVICE, True), CudaRuntime(DEVICE, True)
    inside = Event()

    def slow() -> None:
        if cuda.capturing:
            inside.set()
            time.sleep(0.1)

    calls: dict[str, Callable[[], object]] = {"release": other.release, "capture": lambda: other.capture(lambda: None)}
    with ThreadPoolExecutor(1) as pool:
        captured = pool.submit(first.capture, slow)
        assert inside.wait(10)
        calls[second]()
        captured.result()
    assert first.graphs
    assert other.graphs


def test_engines_that_share_a_stream_share_its_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or one would enqueue into what another captures. Nobody uploads on a stream that is captured."""
    PretendCuda(monkeypatch)
    runtimes = [CudaRuntime(DEVICE, True) for _ in range(40)]
    assert not {id(r._compute) for r in runtimes} & {id(r._upload) for r in runtimes}
    locks: dict[int, set[int]] = {}
    for runtime in runtimes:
        locks.setdefault(id(runtime._compute), set()).add(id(runtime.lock))
    assert all(len(those) == 1 for those in locks.values())
    elsewhere = CudaRuntime(torch.device("cuda:1"), True)
    assert elsewhere.lock is not runtimes[0].lock
    assert elsewhere._compute is not runtimes[0]._compute


def test_staging_memory_belongs_to_the_stream_that_writes_it_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The allocator lends a block again once its own stream can have it: any other stream may still use it."""
    cuda = PretendCuda(monkeypatch)
    runtime = CudaRuntime(DEVICE, True)
    streams: list[object] = []
    monkeypatch.setattr(torch, "empty", lambda *_, **__: streams.append(cuda.current[-1] if cuda.current else None))
    runtime.packed(8)
    assert streams == [runtime._upload]
