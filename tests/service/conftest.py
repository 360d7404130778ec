from __future__ import annotations

from collections.abc import Iterator

import pytest

for name in ("starlette", "uvicorn", "httpx", "prometheus_client"):
    pytest.importorskip(name, reason="the service needs mcfhe[serve]")

from tests.service.support import Live  # noqa: E402


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    """One service with short limits for the tests that leave it as they find it."""
    with Live(max_body_bytes=1 << 16, header_timeout_s=0.5, body_timeout_s=0.5) as live:
        yield live
