"""How long a CPU takes for a lattice program, from short probes of its ops.

Layers cost what they cost in the modular scheme (:mod:`mcfhe.cost.throughput`), a value of theirs being one coefficient
of one component of one limb. Squares, words packed and unpacked between parts, and seeds have a rate of their own. Key
switches and rescalings are probed on a few ciphertexts of the program's own degree and limbs, with a random key, since
caches and keys make them anything but proportional.
"""

from __future__ import annotations

from functools import cache
from math import prod

import torch

from mcfhe import ops
from mcfhe.cost.throughput import least, rate, width, work_of
from mcfhe.engine import Engine
from mcfhe.engine.schedule import Part, components, entries, fuse, schedule
from mcfhe.graph.steps import (
    IntegerProgram,
    RelineariseStep,
    RescaleStep,
    Ring,
    Step,
    TensorSquareStep,
)
from mcfhe.lattice.ring import ntt_tables
from mcfhe.lattice.security import SEED_BYTES

_ROWS = 256  # of the probes of words and squares
_FEW, _MORE = 2, 6  # ciphertexts of the probes of ring steps
_SEEDS = 8


def seconds_of(program: IntegerProgram, ring: Ring) -> float:
    """Predicted seconds of a seeded request: seeds expanded, all parts evaluated, on torch's threads."""
    engine = Engine(program)
    parts = schedule(program, fuse(program))
    threads = torch.get_num_threads()
    limbs, degree = len(ring.moduli), ring.degree
    total = expansion_rate(ring) * limbs * degree * prod(program.input_shape)
    for part in parts:
        total += _ring_part(program, part, ring) if part.ring else _stream_part(program, part, engine, degree)
    return total / threads


def _stream_part(program: IntegerProgram, part: Part, engine: Engine, degree: int) -> float:
    limbs = program.levels[part.writes[0]].limbs
    tile_limbs, columns = engine.tile(limbs, degree, part.live)
    tiles = -(-limbs // tile_limbs) * -(-degree // columns)
    moved = sum(entries(program, value) for value in (*part.reads, *part.writes))
    total = word_rate(width(columns)) * moved * limbs * degree
    steps = 0
    for _, item in part.items:
        squared = TensorSquareStep in (type(item.step), type(item.poly))
        for step in filter(None, (item.step, item.poly, None if squared else item.pool)):
            parts = components(program, item.step.inputs[0] if step is item.step else item.output)
            streams = width(columns * parts)
            pool = item.pool.kernel if isinstance(step, TensorSquareStep) and item.pool is not None else None
            total += _step(step, parts, streams, pool) * limbs * degree
            steps += 1
    return total + rate("launch", "cpu", width(columns)).value * tiles * steps


def _step(step: Step, parts: int, streams: int, pool: tuple[int, int] | None) -> float:
    """Seconds for one limb and one coefficient of every component. ``pool``: of a square."""
    if isinstance(step, TensorSquareStep):
        return square_rate(streams, pool is not None) * prod(step.shape)
    return sum(rate(work.kind, "cpu", streams).seconds(work.values * parts, work.terms) for work in work_of(step))


def _ring_part(program: IntegerProgram, part: Part, ring: Ring) -> float:
    first = part.reads[0]
    limbs, parts = program.levels[first].limbs, components(program, first)
    count = entries(program, first) // parts
    total = word_rate(width(ring.degree)) * count * limbs * parts * ring.degree
    for _, item in part.items:
        match item.step:
            case RescaleStep():
                total += rescale_rate(ring, limbs) * parts * count
                limbs -= 1
            case RelineariseStep():
                call, each = relinearise_rate(ring, limbs)
                total += call + each * count
                parts = 2
            case _:
                limbs = program.levels[item.output].limbs
    return total + word_rate(width(ring.degree)) * count * limbs * parts * ring.degree


@cache
def word_rate(streams: int) -> float:
    """Seconds for a word on its way from 32 bits to 64 or back, in runs of ``streams``."""
    packed = torch.zeros(_ROWS, 2, 16 * streams, dtype=torch.int32)
    tile = torch.zeros(_ROWS, 2, streams, dtype=torch.int64)

    def run() -> None:
        for begin in range(0, packed.shape[-1], streams):
            columns = packed[..., begin : begin + streams]
            tile.copy_(columns)
            columns.copy_(tile)

    return least(run) / (2 * packed.numel())


@cache
def square_rate(streams: int, pooled: bool) -> float:
    """Seconds for one coefficient of the square of a ciphertext: two come in, three go out, or a fourth of them."""
    moduli = torch.tensor([1073741789])
    x = torch.full((1, 1, 2, _ROWS // 2, 2 * streams), 12345)
    pool = (2, 2) if pooled else None
    return least(lambda: ops.tensor_square(x, moduli, pool=pool, validate=False)) / (_ROWS * streams)


@cache
def expansion_rate(ring: Ring) -> float:
    """Seconds for one residue from its seed."""
    moduli = torch.tensor(ring.moduli)
    seeds = torch.zeros(_SEEDS, SEED_BYTES, dtype=torch.uint8)
    return least(lambda: ops.expand_uniform(seeds, moduli, ring.degree)) / (_SEEDS * len(moduli) * ring.degree)


@cache
def rescale_rate(ring: Ring, limbs: int) -> float:
    """Seconds for one component with so many limbs."""
    moduli, tables = _basis(ring, limbs)
    x = _residues(moduli, _FEW, ring.degree)
    return least(lambda: ops.rescale(x, tables, moduli, validate=False)) / _FEW


@cache
def relinearise_rate(ring: Ring, limbs: int) -> tuple[float, float]:
    """Seconds for a call, which packs the key, and for each ciphertext with so many limbs."""
    moduli, tables = _basis(ring, limbs, special=True)
    keys = _residues(moduli, 2 * limbs, ring.degree).view(limbs + 1, limbs, 2, -1).permute(1, 2, 0, 3).contiguous()
    x = _residues(moduli[:-1], _MORE, 3 * ring.degree)

    def seconds(count: int) -> float:
        part = x[:, :count].contiguous()
        return least(lambda: ops.relinearise(part, keys, tables, moduli, validate=False))

    few, more = seconds(_FEW), seconds(_MORE)
    each = max((more - few) / (_MORE - _FEW), 0.0)
    return max(few - _FEW * each, 0.0), each


def forget() -> None:
    """Measure again at the next prediction."""
    for measured in (word_rate, square_rate, expansion_rate, rescale_rate, relinearise_rate):
        measured.cache_clear()


def _basis(ring: Ring, limbs: int, *, special: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    moduli = (*ring.moduli[:limbs], ring.special) if special else ring.moduli[:limbs]
    return torch.tensor(moduli), ntt_tables(moduli, ring.degree)


def _residues(moduli: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.randint(0, int(q), (rows, columns), generator=generator) for q in moduli])
