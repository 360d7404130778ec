"""What one program costs under other widths of moduli, amplifications and profiles.

None of the three changes what the network computes, so no image is needed to choose: the width says how many bits a
limb holds, the profile at which order a pixel comes in, and a bit of amplification costs t bits of moduli at order t.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from mcfhe.errors import ParameterError
from mcfhe.graph.report import limbs_needed
from mcfhe.program import Program
from mcfhe.spec import PROFILES

__all__ = ["Alternative", "alternatives", "cheapest"]

#: Widths whose primes keep the fast arithmetic; narrower ones only cost limbs.
WIDTHS = (30, 31)
#: From a = 4 on there is noise to draw (e < a / 2); beyond 2**8 it is never free.
AMPLIFICATION_BITS = range(2, 9)


@dataclass(frozen=True, slots=True)
class Alternative:
    """One choice and what it needs."""

    profile: str
    modulus_bits: int
    amplification_bits: int
    required_bits: int
    limbs: int


def alternatives(
    program: Program,
    profiles: Iterable[str] = PROFILES,
    widths: Iterable[int] = WIDTHS,
    amplification_bits: Iterable[int] = AMPLIFICATION_BITS,
) -> list[Alternative]:
    """All combinations, cheapest first: fewest limbs, then most amplification (room for noise), then narrowest.

    Bounds are those of ``program.settings.bounds``; amplifications that the program cannot be planned for are left out.
    """
    widths, profiles = tuple(widths), tuple(profiles)
    found = [a for bits in amplification_bits for a in _with(program, bits, profiles, widths)]
    return sorted(found, key=lambda a: (a.limbs, -a.amplification_bits, a.modulus_bits, a.profile))


def _with(program: Program, bits: int, profiles: tuple[str, ...], widths: tuple[int, ...]) -> Iterator[Alternative]:
    try:
        changed = Program(program.graph, replace(program.settings, amplification_bits=bits))
    except ParameterError:
        return
    for profile in profiles:
        certificate = changed.certificate(profile)
        for width in widths:
            limbs = limbs_needed(certificate.required_product, width)
            yield Alternative(profile, width, bits, certificate.required_bits, limbs)


def cheapest(program: Program, profile: str, modulus_bits: int | None, amplification_bits: int | None) -> Program:
    """The program with the cheapest of what is None, counted in one profile."""
    widths = WIDTHS if modulus_bits is None else (modulus_bits,)
    amplifications = AMPLIFICATION_BITS if amplification_bits is None else (amplification_bits,)
    best = alternatives(program, (profile,), widths, amplifications)[0]
    width, amplification = best.modulus_bits, best.amplification_bits
    return Program(program.graph, replace(program.settings, modulus_bits=width, amplification_bits=amplification))
