"""The plan of a lattice program: ring degree, moduli, scales, and where ciphertexts are rescaled and relinearised.

What must hold (:class:`mcfhe.lattice.search.Requirements`):

- at every value, scale * bound < Q / 4 for the product Q of the limbs left: twice the bound for both signs, and as much
  again for noise. The bound is proved for every image, as in the modular scheme, so no image wraps;
- noise added at any place, over the scale there, is at most 2^-precision, by :mod:`mcfhe.lattice.noise`;
- the moduli fit the 128-bit table (:mod:`mcfhe.lattice.security`).

Among what holds, the smallest ring degree, and in it the least work (:mod:`mcfhe.lattice.work`), found by
:mod:`mcfhe.lattice.search`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import log2, prod

from mcfhe.errors import ParameterError
from mcfhe.graph.nodes import Graph, Poly
from mcfhe.graph.steps import Ring
from mcfhe.lattice.lower import Placement
from mcfhe.lattice.ring import ntt_primes
from mcfhe.lattice.search import MAX_LIMBS, MODULUS_BITS, SPECIAL_BITS, Candidate, Requirements, Search
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

    @property
    def ring(self) -> Ring:
        return make_ring(self.degree, self.limbs)

    @property
    def modulus_bits(self) -> int:
        """Bits of the product of all moduli, the special one included."""
        ring = self.ring
        return (prod(ring.moduli) * ring.special).bit_length()


@cache
def make_ring(degree: int, limbs: int) -> Ring:
    """The largest primes below 2^30 that are 1 modulo 2 * degree, and one below 2^31 for key switching."""
    *moduli, special = ntt_primes(degree, [MODULUS_BITS] * limbs + [SPECIAL_BITS])
    return Ring(degree, tuple(moduli), special)


def most_limbs(degree: int) -> int:
    """How many limbs the 128-bit table allows beside the special modulus."""
    return min(MAX_LIMBS, (MAX_MODULUS_BITS[degree] - SPECIAL_BITS) // MODULUS_BITS)


def make_plan(
    graph: Graph, layer_bits: Mapping[str, int], bounds: Sequence[float], precision: float, degree: int | None = None
) -> Plan:
    """The plan with the least work. ParameterError, with how deep a network may be, if no table entry is wide enough.

    Args:
        graph: quantised.
        layer_bits: a scale for every layer that pays one.
        bounds: log2 of the largest absolute value of each node.
        precision: bits below 1 of the noise added at any place.
        degree: the ring degree, instead of the smallest that will do.
    """
    degrees = DEGREES if degree is None else (degree,)
    if degree is not None and degree not in DEGREES:
        raise ParameterError(f"degree {degree}: choose one of {', '.join(map(str, DEGREES))}")
    constants, points, requirements = (
        LayerConstants(layer_bits),
        ring_points(graph),
        Requirements(tuple(bounds), precision),
    )

    def candidates(n: int, most: int, greedy: bool) -> list[Candidate]:
        drift = MODULUS_BITS - log2(min(make_ring(n, most).moduli))
        return list(Search(graph, constants, points, requirements, n, drift, most, greedy).candidates())

    for n in degrees:
        found = [candidate for candidate in candidates(n, most_limbs(n), False) if candidate.limbs <= most_limbs(n)]
        if found:
            return min((_plan(n, candidate) for candidate in found), key=lambda p: work(graph, p.limbs, p.placements))
    greedy = candidates(degrees[-1], MAX_LIMBS, True)
    raise ParameterError(_too_deep(graph, degrees[-1], precision, min((c.limbs for c in greedy), default=None)))


def _plan(degree: int, candidate: Candidate) -> Plan:
    placements = tuple((index, Placement(count, limbs, True)) for index, count, limbs in candidate.rescales)
    return Plan(degree, candidate.limbs, candidate.input_bits, placements)


def _too_deep(graph: Graph, degree: int, precision: float, fewest: int | None) -> str:
    depth, most = _depth(graph), most_limbs(degree)
    if fewest is None:
        needed = f"have no plan of {MAX_LIMBS} limbs or fewer"
    else:
        needed = f"need {fewest} limbs of {MODULUS_BITS} bits"
    about = "" if fewest is None else f"; about {depth * most // fewest} of them in a row fit"
    return (
        f"lattice plan: {depth} squares in a row {needed} at precision 2^-{precision:g}, the 128-bit table allows "
        f"{most} at n = {degree}{about}: use fewer activations or smaller scale_bits, let the client decrypt and "
        "encrypt anew between two halves of the network, or choose the modular scheme"
    )


def _depth(graph: Graph) -> int:
    """Squares on the longest path."""
    depths: list[int] = []
    for node in graph.nodes:
        depths.append(max((depths[i] for i in node.inputs), default=0) + isinstance(node, Poly))
    return depths[-1]
