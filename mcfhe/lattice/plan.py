"""The plan of a lattice program: ring degree, moduli, scales, and where ciphertexts are rescaled and relinearised.

What must hold (:class:`mcfhe.lattice.search.Requirements`):

- at every value, scale * bound < Q / 4 for the product Q of the limbs left: twice the bound for both signs, and as much
  again for noise. The bound is proved for every image, as in the modular scheme, so no image wraps;
- noise added at any place, over the scale there, is at most 2^-precision, by :mod:`mcfhe.lattice.noise`;
- the moduli fit the 128-bit table (:mod:`mcfhe.lattice.security`).

Primes that scales are divided by have 30 bits. The first one, which none is divided by, is as wide as it is best:
31 bits where that one bit saves work, or what the table has left where a plan would else need a larger ring degree.

Among what holds, the smallest ring degree, and in it the least work (:mod:`mcfhe.lattice.work`), found by
:mod:`mcfhe.lattice.search` and, near the best that it finds, :mod:`mcfhe.lattice.refinement`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from math import prod

from mcfhe.errors import DepthError, ParameterError
from mcfhe.graph.nodes import Conv2d, Graph, Linear
from mcfhe.graph.steps import Ring
from mcfhe.lattice.lower import Placement, is_square
from mcfhe.lattice.refinement import Refinement
from mcfhe.lattice.ring import MAX_PRIME_BITS, ntt_primes
from mcfhe.lattice.search import MAX_LIMBS, MODULUS_BITS, SPECIAL_BITS, Requirements, Search
from mcfhe.lattice.security import MAX_MODULUS_BITS
from mcfhe.lattice.work import ring_points, work
from mcfhe.modular.constants import LayerConstants

DEGREES = (4096, 8192, 16384, 32768)


@dataclass(frozen=True, slots=True)
class Plan:
    """What the search chose; everything that a program over a lattice needs beside graph and layer scales."""

    degree: int
    limbs: int
    input_bits: int
    placements: tuple[tuple[int, Placement], ...]  # by index of a node
    first_bits: int = MODULUS_BITS  # of the first prime

    @property
    def ring(self) -> Ring:
        return make_ring(self.degree, self.limbs, self.first_bits)

    @property
    def modulus_bits(self) -> int:
        """Bits of the product of all moduli, the special one included."""
        ring = self.ring
        return (prod(ring.moduli) * ring.special).bit_length()


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest ring degree, and the most limbs of a fresh ciphertext."""

    degree: int = DEGREES[-1]
    limbs: int = MAX_LIMBS


@cache
def make_ring(degree: int, limbs: int, first_bits: int = MODULUS_BITS) -> Ring:
    """The largest primes below 2^30 that are 1 modulo 2 * degree, the first one below 2^first_bits, and the largest
    below 2^31 for key switching."""
    *moduli, special = ntt_primes(degree, [first_bits] + [MODULUS_BITS] * (limbs - 1) + [SPECIAL_BITS])
    return Ring(degree, tuple(moduli), special)


