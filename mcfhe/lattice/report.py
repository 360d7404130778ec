"""A lattice program in words and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from math import log2, prod
from typing import TYPE_CHECKING

from mcfhe.graph.steps import AddStep, ConcatStep, Conv2dStep, LinearStep, PoolStep, RelineariseStep, RescaleStep
from mcfhe.lattice.security import MAX_MODULUS_BITS, SEED_BYTES

if TYPE_CHECKING:
    from mcfhe.lattice.program import LatticeProgram


def summarise(program: LatticeProgram) -> str:
    """Ring, a row a step, bytes and work."""
    plan, steps = program.plan, program.integer_program()
    ring = plan.ring
    lines = [
        f"lattice program {program.program_id[:16]}: input {'x'.join(map(str, program.input_shape))}, "
        f"{len(program.labels)} labels, RNS-CKKS, ring degree {ring.degree}, {program.slots} slots,",
        f"{_widths(ring.moduli)} and a special modulus: {plan.modulus_bits} bits of Q P, the 128-bit",
        f"table allows {MAX_MODULUS_BITS[ring.degree]}; passes: {', '.join(program.settings.passes)}",
        "scale: log2 of what a slot's number is multiplied by; bits: of the largest proved value at that scale;",
        "room: bits of the modulus beyond it",
        "",
    ]
    rows = [("layer", "op", "output", "limbs", "parts", "scale", "bits", "room")]
    names = [("input", "encrypt", program.input_shape), *((s.name, s.kind, s.shape) for s in steps.steps)]
    for (name, kind, shape), level, bound in zip(names, steps.levels, program.value_bounds, strict=True):
        bits, room = log2(level.scale) + bound, sum(log2(q) for q in ring.moduli[: level.limbs])
        rows.append(
            (
                name,
                kind,
                "x".join(map(str, shape)),
                str(level.limbs),
                str(level.components),
                f"{log2(level.scale):.1f}",
                f"{bits:.1f}",
                f"{room - bits:.1f}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    up, down, key = message_bytes(program)
    macs = multiply_adds(program)
    lines += [
        "",
        f"a request: {up / 2**20:.1f} MiB up, {down / 2**20:.2f} MiB down, whatever its batch (1 to {program.slots}):",
        f"{up / program.slots / 2**10:.0f} KiB up an image when full, all of it for one; key {key / 2**20:.1f} MiB",
        f"{macs:,} multiply-adds on residues and {relinearisations(program):,} relinearised ciphertexts a request",
    ]
    return "\n".join(lines)


def message_bytes(program: LatticeProgram) -> tuple[int, int, int]:
    """Bytes of a seeded request without its key, of a response, and of the relinearisation key."""
    ring, level = program.plan.ring, program.integer_program().levels[-1]
    limbs, n = len(ring.moduli), ring.degree
    up = (4 * limbs * n + SEED_BYTES) * prod(program.input_shape)
    down = 4 * level.limbs * len(program.labels) * level.components * n
    return up, down, 4 * limbs * 2 * (limbs + 1) * n


def multiply_adds(program: LatticeProgram) -> int:
    """Of layers, on residues of all limbs, components and coefficients of one request."""
    steps, total = program.integer_program(), 0
    for step, level in zip(steps.steps, steps.levels[1:], strict=True):
        outputs = prod(step.shape)
        taps = 0
        if isinstance(step, (Conv2dStep, LinearStep)):
            taps = int(step.weight[0].size)
        elif isinstance(step, PoolStep):
            taps = step.kernel[0] * step.kernel[1]
        elif isinstance(step, (AddStep, ConcatStep)):
            taps = 1
        total += taps * outputs * level.limbs * level.components * program.plan.degree
    return total


def relinearisations(program: LatticeProgram) -> int:
    """Ciphertexts that are relinearised in one request."""
    return sum(prod(step.shape) for step in program.integer_program().steps if isinstance(step, RelineariseStep))


def transforms(program: LatticeProgram) -> int:
    """Number-theoretic transforms of one polynomial modulo one limb, forward and inverse, in one request.

    With L limbs a relinearisation takes (L + 1)(L + 2): L inverse ones of the digits, L forward modulo the special
    prime, L - 1 modulo each other one, 2 inverse and 2 L forward for the division. A rescaling takes L a component.
    """
    steps, total = program.integer_program(), 0
    for step in steps.steps:
        level = steps.levels[step.inputs[0]]
        if isinstance(step, RelineariseStep):
            total += prod(step.shape) * (level.limbs + 1) * (level.limbs + 2)
        elif isinstance(step, RescaleStep):
            total += prod(step.shape) * level.components * level.limbs
    return total


def _widths(moduli: Sequence[int]) -> str:
    """Number of limbs and their bits; the first may be of its own width."""
    first, last = moduli[0].bit_length(), moduli[-1].bit_length()
    some = f"{len(moduli)} limb{'s' if len(moduli) > 1 else ''} of {last} bits"
    return some if first == last else f"{some}, the first of {first},"
