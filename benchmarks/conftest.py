"""Collects the rows of build/reports/bench.json: {device, cores, rows [{name, median, spread, ratio, against}]}.

``median`` and ``spread`` (half the distance between the quartiles) are in milliseconds; ``ratio`` is the median of the
ratios of interleaved pairs, ours over ``against``, or null where there is nothing to compare with.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

REPORT = Path("build/reports/bench.json")
ROWS: list[dict[str, Any]] = []


def processor() -> str:
    """The CPU's own name for itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def quartile_spread(values: list[float]) -> float:
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / 2


@pytest.fixture
def record() -> Callable[..., dict[str, Any]]:
    """record(name, seconds, ratios=None, against=None, **more): add a row to the report."""

    def add(
        name: str, seconds: list[float], ratios: list[float] | None = None, against: str | None = None, **more: Any
    ) -> dict[str, Any]:
        row = {
            "name": name,
            "median": statistics.median(seconds) * 1e3,
            "spread": quartile_spread(seconds) * 1e3,
            "ratio": None if ratios is None else statistics.median(ratios),
            "ratio_spread": None if ratios is None else quartile_spread(ratios),
            "against": against,
            **more,
        }
        ROWS.append(row)
        return row

    return add


def interleaved(
    ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int = 10, inner: int = 1
) -> tuple[list[float], list[float]]:
    """Seconds of ``repeats`` calls of each, in turn, after one warm-up each. ``inner`` calls of ``theirs`` make one."""
    ours()
    theirs()
    a, b = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        ours()
        middle = time.perf_counter()
        for _ in range(inner):
            theirs()
        end = time.perf_counter()
        a.append(middle - start)
        b.append((end - middle) / inner)
    return a, b


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not ROWS:
        return
    from mcfhe import build_info

    REPORT.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "device": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "build": build_info(),
        "rows": ROWS,
    }
    REPORT.write_text(json.dumps(report, indent=1) + "\n")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not ROWS:
        return
    terminalreporter.section(f"written to {REPORT}")
    for row in ROWS:
        ratio = "" if row["ratio"] is None else f"  {row['ratio']:.3f} +- {row['ratio_spread']:.3f} x {row['against']}"
        terminalreporter.write_line(f"{row['name']:32} {row['median']:10.3f} +- {row['spread']:.3f} ms{ratio}")
