"""In which order the steps of a program run, and what is kept between them.

Most steps treat every residue of a stream alone: any run of them can be evaluated tile by tile, a tile being some limbs
and some columns of the stream. Relinearising and rescaling a lattice ciphertext mix all its limbs and coefficients.
So a program is cut into parts: *stream parts*, through which tiles pass, and *ring parts*, through which whole
ciphertexts pass. A program of the modular scheme is one stream part.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from mcfhe.graph.steps import (
    RING_STEPS,
    Conv2dStep,
    FlattenStep,
    IntegerProgram,
    LinearStep,
    PolyStep,
    PoolStep,
    Step,
    TensorSquareStep,
)

# Outputs in a window that the CUDA kernels sum in the convolution's own launch: kPoolWindow in
# csrc/kernels/cuda_launch.h. With other windows the op holds the whole output of the convolution for a moment.
POOL_WINDOW = 4


@dataclass(frozen=True, eq=False)
class Item:
    """A step with the polynomial and the pool that follow it, where nothing else reads the values in between.

    One launch of the layer's op in the modular scheme. The square of a ciphertext is an op of its own, with the pool.
    """

    step: Step
    poly: PolyStep | TensorSquareStep | None
    output: int  # index of the value this produces
    pool: PoolStep | None = None  # behind step and poly
    last_use: tuple[int, ...] = ()  # values that nobody reads after this step


@dataclass(frozen=True, eq=False)
class Part:
    """Items that run together.

    ``items`` with their places among all items of the program; ``reads`` values from before, ``writes`` values for
    later parts (or the output); ``dead`` values that are not needed after this part. ``live`` is the largest number of
    residues alive inside, for one limb and one column (one stream; of a lattice ciphertext, one coefficient of every
    component). ``ring``: a chain of relinearisations and rescalings.
    """

    items: tuple[tuple[int, Item], ...]
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    dead: tuple[int, ...]
    live: int
    ring: bool

    @property
    def in_place(self) -> bool:
        """A ring part whose input nobody reads afterwards leaves its result there; but the program's input is the
        caller's."""
        return self.ring and self.reads[0] in self.dead and self.reads[0] != 0


def fuse(program: IntegerProgram) -> tuple[Item, ...]:
    """The program's steps, polynomials, squares and pools joined to the convolution or linear layer before them."""
    readers: dict[int, list[int]] = {}
    for index, step in enumerate(program.steps):
        for value in step.inputs:
            readers.setdefault(value, []).append(index)
    items: list[Item] = []
    skip: set[int] = set()
    for index, step in enumerate(program.steps):
        if index in skip:
            continue
        follower = readers.get(index + 1, [])
        poly = pool = None
        output = index + 1
        if isinstance(step, (Conv2dStep, LinearStep)) and len(follower) == 1:
            candidate = program.steps[follower[0]]
            if isinstance(candidate, (PolyStep, TensorSquareStep)) and len(candidate.coefficients) in (
                1,
                step.shape[0],
            ):
                poly = candidate
                skip.add(follower[0])
                output = follower[0] + 1
        follower = readers.get(output, [])
        square = TensorSquareStep in (type(step), type(poly))
        if len(follower) == 1 and (square or (isinstance(step, Conv2dStep) and program.ring is None)):
            candidate = program.steps[follower[0]]
            if isinstance(candidate, PoolStep) and _tiles_its_input(candidate):
                pool = candidate
                skip.add(follower[0])
                output = follower[0] + 1
        items.append(Item(step, poly, output, pool))
    return _with_last_use(items, {items[-1].output if items else 0})


def _tiles_its_input(pool: PoolStep) -> bool:
    """Windows side by side: each output of the layer before belongs to one window or to none."""
    return pool.kernel == pool.stride and pool.padding == (0, 0)


def schedule(program: IntegerProgram, items: Sequence[Item]) -> tuple[Part, ...]:
    """The parts of a fused program, in order."""
    groups: list[list[tuple[int, Item]]] = []
    for index, item in enumerate(items):
        ring = isinstance(item.step, RING_STEPS)
        previous = groups[-1][-1][1] if groups else None
        if (
            previous is not None
            and isinstance(previous.step, RING_STEPS) == ring
            and (
                # a ring part is one chain, so that a ciphertext passes through all of it while it is in the cache
                item.step.inputs == (previous.output,) if ring else _limbs(program, item) == _limbs(program, previous)
            )
        ):
            groups[-1].append((index, item))
        else:
            groups.append([(index, item)])
    output = items[-1].output if items else 0
    last_part = {output: len(groups)}
    for number, group in enumerate(groups):
        for value in _inputs(group):
            if value != output:
                last_part[value] = number
    parts = []
    for number, group in enumerate(groups):
        made = {item.output for _, item in group}
        reads = tuple(sorted({value for value in _inputs(group) if value not in made}))
        writes = tuple(sorted(value for value in made if last_part.get(value, number) > number))
        dead = tuple(value for value in reads if last_part[value] == number)
        local = _with_last_use([item for _, item in group], set(writes))
        numbered = tuple((index, item) for (index, _), item in zip(group, local, strict=True))
        ring = isinstance(group[0][1].step, RING_STEPS)
        parts.append(Part(numbered, reads, writes, dead, _live(program, reads, local), ring))
    return tuple(parts)


def entries(program: IntegerProgram, value: int) -> int:
    """Residues of a value for one limb and one column."""
    shape = program.steps[value - 1].shape if value else program.input_shape
    return prod(shape) * components(program, value)


def components(program: IntegerProgram, value: int) -> int:
    """Polynomials of a ciphertext of a lattice program; 1 in the modular scheme."""
    return program.levels[value].components if program.ring is not None else 1


def _limbs(program: IntegerProgram, item: Item) -> int:
    return program.levels[item.output].limbs if program.ring is not None else 0


def _inputs(group: Iterable[tuple[int, Item]]) -> list[int]:
    return [value for _, item in group for value in item.step.inputs]


def _with_last_use(items: Sequence[Item], keep: set[int]) -> tuple[Item, ...]:
    # A fused step may run before steps that stood between it and its polynomial, so uses are counted on the new line.
    last: dict[int, int] = {}
    for index, item in enumerate(items):
        for value in item.step.inputs:
            last[value] = index
    return tuple(
        Item(
            item.step,
            item.poly,
            item.output,
            item.pool,
            tuple(v for v in set(item.step.inputs) if last[v] == i and v not in keep),
        )
        for i, item in enumerate(items)
    )


def _live(program: IntegerProgram, reads: Sequence[int], items: Sequence[Item]) -> int:
    sizes = {value: entries(program, value) for value in reads}
    live = worst = sum(sizes.values())
    for item in items:
        sizes[item.output] = entries(program, item.output)
        flat = isinstance(item.step, FlattenStep)  # a view
        if not flat:
            live += sizes[item.output]
        inside = 0
        if isinstance(item.poly, TensorSquareStep):  # reads what the layer wrote
            inside = prod(item.step.shape) * components(program, item.step.inputs[0])
        elif isinstance(item.step, Conv2dStep) and item.pool is not None and prod(item.pool.kernel) != POOL_WINDOW:
            inside = prod(item.step.shape)
        worst = max(worst, live + inside)
        if not flat:
            live -= sum(sizes[v] for v in item.last_use)
    return worst
