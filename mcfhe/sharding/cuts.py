"""How a request is cut into shards: limbs and streams are independent, so any part of both can go anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

# Packed residues that one shard holds at most: several of them are in memory at once, here and where they are sent.
SHARD_BYTES = 32 << 20
_PACKED_BYTES = 4


@dataclass(frozen=True, slots=True)
class Shard:
    """Some limbs and some streams of a request: ``residues[limbs.start : limbs.stop, ..., streams.start : ...]``."""

    limbs: range
    streams: range


def cut(shape: tuple[int, ...], lanes: int, workers: int, spare: int, shard_bytes: int = SHARD_BYTES) -> list[Shard]:
    """Shards that cover residues of ``shape`` [N, C, H, W, S] once, about equal, at least one a worker if possible.

    By limb first: fewer constants a worker, and no image goes to two of them whole. Where ``spare`` limbs may be
    missing, a shard has at most so many, so that a worker that is lost with its shard can be done without. By image
    where there are more workers than pieces of limbs, and where a shard would exceed ``shard_bytes``.
    """
    limbs, batch = shape[0], shape[-1] // lanes
    rows = -(-limbs // workers)
    if spare:
        rows = min(rows, spare)
    pieces = -(-limbs // rows)
    rows = -(-limbs // pieces)
    image_bytes = rows * prod(shape[1:-1]) * lanes * _PACKED_BYTES
    images = max(1, min(-(-batch // max(1, workers // pieces)), shard_bytes // image_bytes))
    return [
        Shard(range(row, min(row + rows, limbs)), range(image * lanes, min(image + images, batch) * lanes))
        for row in range(0, limbs, rows)
        for image in range(0, batch, images)
    ]
