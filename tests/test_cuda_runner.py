"""The CUDA runner's bookkeeping on a pretend device: tiles, staging, constants, memory pressure, threads.

The pretend runtime computes at once on the CPU and lets a test refuse memory. What only a device can show is in
tests/gpu/test_cuda_engine.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise, product
from math import prod
from threading import Event, Lock

import pytest
import torch
from torch import Tensor

from mcfhe.engine import Engine, cuda_runner
from mcfhe.engine.binding import Binding
from mcfhe.engine.cuda_runner import SLOTS, CudaRunner, graphs_wanted
from mcfhe.engine.cuda_runtime import is_out_of_memory
from mcfhe.engine.staging import Growing, Slots
from mcfhe.engine.tiling import equal_pieces, fit, smaller
from mcfhe.errors import ParameterError
from tests.shapes import PRIMES_30
from tests.test_engine import residual_program


class Done:
    def synchronize(self) -> None:
        """The pretend device is never late."""


class HostRuntime:
    """Counts what the runner asks for; ``limit`` bytes is the largest single request that is granted."""

    def __init__(self, free: int = 1 << 30, limit: int | None = None) -> None:
        self.device, self.lock = torch.device("cpu"), Lock()
        self.free, self.limit = free, limit
        self.allocations = self.captures = self.replays = self.releases = 0

    def compute(self) -> AbstractContextManager[object]:
        return nullcontext()

    upload = compute

    def uploaded(self) -> None:
        """Nothing to order."""

    begin = end = uploaded

    def mark(self) -> Done:
        return Done()

    def pinned(self, entries: int) -> Tensor:
        self.allocations += 1
        return torch.full((entries,), -1, dtype=torch.int32)

    packed = pinned

    def free_bytes(self) -> int:
        return self.free

    def release(self) -> None:
        self.releases += 1

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1
        function()

        def replay() -> None:
            self.replays += 1
            function()

        return replay


def runner_of(engine: Engine, runtime: HostRuntime, tile_bytes: int | None = None) -> CudaRunner:
    def evaluate(binding: Binding, x: Tensor) -> Tensor:
        if runtime.limit is not None and x.shape[0] * x.shape[-1] * engine.live_entries * 8 > runtime.limit:
            raise RuntimeError("mcfhe::conv2d: out of memory: pretended")
        return engine._run_tile(binding, x)

    return CudaRunner(evaluate, engine.program.output_shape, engine.live_entries, runtime, tile_bytes)


def draw(limbs: int, stream: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(0, b, (2, 6, 6, stream), generator=generator) for b in PRIMES_30[:limbs]])


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(residual_program())


@pytest.fixture(params=["staged", "resident"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways through the runner: a CPU tensor passes for one on the device where the runner is told so."""
    if request.param == "resident":
        monkeypatch.setattr(CudaRunner, "_run_staged", CudaRunner._run_resident)
    return str(request.param)


def test_fit_takes_streams_first_and_whole_vectors() -> None:
    assert fit(8, 1000, 10**9) == (8, 1000)
    assert fit(8, 1000, 100) == (1, 96)
    assert fit(8, 40, 100) == (2, 40)
    assert fit(8, 1000, 0) == (1, 1)


def test_smaller_ends_at_one() -> None:
    tile, seen = (8, 1000), []
    while tile is not None:
        seen.append(tile)
        tile = smaller(tile)
    assert seen[-1] == (1, 1)
    assert all(prod(b) < prod(a) for a, b in pairwise(seen))


