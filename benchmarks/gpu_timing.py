"""Timing on a device by CUDA events, and the two ceilings that floors are made of: copy bandwidth and multiply-adds.

Times are in milliseconds. Operands are random: a device may run faster on zeros.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from benchmarks.gpu_native import UNITS, Native

Work = Callable[[], object]

FLUSH_BYTES = 512 << 20  # several times any second-level cache; writing it also hides the next launch's overhead
SLEEP_CYCLES = 400_000  # about 0.2 ms: what is launched meanwhile, from Python, is queued before it runs
SECONDS_PER_ROW = 0.6
MIN_REPEATS, MAX_REPEATS = 5, 100


@dataclass(frozen=True)
class Timing:
    """Milliseconds: the median, half the distance between the quartiles, the least, and how many were taken."""

    median: float
    spread: float
    least: float
    repeats: int

    @staticmethod
    def of(values: list[float]) -> Timing:
        low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
        return Timing(statistics.median(values), (high - low) / 2, min(values), len(values))

    def to_json(self) -> dict[str, float]:
        return asdict(self)


class Clock:
    """Measures work on the current stream."""

    def __init__(self, device: torch.device) -> None:
        self._flush = torch.empty(FLUSH_BYTES // 4, dtype=torch.int32, device=device)
        self._flush.random_()

    @staticmethod
    def _event() -> torch.cuda.Event:
        event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        return event

    def _once(self, work: Work, cold: bool) -> float:
        start, end = self._event(), self._event()
        if cold:
            self._flush.bitwise_not_()
        else:
            torch.cuda._sleep(SLEEP_CYCLES)  # type: ignore[no-untyped-call]
        start.record()
        work()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    def time(self, work: Work, cold: bool = True, seconds: float = SECONDS_PER_ROW) -> Timing:
        """``work`` after warm-up; ``cold`` empties the second-level cache before every repeat."""
        work()
        torch.cuda.synchronize()
        estimate = self._once(work, cold)
        repeats = max(MIN_REPEATS, min(MAX_REPEATS, int(seconds * 1e3 / max(estimate, 1e-3))))
        return Timing.of([self._once(work, cold) for _ in range(repeats)])

    @staticmethod
    def wall(work: Work, repeats: int = 60) -> Timing:
        """Host milliseconds from the call until the device is idle: what a caller waits for one request."""
        for _ in range(5):
            work()
        torch.cuda.synchronize()
        values = []
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            torch.cuda.synchronize()
            values.append((time.perf_counter() - start) * 1e3)
        return Timing.of(values)


@dataclass(frozen=True)
class Ceilings:
    """Measured on this device: bytes a second (read plus written), multiply-adds a second of each unit."""

    copy_bytes: float
    products: dict[str, float]

    def floor_ms(self, bytes_moved: int, products: int, unit: str) -> tuple[float, str]:
        """The larger of the two times, and which it is."""
        memory, arithmetic = bytes_moved / self.copy_bytes, products / self.products[unit]
        return max(memory, arithmetic) * 1e3, "memory" if memory > arithmetic else unit


def _copy_rate(clock: Clock, device: torch.device) -> float:
    """Bytes read plus bytes written a second by a large copy on the device."""
    entries = (2 << 30) // 8
    source = torch.randint(1 << 30, (entries,), dtype=torch.int64, device=device)
    target = torch.empty_like(source)
    return 2 * 8 * entries / (clock.time(lambda: target.copy_(source)).median * 1e-3)


def measure_ceilings(native: Native, clock: Clock, device: torch.device) -> Ceilings:
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    blocks, rounds = 8 * processors, 256
    threads = native.peak_threads(blocks)
    seed = torch.randint(-(2**31), 2**31, (threads, 2), dtype=torch.int32, device=device)
    out = torch.empty(threads, dtype=torch.float64, device=device)
    rates = {}
    for unit in UNITS:
        best = clock.time(lambda unit=unit: native.peak(unit, blocks, rounds, seed, out), cold=False)
        rates[unit] = native.peak_products(unit, blocks, rounds) / (best.median * 1e-3)
    return Ceilings(_copy_rate(clock, device), rates)
