"""What a demo does around each of its steps: take the time, show progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

#: Takes the finished share, 0..1.
Progress = Callable[[float], None]


@contextmanager
def timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    """Put the seconds that the block takes into ``seconds[step]``."""
    start = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - start


@contextmanager
def shown(progress: Callable[[str], Any] | None, label: str) -> Iterator[Progress | None]:
    """What ``progress(label)``, a context manager, yields; None without ``progress``."""
    if progress is None:
        yield None
        return
    with progress(label) as update:
        yield update
