"""Uploads through two pinned buffers, on a stand-in for the device that copies when it is waited for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mcfhe.engine.uploads import upload


@dataclass
class Late:
    """A stream whose copies happen at the last moment: when somebody waits for an event behind them."""

    enqueued: list[Any] = field(default_factory=list)
    pinned_entries: list[int] = field(default_factory=list)

    def pinned(self, entries: int) -> Tensor:
        self.pinned_entries.append(entries)
        return torch.full((entries,), -1, dtype=torch.int32)

    def mark(self) -> Event:
        return Event(self, len(self.enqueued))


@dataclass
class Event:
    stream: Late
    behind: int

    def synchronize(self) -> None:
        for copy in self.stream.enqueued[: self.behind]:
            if copy is not None:
                copy()
        self.stream.enqueued[: self.behind] = [None] * self.behind


class Target:
    """What is copied into: ``copy_`` only notes where from."""

    def __init__(self, y: Tensor, stream: Late) -> None:
        self.y, self.stream = y, stream

    def __getitem__(self, rows: slice) -> Target:
        return Target(self.y[rows], self.stream)

    def copy_(self, source: Tensor, non_blocking: bool) -> None:
        assert non_blocking
        self.stream.enqueued.append(lambda: self.y.copy_(source))


@given(rows=st.integers(0, 20), columns=st.integers(1, 7), chunk=st.integers(1, 200), stride=st.integers(1, 2))
def test_nothing_is_overwritten_on_its_way(rows: int, columns: int, chunk: int, stride: int) -> None:
    x = torch.arange(rows * columns * stride, dtype=torch.int32).view(rows, columns * stride)[:, ::stride]
    y, stream = torch.full((rows, columns), -7, dtype=torch.int32), Late()
    upload(x, Target(y, stream), stream.pinned, stream.mark, chunk)  # type: ignore[arg-type]
    assert torch.equal(x, y)
    held = max(1, chunk // (4 * columns)) * columns
    assert len(stream.pinned_entries) <= 2
    assert all(entries <= held for entries in stream.pinned_entries)


def test_the_stand_in_sees_a_buffer_used_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Event, "synchronize", lambda self: None)
    x, stream = torch.arange(12, dtype=torch.int32).view(6, 2), Late()
    y = torch.zeros_like(x)
    upload(x, Target(y, stream), stream.pinned, stream.mark, 8)  # type: ignore[arg-type]
    for copy in stream.enqueued:
        copy()
    assert not torch.equal(x, y)