def test_equal_pieces_cover_everything_with_one_size() -> None:
    for limbs, stream, rows, columns in product((1, 5, 8), (1, 16, 33, 130, 1000), (1, 3, 8), (1, 16, 48, 400)):
        tile, pieces = equal_pieces(limbs, stream, (rows, columns))
        assert tile[0] <= min(rows, limbs)
        assert tile[1] <= min(columns, stream)
        covered = torch.zeros(limbs, stream)
        for a, b in pieces:
            assert covered[a, b].shape == tile
            covered[a, b] += 1
        assert bool((covered > 0).all())
        assert len(pieces) == -(-limbs // rows) * -(-stream // columns)


def test_a_growing_buffer_allocates_only_to_grow() -> None:
    sizes: list[int] = []

    def allocate(entries: int) -> Tensor:
        sizes.append(entries)
        return torch.zeros(entries, dtype=torch.int32)

    buffer = Growing(allocate)
    for shape in ((2, 3), (3, 2), (5,), (4, 4), (2, 2)):
        assert buffer.view(shape).shape == shape
    assert sizes == [6, 16]
    buffer.drop()
    assert buffer.entries == 0


def test_slots_are_given_once() -> None:
    runtime = HostRuntime()
    slots = Slots(2, runtime.pinned, runtime.packed)
    first, second = slots.take(wait=True), slots.take(wait=False)
    assert first is not None
    assert second is not None
    assert first is not second
    assert slots.take(wait=False) is None
    slots.give(first)
    second.host_in.view((9,))
    first.host_in.view((9,))
    slots.drop_free()
    assert (first.host_in.entries, second.host_in.entries) == (0, 9)
    assert slots.take(wait=True) is first


def test_a_large_request_leaves_a_slot_to_a_waiting_one(engine: Engine) -> None:
    runtime = HostRuntime()
    runner = runner_of(engine, runtime, tile_bytes=20_000)
    binding, large, small = engine.bind(PRIMES_30[:2]), draw(2, 200), draw(2, 1)
    shares: list[float] = []
    overtaken: list[bool] = []
    started, waiting, done = Event(), Event(), Event()

    def progress(share: float) -> None:
        """The first tile ends when the small request waits for a slot, the second when that is done."""
        shares.append(share)
        started.set()
        assert waiting.wait(10)
        if len(shares) == 2:
            overtaken.append(done.wait(10))

    def late() -> None:
        assert started.wait(10)
        runner.run(binding, small)
        done.set()

    with ThreadPoolExecutor(2) as pool:
        second = pool.submit(late)
        first = pool.submit(runner.run, binding, large, progress)
        while not runner._slots.waiting and not second.done():
            time.sleep(1e-3)
        waiting.set()
        assert torch.equal(first.result(), engine.run(binding, large))
        second.result()
    assert overtaken == [True]
    assert len(shares) > 2 * SLOTS, "there was more to do"


@pytest.mark.parametrize("tile_bytes", [None, 1, 20_000, 100_000])
@pytest.mark.parametrize("stream", [1, 4, 67])
def test_runner_equals_engine(engine: Engine, path: str, stream: int, tile_bytes: int | None) -> None:
    binding, x = engine.bind(PRIMES_30[:3]), draw(3, stream)
    seen: list[float] = []
    got = runner_of(engine, HostRuntime(), tile_bytes).run(binding, x, seen.append)
    assert torch.equal(got, engine.run(binding, x))
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_layouts_and_inference_mode(engine: Engine) -> None:
    binding, runner = engine.bind(PRIMES_30[:2]), runner_of(engine, HostRuntime())
    x = draw(2, 8).transpose(2, 3)
    assert torch.equal(runner.run(binding, x), engine.run(binding, x.contiguous()))
    with torch.inference_mode():
        runner.run(binding, x)
    y = runner.run(binding, x)
    assert not y.is_inference()


def test_nothing_in_nothing_out(engine: Engine) -> None:
    runtime = HostRuntime()
    assert runner_of(engine, runtime).run(engine.bind(PRIMES_30[:2]), draw(2, 0)).shape == (2, 4, 0)
    assert runtime.captures == 0


def test_steady_state_allocates_and_captures_nothing(engine: Engine) -> None:
    runtime = HostRuntime()
    runner = runner_of(engine, runtime, tile_bytes=100_000)
    binding = engine.bind(PRIMES_30[:3])
    for _ in range(SLOTS):
        runner.run(binding, draw(3, 67))
    before = runtime.allocations, runtime.captures
    for seed in range(4):
        x = draw(3, 67, seed)
        assert torch.equal(runner.run(binding, x), engine.run(binding, x))
    assert (runtime.allocations, runtime.captures) == before
    assert runtime.captures == 1


def test_one_graph_serves_every_key(engine: Engine, path: str) -> None:
    runtime = HostRuntime()
    runner = runner_of(engine, runtime)
    x = draw(2, 5) % 1000
    for moduli in (PRIMES_30[:2], (1000, 1001), PRIMES_30[3:5], PRIMES_30[:2]):
        binding = engine.bind(moduli)
        values = x % torch.tensor(moduli).view(-1, 1, 1, 1, 1)
        assert torch.equal(runner.run(binding, values), engine.run(binding, values))
    assert runtime.captures == 1


def test_graphs_kept_are_bounded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_runner, "MAX_GRAPHS", 2)
    runtime = HostRuntime()
    runner = runner_of(engine, runtime)
    binding = engine.bind(PRIMES_30[:1])
    for stream in (1, 2, 1, 3, 1, 2):
        runner.run(binding, draw(1, stream))
    assert runtime.captures == 4  # 1, 2, 3 and 2 again: 1 was always the more recent


