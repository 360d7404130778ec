from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.service.support import Live

NEEDED = ("starlette", "uvicorn", "httpx", "prometheus_client")  # the extra mcfhe[serve]
collect_ignore_glob = [] if all(map(find_spec, NEEDED)) else ["test_*.py"]


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    """One service for the tests that leave it as they find it."""
    from tests.service.support import Live

    with Live(max_body_bytes=1 << 16) as live:
        yield live


@pytest.fixture(scope="module")
def hasty() -> Iterator[Live]:
    """One with short limits, for senders that miss them. Whoever means well may miss them too on a busy machine."""
    from tests.service.support import Live

    with Live(header_timeout_s=0.8, body_timeout_s=0.8) as live:
        yield live
