"""The engine on a device: graphs, packed staging, chunks, keys, threads, memory; always bit for bit against the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import torch
from torch import Tensor

from mcfhe.engine import Engine
from mcfhe.errors import ParameterError
from tests.gpu.conftest import Draw
from tests.shapes import PRIMES_30
from tests.test_engine import residual_program
from tests.test_schedule import JOINED

pytestmark = pytest.mark.gpu

MODULI = torch.tensor(PRIMES_30[:3])
HOST = Engine(residual_program())


@pytest.fixture(params=[True, False], ids=["graphs", "no graphs"])
def graphs(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(autouse=True)
def memory_is_given_back() -> Iterator[None]:
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def on_gpu(tile_bytes: int | None = None, graphs: bool = True) -> Engine:
    return Engine(HOST.program, torch.device("cuda"), tile_bytes, graphs)


def expected(x: Tensor, moduli: Tensor = MODULI) -> Tensor:
    return HOST.run(HOST.bind(moduli.tolist()), x)


@pytest.mark.parametrize("stream", [1, 4, 67, 1000])
@pytest.mark.parametrize("tile_bytes", [None, 100_000])
def test_equals_cpu(draw: Draw, stream: int, tile_bytes: int | None, graphs: bool) -> None:
    engine = on_gpu(tile_bytes, graphs)
    binding = engine.bind(MODULI.tolist())
    for _ in range(3):  # capture, then replays
        x = draw(MODULI, 2, 6, 6, stream)
        assert torch.equal(engine.run(binding, x), expected(x))
        resident = engine.run(binding, x.cuda())
        assert resident.is_cuda
        assert torch.equal(resident.cpu(), expected(x))


@pytest.mark.parametrize("name", JOINED)
def test_pools_in_and_behind_convolutions_equal_cpu(draw: Draw, name: str, graphs: bool) -> None:
    engine, host = Engine(JOINED[name], torch.device("cuda"), None, graphs), Engine(JOINED[name])
    for moduli in (MODULI, torch.tensor((2**31 - 1, 3, 1000))):
        for stream in (1, 4, 67):
            x = draw(moduli, 2, 7, 7, stream)
            bindings = (engine.bind(moduli.tolist()), host.bind(moduli.tolist()))
            assert torch.equal(engine.run(bindings[0], x), host.run(bindings[1], x))


def test_one_graph_serves_every_key(draw: Draw) -> None:
    engine = on_gpu()
    bases = [torch.tensor(PRIMES_30[i : i + 3]) for i in range(4)] + [torch.tensor((1000, 1001, 2147483647))]
    bindings = [engine.bind(b.tolist()) for b in bases]
    for _ in range(2):
        for moduli, binding in zip(bases, bindings, strict=True):
            x = draw(moduli, 2, 6, 6, 5)
            assert torch.equal(engine.run(binding, x), expected(x, moduli))
    assert engine.runner is not None
    assert len(engine.runner._statics) == 1


def test_steady_state_allocates_nothing_on_the_device(draw: Draw, device: torch.device) -> None:
    engine = on_gpu(tile_bytes=200_000)
    binding = engine.bind(MODULI.tolist())
    x = draw(MODULI, 2, 6, 6, 300)
    for _ in range(3):
        engine.run(binding, x)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats(device)["allocation.all.allocated"]
    for _ in range(5):
        engine.run(binding, x)
    assert torch.cuda.memory_stats(device)["allocation.all.allocated"] == before


def test_the_input_may_arrive_late_on_the_callers_stream(draw: Draw) -> None:
    engine = on_gpu()
    binding = engine.bind(MODULI.tolist())
    x = draw(MODULI, 2, 6, 6, 12)
    engine.run(binding, x.cuda())
    late = torch.zeros_like(x, device="cuda")
    source = x.cuda()
    torch.cuda.synchronize()
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)  # type: ignore[no-untyped-call]
        late.copy_(source)
        y = engine.run(binding, late)
        late.zero_()  # after the run read it
        result = y.cpu()
    assert torch.equal(result, expected(x))


def test_threads_with_different_keys_and_shapes(draw: Draw) -> None:
    engine = on_gpu(tile_bytes=100_000)
    bases = [torch.tensor(PRIMES_30[i : i + 3]) for i in range(4)]
    bindings = [engine.bind(b.tolist()) for b in bases]
    inputs = [draw(b, 2, 6, 6, 20 + 30 * i) for i, b in enumerate(bases)]
    results = [expected(x, b) for x, b in zip(inputs, bases, strict=True)]

    def work(i: int) -> bool:
        x = inputs[i % 4] if i % 3 else inputs[i % 4].cuda()
        return torch.equal(engine.run(bindings[i % 4], x).cpu(), results[i % 4])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(40)))


@pytest.fixture
def room(device: torch.device) -> Iterator[list[Tensor]]:
    """A list whose tensors fill the device; emptied at the end."""
    held: list[Tensor] = []
    yield held
    held.clear()
    torch.cuda.empty_cache()


def leave_free(held: list[Tensor], device: torch.device, free: int) -> None:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    available, _ = torch.cuda.mem_get_info(device)
    slack = 64 << 20  # what no single allocation can have
    held.append(torch.empty(max(0, available - free - slack), dtype=torch.uint8, device=device))


def test_a_tile_too_large_for_the_memory_is_halved(draw: Draw, device: torch.device, room: list[Tensor]) -> None:
    engine = on_gpu(tile_bytes=1 << 40)  # a plan that takes no account of memory
    binding = engine.bind(MODULI.tolist())
    x = draw(MODULI, 2, 6, 6, 60_000)  # about 1.5 GiB alive at once
    leave_free(room, device, 600 << 20)
    got = engine.run(binding, x)
    room.clear()
    torch.cuda.empty_cache()
    ample = on_gpu()
    assert torch.equal(got, ample.run(ample.bind(MODULI.tolist()), x))
    assert torch.equal(got[..., :50], expected(x[..., :50].contiguous()))


def test_no_memory_is_a_clear_error_and_the_next_request_works(
    draw: Draw, device: torch.device, room: list[Tensor]
) -> None:
    engine = on_gpu()
    binding = engine.bind(MODULI.tolist())
    x = draw(MODULI, 2, 6, 6, 4000)
    leave_free(room, device, 0)
    hole = []
    try:
        for size in (32 << 20, 2 << 20, 1 << 12, 512):  # the allocator's own remains, down to its smallest block
            with suppress(torch.OutOfMemoryError):
                while True:
                    hole.append(torch.empty(size, dtype=torch.uint8, device=device))
        with pytest.raises(ParameterError, match="out of memory"):
            engine.run(binding, x)
    finally:
        hole.clear()
        room.clear()
        torch.cuda.empty_cache()
    assert torch.equal(engine.run(binding, x), expected(x))


def test_a_second_device(draw: Draw) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs 2 CUDA devices, {torch.cuda.device_count()} here")
    engine = Engine(HOST.program, torch.device("cuda:1"))
    x = draw(MODULI, 2, 6, 6, 9)
    for where in ("cpu", "cuda:0", "cuda:1"):
        y = engine.run(engine.bind(MODULI.tolist()), x.to(where))
        assert y.device == torch.device(where)
        assert torch.equal(y.cpu(), expected(x))