def test_a_tile_that_does_not_fit_is_halved(engine: Engine, path: str) -> None:
    runtime = HostRuntime(limit=40_000)
    runner = runner_of(engine, runtime)
    binding, x = engine.bind(PRIMES_30[:3]), draw(3, 67)
    expected = engine.run(binding, x)
    assert torch.equal(runner.run(binding, x), expected)
    assert runtime.releases > 0
    before = runtime.releases, runtime.captures
    assert torch.equal(runner.run(binding, x), expected)  # the size that worked is remembered
    assert (runtime.releases, runtime.captures) == before


def test_no_memory_at_all_is_one_clear_error_and_the_next_request_works(engine: Engine, path: str) -> None:
    runtime = HostRuntime(limit=1)
    runner = runner_of(engine, runtime)
    binding, x = engine.bind(PRIMES_30[:2]), draw(2, 9)
    with pytest.raises(ParameterError, match="out of memory even for one limb of one stream"):
        runner.run(binding, x)
    runtime.limit = None
    assert torch.equal(runner.run(binding, x), engine.run(binding, x))


def test_other_errors_pass_and_give_their_slots_back(engine: Engine) -> None:
    def broken(binding: Binding, x: Tensor) -> Tensor:
        raise RuntimeError("unspecified launch failure")

    runner = CudaRunner(broken, engine.program.output_shape, engine.live_entries, HostRuntime())
    for _ in range(2 * SLOTS):
        with pytest.raises(RuntimeError, match="launch failure"):
            runner.run(engine.bind(PRIMES_30[:1]), draw(1, 3))


class Broken(Done):
    """The event of a device that met an error: every call says so from then on."""

    def synchronize(self) -> None:
        raise RuntimeError("an illegal memory access was encountered")


def test_a_broken_device_is_an_error_for_every_request(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """And never a wait for slots that nobody gives back."""
    runtime = HostRuntime()
    monkeypatch.setattr(runtime, "mark", Broken)
    runner = runner_of(engine, runtime, tile_bytes=20_000)
    binding, x = engine.bind(PRIMES_30[:1]), draw(1, 200)
    pool = ThreadPoolExecutor(1)
    for _ in range(2 * SLOTS):
        with pytest.raises(RuntimeError, match="illegal memory access"):
            pool.submit(runner.run, binding, x).result(timeout=10)
    pool.shutdown()


def test_what_a_failed_tile_enqueued_is_over_before_its_slot_is_used_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, waits = HostRuntime(limit=1), 0

    class Counted(Done):
        def synchronize(self) -> None:
            nonlocal waits
            waits += 1

    monkeypatch.setattr(runtime, "mark", Counted)
    with pytest.raises(ParameterError, match="out of memory"):
        runner_of(engine, runtime).run(engine.bind(PRIMES_30[:1]), draw(1, 3))
    assert waits == runtime.releases == 3  # tiles of 3, 2 and 1 streams were uploaded


def test_threads_share_slots_without_mixing_results(engine: Engine) -> None:
    runner = runner_of(engine, HostRuntime(), tile_bytes=30_000)
    bindings = [engine.bind(PRIMES_30[i : i + 2]) for i in range(4)]
    inputs = [draw(2, 10 + i, seed=i) % 10**9 for i in range(4)]
    expected = [engine.run(b, x) for b, x in zip(bindings, inputs, strict=True)]

    def work(i: int) -> bool:
        return torch.equal(runner.run(bindings[i % 4], inputs[i % 4]), expected[i % 4])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(24)))


def test_what_counts_as_out_of_memory() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert not is_out_of_memory(RuntimeError("an illegal memory access was encountered"))
    with pytest.raises(RuntimeError) as raised:  # noqa: PT012
        try:
            raise torch.OutOfMemoryError("x")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")
    assert is_out_of_memory(raised.value)


def test_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MCFHE_CUDA_GRAPHS", raising=False)
    assert graphs_wanted()
    monkeypatch.setenv("MCFHE_CUDA_GRAPHS", "0")
    assert not graphs_wanted()