def most_limbs(degree: int, first_bits: int = MODULUS_BITS) -> int:
    """How many limbs the 128-bit table allows beside the special modulus."""
    return min(MAX_LIMBS, 1 + (MAX_MODULUS_BITS[degree] - SPECIAL_BITS - first_bits) // MODULUS_BITS)


def left_over(degree: int) -> int | None:
    """Bits that the table has left beside primes of 30 bits; None if no prime of so few has a transform."""
    bits = (MAX_MODULUS_BITS[degree] - SPECIAL_BITS) % MODULUS_BITS
    try:
        ntt_primes(degree, [bits])
    except ParameterError:
        return None
    return bits


def make_plan(
    graph: Graph,
    layer_bits: Mapping[str, int],
    bounds: Sequence[float],
    precision: float,
    degree: int | None = None,
    limits: Limits | None = None,
    explain: bool = True,
) -> Plan:
    """The plan with the least work. DepthError, with how deep a network may be, if no table entry is wide enough.

    Args:
        graph: quantised.
        layer_bits: a scale for every layer that pays one.
        bounds: log2 of the largest absolute value of each node.
        precision: bits below 1 of the noise added at any place.
        degree: the ring degree, instead of the smallest that will do.
        limits: what a plan may have at most, beside the table.
        explain: find out for the error how much is needed and how deep a network may be, which takes several searches.
    """
    limits = limits or Limits()
    degrees = tuple(n for n in DEGREES if n <= limits.degree) if degree is None else (degree,)
    if degree is not None and degree not in DEGREES:
        raise ParameterError(f"degree {degree}: choose one of {', '.join(map(str, DEGREES))}")
    constants = LayerConstants(layer_bits)

    def search(part: Graph, n: int, most: int, first_bits: int = MODULUS_BITS, greedy: bool = False) -> Search:
        requirements = Requirements(tuple(bounds[: len(part.nodes)]), precision)
        ring = make_ring(n, most, first_bits)
        return Search(part, constants, ring_points(part), requirements, ring, greedy)

    def best(n: int, first_bits: int) -> Plan | None:
        most = min(most_limbs(n, first_bits), limits.limbs)
        whole = search(graph, n, most, first_bits)
        found = [candidate for candidate in whole.candidates() if candidate.limbs <= most]
        if not found:
            return None
        rings = partial(make_ring, n, first_bits=first_bits)
        refinement = Refinement(whole, _without_biases(graph), layer_bits, bounds, rings, most)
        plan = refinement.best(found)
        return Plan(n, plan.limbs, plan.input_bits, plan.placements, first_bits)

    for n in degrees:
        plans = [plan for bits in (MODULUS_BITS, MAX_PRIME_BITS) if (plan := best(n, bits)) is not None]
        if not plans and (rest := left_over(n)) is not None and most_limbs(n, rest) <= limits.limbs:
            plans = [plan] if (plan := best(n, rest)) is not None else []
        if plans:
            return min(plans, key=lambda plan: work(graph, plan.limbs, plan.placements))

    n = degrees[-1]
    most = min(most_limbs(n), limits.limbs)

    def fits(part: Graph) -> bool:
        widths = [bits for bits in (MODULUS_BITS, left_over(n)) if bits is not None]
        rooms = [(bits, min(most_limbs(n, bits), limits.limbs)) for bits in widths]
        return any(c.limbs <= room for bits, room in rooms for c in search(part, n, room, bits).candidates())

    if not explain:
        raise DepthError(f"lattice plan: none of {most} limbs or fewer at n = {n}")
    # how much it would take, by the quicker search that overestimates a little
    needed = min((c.limbs for c in search(graph, n, MAX_LIMBS, greedy=True).candidates()), default=None)
    fitting = _deepest(graph, fits)
    raise _too_deep(max(_depths(graph)), n, most, precision, needed, fitting)


def _without_biases(graph: Graph) -> Graph:
    return Graph(tuple(replace(node, bias=None) if isinstance(node, Conv2d | Linear) else node for node in graph.nodes))


def _too_deep(depth: int, degree: int, most: int, precision: float, needed: int | None, fitting: int) -> DepthError:
    limbs = f"more than {MAX_LIMBS}" if needed is None else str(needed)
    allowed = "the 128-bit table allows" if most == most_limbs(degree) else "max_limbs is"
    return DepthError(
        f"lattice plan: {depth} activations in a row need {limbs} limbs of {MODULUS_BITS} bits at precision "
        f"2^-{precision:g}, {allowed} {most} at n = {degree}, where the first {fitting} of them fit",
        f"choose {'' if degree == DEGREES[-1] else 'a larger ring degree, '}client refresh (compile with "
        "for_refresh=True, then mcfhe.refresh; or `mcfhe compile --refresh`: stages between which the client decrypts "
        "and encrypts anew), fewer activations or smaller scale_bits",
    )


def _deepest(graph: Graph, fits: Callable[[Graph], bool]) -> int:
    """How many of the activations in a row fit, with all that comes before the next one."""
    depths = _depths(graph)
    low, high = 0, max(depths)
    while high - low > 1:
        middle = (low + high) // 2
        end = next(index for index, depth in enumerate(depths) if depth > middle)
        low, high = (middle, high) if fits(Graph(graph.nodes[:end])) else (low, middle)
    return low


def _depths(graph: Graph) -> list[int]:
    """Squares on the longest path to each node."""
    depths: list[int] = []
    for node in graph.nodes:
        depths.append(max((depths[i] for i in node.inputs), default=0) + is_square(node))
    return depths
