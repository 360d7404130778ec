"""Residues from ordinary host memory to a device, through two pinned buffers of bounded size.

What is not pinned a driver copies through buffers of its own, with one thread and while the caller waits. Here one
buffer is filled, by all of torch's threads, while the other one travels.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from mcfhe.engine.staging import Event, Growing


def upload(
    source: Tensor,
    target: Tensor,
    pinned: Callable[[int], Tensor],
    mark: Callable[[], Event],
    chunk_bytes: int,
) -> None:
    """Copy int32 ``source`` [rows, ...] from the host to ``target`` of the same shape on a device, some rows at a time.

    ``pinned(entries)`` gives pinned int32 memory, ``mark()`` an event behind all that was enqueued on the stream on
    which tensors are copied. Returns when all of it has arrived.
    """
    buffers = (Growing(pinned), Growing(pinned))
    travelling: list[Event | None] = [None, None]
    rows = source.shape[0]
    if source.numel() == 0:
        return
    size = max(1, chunk_bytes // (source.element_size() * (source.numel() // rows)))
    for number, begin in enumerate(range(0, rows, size)):
        turn = number % 2
        event = travelling[turn]
        if event is not None:
            event.synchronize()
        part = source[begin : begin + size]
        filled = buffers[turn].view(part.shape).copy_(part)
        target[begin : begin + size].copy_(filled, non_blocking=True)
        travelling[turn] = mark()
    for event in travelling:
        if event is not None:
            event.synchronize()
