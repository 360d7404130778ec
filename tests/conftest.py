from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor

Residues = Callable[..., Tensor]
STARTED = time.time()

# How long an example takes, and how long drawing it takes, is the machine's business; what must be fast has a test of
# its own that reads the processor's clock.
settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")


@pytest.fixture
def residues() -> Residues:
    """residues(moduli, *shape): int64 [L, *shape], uniform below each modulus, with 0, 1 and b - 1 among them."""
    generator = torch.Generator().manual_seed(20240607)

    def draw(moduli: Tensor | tuple[int, ...], *shape: int) -> Tensor:
        rows = []
        for b in torch.as_tensor(moduli).tolist():
            row = torch.randint(0, b, shape, generator=generator)
            flat = row.view(-1)
            for i, edge in enumerate((0, 1, b - 1)):
                if flat.numel() > 3 * i:
                    flat[3 * i] = edge
            rows.append(row)
        return torch.stack(rows) if rows else torch.empty(0, *shape, dtype=torch.int64)

    return draw


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device: torch.cuda.is_available() is False")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """build/reports/test.json for ``make test``: {name, ok, seconds, passed, failed, skipped}."""
    path = os.environ.get("MCFHE_REPORT")
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not path or reporter is None:
        return
    counts = {name: len(reporter.stats.get(name, ())) for name in ("passed", "failed", "skipped")}
    seconds = round(time.time() - STARTED, 1)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps({"name": "test", "ok": exitstatus == 0, "seconds": seconds, **counts}) + "\n")
