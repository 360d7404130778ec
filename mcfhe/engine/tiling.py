"""How limbs x streams are cut into tiles. Pure arithmetic: the engine and the CUDA runner share it."""

from __future__ import annotations

Tile = tuple[int, int]  # limbs, streams
Piece = tuple[slice, slice]  # the same, as places in a residue tensor

VECTOR = 16  # streams of a tile come in multiples of this where there are more


def fit(limbs: int, stream: int, entries: int) -> Tile:
    """The tile of at most ``entries`` limb-streams (but at least one): as many streams as fit, then limbs."""
    streams = max(1, min(stream, entries))
    if VECTOR < streams < stream:
        streams -= streams % VECTOR
    return max(1, min(limbs, entries // streams)), streams


def smaller(tile: Tile) -> Tile | None:
    """About half of ``tile``: fewer streams first, then fewer limbs; None for a tile of one limb and one stream."""
    limbs, streams = tile
    if streams > 1:
        half = -(-streams // 2)
        return limbs, -(-half // VECTOR) * VECTOR if half > VECTOR and streams > 2 * VECTOR else half
    return (-(-limbs // 2), streams) if limbs > 1 else None


def even(total: int, size: int) -> int:
    """The size, at most ``size``, that cuts ``total`` into the same number of pieces with the least overlap."""
    pieces = -(-total // size)
    balanced = -(-total // pieces)
    if balanced > VECTOR and pieces > 1:
        balanced = min(size, -(-balanced // VECTOR) * VECTOR)
    return balanced


def starts(total: int, size: int) -> list[int]:
    """Where pieces of exactly ``size`` start so that they cover 0 .. total - 1; the last is moved back to fit.

    Pieces of one size need one CUDA graph; what the last two share is computed twice, with the same result.
    """
    return [min(start, total - size) for start in range(0, total, size)]


def equal_pieces(limbs: int, stream: int, tile: Tile) -> tuple[Tile, list[Piece]]:
    """A tile no larger than ``tile`` and the places where it is applied to cover limbs x stream."""
    rows, columns = even(limbs, tile[0]), even(stream, tile[1])
    return (rows, columns), [
        (slice(row, row + rows), slice(column, column + columns))
        for row in starts(limbs, rows)
        for column in starts(stream, columns)
    ]
