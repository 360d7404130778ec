"""Runs tiles on a CUDA device: packed uploads, one CUDA graph a shape, copies beside computation, chunks that fit.

    host x --pack--> pinned int32 --upload stream--> device int32 --widen--> static x --graph, which packs-->
    static y --> pinned int32 --unpack--> host y

From `widen` on everything runs on one compute stream in the order it is enqueued; only uploads run beside it. Two
slots of staging buffers are shared by all requests and threads: while one tile computes, the next is packed and
uploaded, whoever it belongs to. Graphs read moduli and constants from static buffers, so that one graph serves every
key with that number of limbs. Tensors already on the device skip staging and the host never waits.
"""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from mcfhe.engine.cuda_runtime import is_out_of_memory
from mcfhe.engine.staging import Event, Slot, Slots
from mcfhe.engine.tiling import Piece, Tile, equal_pieces, fit, smaller
from mcfhe.errors import ParameterError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from mcfhe.engine.binding import Binding

Progress = Callable[[float], None]

RESIDUE_BYTES = 8
SLOTS = 2
# Graphs kept, least recently used first to go: a server sees few shapes.
MAX_GRAPHS = 16
# Tile sizes remembered per request shape.
MAX_PLANS = 1024
# A tile's live residues: at most this share of the free memory, and no more than fills a device many times over, so
# that large requests come in several tiles whose copies and computation overlap.
TILE_SHARE = 0.6
TILE_BYTES = 1 << 30


def graphs_wanted() -> bool:
    """MCFHE_CUDA_GRAPHS=0 launches every step by itself; anything else replays graphs."""
    return os.environ.get("MCFHE_CUDA_GRAPHS", "1") != "0"


class Runtime(Protocol):
    """See :class:`mcfhe.engine.cuda_runtime.CudaRuntime`."""

    device: torch.device
    lock: Lock

    def compute(self) -> AbstractContextManager[object]: ...
    def upload(self) -> AbstractContextManager[object]: ...
    def uploaded(self) -> None: ...
    def begin(self) -> None: ...
    def end(self) -> None: ...
    def mark(self) -> Event: ...
    def pinned(self, entries: int) -> Tensor: ...
    def packed(self, entries: int) -> Tensor: ...
    def free_bytes(self) -> int: ...
    def release(self) -> None: ...
    def capture(self, function: Callable[[], None]) -> Callable[[], None]: ...


@dataclass(eq=False)
class _Static:
    """The static buffers of one tile shape and what evaluates them in place."""

    x: Tensor  # int64 [L, C, H, W, S]
    y: Tensor  # int32 [L, ..., S]: packed in the graph, so that it can travel as it is
    binding: Binding
    replay: Callable[[], None]
    loaded: tuple[Binding, int] | None = None  # whose constants, from which limb on

    def load(self, binding: Binding, first: int) -> None:
        """Copy the constants of limbs first, first + 1, ... into the static buffers, if they are not there."""
        if self.loaded is not None and self.loaded[0] is binding and self.loaded[1] == first:
            return
        source = binding.limbs(first, first + self.binding.moduli.shape[0]).tensors()
        torch._foreach_copy_(self.binding.tensors(), source)  # one launch for all of them
        self.loaded = (binding, first)


