"""The SIMT harness's two builds as a fixture. csrc/testing/simt has the harness, run.py there reads the log."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "csrc" / "testing" / "simt"))

from harness import VARIANTS, Driver, build, compiler, compiler_available

LOG: dict[str, list[str]] = {"kernels_run": [], "planted_caught": []}


@pytest.fixture(scope="session", params=VARIANTS)
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    """A running harness: under AddressSanitizer and UndefinedBehaviorSanitizer, then with the race check."""
    if not compiler_available():
        pytest.skip(f"the SIMT harness needs g++ 11 or later; {compiler()} (or $MCFHE_SIMT_CXX) is not here")
    build(request.param)
    running = Driver(request.param)
    yield running
    running.close()
    LOG["kernels_run"] = sorted({*LOG["kernels_run"], *running.kernels_run})
    if path := os.environ.get("MCFHE_SIMT_LOG"):
        Path(path).write_text(json.dumps(LOG))


@pytest.fixture
def caught() -> list[str]:
    """Names of the planted mistakes caught so far."""
    return LOG["planted_caught"]
