"""The plan of a lattice program: ring degree, moduli, scales, and where ciphertexts are rescaled and relinearised.

What must hold (:class:`Requirements`):

- at every value, scale * bound < Q / 4 for the product Q of the limbs left: twice the bound for both signs, and as much
  again for noise. The bound is proved for every image, as in the modular scheme, so no image wraps;
- noise added at any place, over the scale there, is at most 2^-precision, by :mod:`mcfhe.lattice.noise`;
- the moduli fit the 128-bit table (:mod:`mcfhe.lattice.security`).

Among what holds, the smallest ring degree, and in it the least work, counted in multiply-adds and transforms. Squares
are few, so all numbers of rescalings after each of them are tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import log2, prod

from mcfhe.errors import ParameterError
from mcfhe.graph.nodes import Add, AvgPool2d, Concat, Conv2d, Flatten, Graph, Linear, Node, Poly
from mcfhe.graph.steps import Ring
from mcfhe.lattice import noise
from mcfhe.lattice.lower import ALIGNMENT_BITS, Placement
from mcfhe.lattice.ring import ntt_primes
from mcfhe.lattice.security import MAX_MODULUS_BITS
from mcfhe.modular.constants import LayerConstants

MODULUS_BITS = 30
SPECIAL_BITS = 31
MAX_LIMBS = 60
MAX_RESCALES = 4  # after one square
MAX_POINTS = 8  # places where ciphertexts are rescaled and relinearised
DEGREES = (4096, 8192, 16384, 32768)
INPUT_BITS = range(20, 41, 2)
_MARGIN_BITS = 2.0  # sign, and noise beside the bound

# Relative costs of one residue: a multiply-add in a layer, and one transform in a ring step (log2(n) / 2 butterflies).
_MAC = 0.02
_TRANSFORM = 1.0


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


@dataclass(frozen=True, slots=True)
class Requirements:
    """``bounds``: log2 of the proved bound of each node's value, as a real number. ``precision``: bits."""

    bounds: tuple[float, ...]
    precision: float


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
    points = ring_points(graph)
    if len(points) > MAX_POINTS:
        raise ParameterError(
            f"lattice plan: {len(points)} squares in a row of rescalings, at most {MAX_POINTS}; use client refresh or "
            "the modular scheme"
        )
    constants = LayerConstants(layer_bits)
    requirements = Requirements(tuple(bounds), precision)
    fewest: int | None = None
    for n in DEGREES if degree is None else (degree,):
        if n not in MAX_MODULUS_BITS:
            raise ParameterError(f"degree {n}: the 128-bit table has {', '.join(map(str, MAX_MODULUS_BITS))}")
        most = min(MAX_LIMBS, (MAX_MODULUS_BITS[n] - SPECIAL_BITS) // MODULUS_BITS)
        best: tuple[float, Plan] | None = None
        for candidate in _candidates(graph, constants, points, requirements, n):
            fewest = candidate.limbs if fewest is None else min(fewest, candidate.limbs)
            if candidate.limbs <= most:
                cost = work(graph, candidate)
                if best is None or cost < best[0]:
                    best = (cost, candidate)
        if best is not None:
            return best[1]
    depth = sum(isinstance(node, Poly) for node in graph.nodes)
    needed = "no number of limbs" if fewest is None else f"{fewest} limbs of {MODULUS_BITS} bits"
    raise ParameterError(
        f"lattice plan: {depth} squares need {needed} at precision 2^-{precision:g}, the 128-bit table allows "
        f"{MAX_MODULUS_BITS[max(DEGREES)]} bits at n = {max(DEGREES)}; use fewer activations, smaller scale_bits, "
        "or the modular scheme"
    )


def ring_points(graph: Graph) -> dict[int, int]:
    """For every square (index of its node) the index of the node after which it is rescaled and relinearised.

    Behind a square only linear steps follow up to the next square, a sum, or a value that is read twice; of the nodes
    in between, the one where ciphertexts are fewest, counting that linear layers cost half as much again until then.
    """
    readers: dict[int, list[int]] = {}
    for index, node in enumerate(graph.nodes):
        for source in node.inputs:
            readers.setdefault(source, []).append(index)
    points = {}
    for index, node in enumerate(graph.nodes):
        if not isinstance(node, Poly):
            continue
        best, best_cost, extra, at = index, float("inf"), 0.0, index
        while True:
            # a typical level; what is compared differs by far more than that matters
            cost = prod(graph.shapes[at]) * 60 * _TRANSFORM + extra
            if cost < best_cost:
                best, best_cost = at, cost
            following = readers.get(at, [])
            if len(following) != 1 or not isinstance(graph.nodes[following[0]], (Conv2d, Linear, AvgPool2d, Flatten)):
                break
            at = following[0]
            extra += 6 * _MAC * _macs(graph.nodes[at], prod(graph.shapes[at]))
        points[index] = best
    return points


def _macs(node: Node, outputs: int) -> int:
    match node:
        case Conv2d() | Linear():
            return int(node.weight[0].size) * outputs
        case AvgPool2d():
            return node.kernel[0] * node.kernel[1] * outputs
    return outputs


def _candidates(
    graph: Graph, constants: LayerConstants, points: Mapping[int, int], requirements: Requirements, degree: int
) -> Iterator[Plan]:
    places = sorted(set(points.values()))
    # scales are planned with powers of two; the primes differ from them by less than 2^-9 in all
    for input_bits in INPUT_BITS:
        if log2(noise.fresh(degree)) - input_bits > -requirements.precision:
            continue
        for rescales in product(range(MAX_RESCALES + 1), repeat=len(places)):
            found = _levels(
                graph, constants, dict(zip(places, rescales, strict=True)), requirements, degree, input_bits
            )
            if found is not None:
                yield found


def _levels(
    graph: Graph,
    constants: LayerConstants,
    rescales: Mapping[int, int],
    requirements: Requirements,
    degree: int,
    input_bits: int,
) -> Plan | None:
    """The fewest limbs everywhere for one choice of rescalings, or None where noise or a sum rules it out."""
    scales: list[float] = []  # log2, after the ring steps of a node
    needs: list[float] = []  # bits of modulus before them
    after: list[float] = []  # and after them
    passed: list[int] = []  # rescalings on the way
    for index, node in enumerate(graph.nodes):
        inputs = [scales[i] for i in node.inputs]
        match node:
            case Conv2d() | Linear():
                scale = inputs[0] + constants.bits(node)
            case AvgPool2d():
                scale = inputs[0] + (0 if node.divisor == 1 else constants.bits(node))
            case Poly():
                scale = 2 * inputs[0] + constants.bits(node)
            case Add() | Concat():
                # rescaled equally often: powers of two apart; otherwise primes differ, and factors must bring them together
                equal = len({passed[i] for i in node.inputs}) == 1
                scale = max(inputs) + (0 if equal else ALIGNMENT_BITS + 1)
            case Flatten():
                scale = inputs[0]
            case _:
                scale = float(input_bits)
        needs.append(scale + requirements.bounds[index] + _MARGIN_BITS)
        count = rescales.get(index)
        passed.append(max((passed[i] for i in node.inputs), default=0) + (count or 0))
        if count is not None:
            scale -= count * MODULUS_BITS
            # relinearised after rescaling, on fewer limbs; its noise counts at the new scale
            added = max(noise.rescaled(degree, 3), noise.relinearised(degree, 12, MODULUS_BITS, SPECIAL_BITS))
            if log2(added) - scale > -requirements.precision:
                return None
        after.append(scale + requirements.bounds[index] + _MARGIN_BITS)
        scales.append(scale)
    # from the output backwards: as few limbs as the value, and all that is made of it, can do with
    limbs_after = [0] * len(graph.nodes)
    limbs_before = [0] * len(graph.nodes)
    for index in reversed(range(len(graph.nodes))):
        own = max(1, -(-int(after[index] * 1000) // (MODULUS_BITS * 1000 - 1)))
        limbs_after[index] = max(limbs_after[index], own)
        before = max(1, -(-int(needs[index] * 1000) // (MODULUS_BITS * 1000 - 1)))
        limbs_before[index] = max(before, limbs_after[index] + rescales.get(index, 0))
        for source in graph.nodes[index].inputs:
            limbs_after[source] = max(limbs_after[source], limbs_before[index])
    placements = tuple((index, Placement(count, limbs_after[index], True)) for index, count in sorted(rescales.items()))
    return Plan(degree, limbs_before[0], input_bits, placements)


def work(graph: Graph, plan: Plan) -> float:
    """Relative time of an evaluation: per column of the stream, so that ring degrees compare by the image."""
    placements = dict(plan.placements)
    limbs, parts = [plan.limbs], [2]
    total = 0.0
    for index, (node, shape) in enumerate(zip(graph.nodes, graph.shapes, strict=True)):
        count = prod(shape)
        if index:
            source = node.inputs[0]
            limbs.append(min(limbs[i] for i in node.inputs))
            parts.append(3 if isinstance(node, Poly) else parts[source])
            total += _MAC * _macs(node, count) * limbs[-1] * parts[-1]
        placement = placements.get(index)
        if placement is not None:
            level = limbs[-1]
            for _ in range(placement.rescales):
                total += _TRANSFORM * count * parts[-1] * level
                level -= 1
            level = placement.limbs
            if placement.relinearise:
                total += _TRANSFORM * count * (level * level + 4 * level)
                parts[-1] = 2
            limbs[-1] = level
    return total