class CudaRunner:
    """Evaluates residues on one device, tile by tile. Thread-safe.

    ``evaluate(binding, x)`` runs the network on device tensors of one tile, without waiting for the device.
    ``live_entries`` is the largest number of residues it holds for one limb and one stream, ``tile_bytes`` what the
    live residues of a tile may take (by default from the free memory).
    """

    def __init__(
        self,
        evaluate: Callable[[Binding, Tensor], Tensor],
        output_shape: Sequence[int],
        live_entries: int,
        runtime: Runtime,
        tile_bytes: int | None = None,
    ) -> None:
        self._evaluate = evaluate
        self._output_shape = tuple(output_shape)
        self._tile_entries = max(1, live_entries) * RESIDUE_BYTES
        self.runtime = runtime
        self._tile_bytes = tile_bytes
        self._slots = Slots(SLOTS, runtime.pinned, runtime.packed)
        self._statics: OrderedDict[Tile, _Static] = OrderedDict()
        self._plans: OrderedDict[Tile, Tile] = OrderedDict()
        # Of the device, not of this runner: held while work is enqueued and while graphs or plans change; never while
        # waiting.
        self._lock = runtime.lock

    def run(self, binding: Binding, x: Tensor, progress: Progress | None = None) -> Tensor:
        """Residues [L, C, H, W, S], canonical, on the host or a device -> [L, ..., S] where ``x`` is.

        A tile that does not fit the memory is halved and the request starts again, down to one limb and one stream;
        then ParameterError. Other requests are not touched. ``progress`` gets the share, 0..1, of tiles finished (for
        ``x`` on the device: enqueued).
        """
        limbs, stream = x.shape[0], x.shape[-1]
        y = torch.empty(limbs, *self._output_shape, stream, dtype=torch.int64, device=x.device)
        if y.numel() == 0:
            return y
        resident = x.device.type != "cpu"
        work = x.to(self.runtime.device) if resident else x
        out = y if not resident or y.device == work.device else torch.empty_like(y, device=work.device)
        while True:
            tile, pieces = equal_pieces(limbs, stream, self._plan(limbs, stream))
            try:
                with torch.inference_mode():  # static buffers are made in it, so they must be written in it
                    if resident:
                        self._run_resident(binding, work, out, tile, pieces, progress)
                    else:
                        self._run_staged(binding, work, out, tile, pieces, progress)
                return y if out is y else y.copy_(out)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                why = str(error)
            # Only here, where the error's traceback no longer holds the tensors of the failed attempt.
            self._shrink((limbs, stream), tile, why)

    def replay_of(self, binding: Binding, x: Tensor) -> Callable[[], None] | None:
        """The evaluation alone of ``x``, for measurements: no copies, the result stays in its static buffer.

        To be called on ``runtime.compute()`` while no request runs. None where ``x`` takes more than one tile.
        """
        self.run(binding, x)
        static = self._statics.get((x.shape[0], x.shape[-1]))
        return None if static is None else torch.inference_mode()(static.replay)

    def _plan(self, limbs: int, stream: int) -> Tile:
        with self._lock:
            tile = self._plans.get((limbs, stream))
            if tile is None:
                budget = self._tile_bytes
                if budget is None:
                    budget = min(TILE_BYTES, int(self.runtime.free_bytes() * TILE_SHARE))
                tile = fit(limbs, stream, max(1, budget // self._tile_entries))
                self._plans[limbs, stream] = tile
                while len(self._plans) > MAX_PLANS:
                    self._plans.popitem(last=False)
            return tile

    def _shrink(self, shape: Tile, tile: Tile, why: str) -> None:
        """Free all that is kept for speed and plan a smaller tile; ParameterError if there is none."""
        with self._lock:
            self._statics.clear()
            self._slots.drop_free()
            self.runtime.release()
            less = smaller(tile)
            if less is None:
                self._plans.pop(shape, None)  # a later request may find more memory
                raise ParameterError(
                    f"device {self.runtime.device}: out of memory even for one limb of one stream "
                    f"({self._tile_entries} bytes of residues, {self.runtime.free_bytes()} free); close other "
                    f"programs on the device or use device='cpu' ({why})"
                )
            self._plans[shape] = less

    def _static(self, tile: Tile, binding: Binding, x: Tensor) -> _Static:
        """The buffers and the graph of one tile shape, made at first use. On the compute stream, under the lock."""
        found = self._statics.get(tile)
        if found is not None:
            self._statics.move_to_end(tile)
            return found
        limbs, streams = tile
        device = self.runtime.device
        own = binding.limbs(0, limbs).copy()
        static_x = torch.zeros(limbs, *x.shape[1:-1], streams, dtype=torch.int64, device=device)
        static_y = torch.empty(limbs, *self._output_shape, streams, dtype=torch.int32, device=device)

        def in_place() -> None:
            static_y.copy_(self._evaluate(own, static_x))

        while len(self._statics) >= MAX_GRAPHS:
            self._statics.popitem(last=False)
        static = _Static(static_x, static_y, own, self.runtime.capture(in_place), (binding, 0))
        self._statics[tile] = static
        return static

    def _run_resident(
        self, binding: Binding, x: Tensor, y: Tensor, tile: Tile, pieces: list[Piece], progress: Progress | None
    ) -> None:
        runtime = self.runtime
        for done, (rows, columns) in enumerate(pieces):
            with self._lock:
                runtime.begin()
                with runtime.compute():
                    static = self._static(tile, binding, x)
                    static.load(binding, rows.start)
                    static.x.copy_(x[rows, ..., columns])
                    static.replay()
                    y[rows, ..., columns].copy_(static.y)
                runtime.end()
            if progress is not None:
                progress((done + 1) / len(pieces))

    def _run_staged(
        self, binding: Binding, x: Tensor, y: Tensor, tile: Tile, pieces: list[Piece], progress: Progress | None
    ) -> None:
        flying: deque[tuple[Slot, Piece]] = deque()
        finished = 0

        def finish() -> Slot:
            nonlocal finished
            slot, (rows, columns) = flying[0]
            slot.wait()
            target = y[rows, ..., columns]
            target.copy_(slot.host_out.view(target.shape))
            flying.popleft()
            finished += 1
            if progress is not None:
                progress(finished / len(pieces))
            return slot

        slot: Slot | None = None
        try:
            for piece in pieces:
                slot = self._slots.take(wait=not flying)
                if slot is None:
                    slot = finish()
                    if flying and self._slots.waiting:
                        self._slots.give(slot)
                        slot = finish()
                self._enqueue(slot, binding, x, tile, piece)
                flying.append((slot, piece))
                slot = None
            while flying:
                self._slots.give(finish())
        finally:
            with ExitStack() as every:  # though one of them may raise
                for held in [slot, *(other for other, _ in flying)]:
                    if held is not None:
                        every.callback(self._slots.give, held)

    def _enqueue(self, slot: Slot, binding: Binding, x: Tensor, tile: Tile, piece: Piece) -> None:
        """Pack one tile and enqueue its upload, evaluation and download."""
        runtime = self.runtime
        rows, columns = piece
        part = x[rows, ..., columns]
        host = slot.host_in.view(part.shape).copy_(part)  # packs
        with runtime.upload():
            device = slot.device_in.view(part.shape).copy_(host, non_blocking=True)
        with self._lock:
            try:
                runtime.begin()
                with runtime.compute():
                    static = self._static(tile, binding, x)
                    static.load(binding, rows.start)
                    runtime.uploaded()
                    static.x.copy_(device)  # widens
                    static.replay()
                    slot.host_out.view(static.y.shape).copy_(static.y, non_blocking=True)
            except RuntimeError:
                with suppress(RuntimeError):  # of a device that does nothing more
                    runtime.uploaded()
                    slot.done = runtime.mark()
                raise
            slot.done = runtime.mark()
