"""Plans near the best that the search finds, by their true work and with the primes that they really lose.

:class:`mcfhe.lattice.search.Search` estimates two things. It charges a node the limbs that it needs, where its input
may have more, so it may rescale before a key switch where it is cheaper to drop limbs. And it takes every prime that
a scale is divided by for the smallest of the ring, where those that are lost first are the largest. Each square doubles
the difference: a few hundredths of a bit in shallow networks, which cost a limb where a value just fits, but in deep
ones a limb or two that nothing uses. Of one plan both are known, so each is made as tight as its primes allow, and
left for its best neighbour while that takes less work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate, pairwise
from math import log2

from mcfhe.errors import ParameterError
from mcfhe.graph.nodes import Graph
from mcfhe.graph.steps import IntegerProgram, Ring
from mcfhe.lattice.lower import is_linear, lower_lattice
from mcfhe.lattice.search import MARGIN_BITS, Candidate, Search
from mcfhe.lattice.work import work

_STARTS = 8  # of the candidates, the cheapest
_ROUNDING = 1e-9  # of the sums of logarithms here


@dataclass(frozen=True, slots=True)
class Refinement:
    """Of the plans of one ``search``.

    Attributes:
        graph: that of the search, or one whose levels are the same: without biases, which take long to round.
        bounds: log2 of the proved bound of each node's value.
        ring: the moduli, by number of limbs.
        most: limbs.
    """

    search: Search
    graph: Graph
    layer_bits: Mapping[str, int]
    bounds: Sequence[float]
    ring: Callable[[int], Ring]
    most: int
    _seen: set[tuple[int, tuple[tuple[int, int], ...]]] = field(default_factory=set)

    def best(self, candidates: Sequence[Candidate]) -> Candidate:
        """The plan with the least work that is reached from the best of ``candidates``, of which there is one at least;
        never more work than theirs."""
        starts = sorted(candidates, key=self._work)[:_STARTS]
        best = self._tight(starts[0])
        for start in starts:
            best = min(best, self._climbed(self._tight(start)), key=self._work)
        return best

    def _climbed(self, best: Candidate) -> Candidate:
        """From one plan to the best of its neighbours, while that is better."""
        while True:
            most = self._work(best)
            near = [found for choice in self._near(best) if (found := self._found(*choice, most)) is not None]
            better = min(near, key=self._work, default=best)
            if self._work(better) >= self._work(best):
                return best
            best = better

    def _near(self, plan: Candidate) -> Iterator[tuple[int, dict[int, int]]]:
        """One rescaling more or fewer, or at the place before or after, or another scale of the input."""
        counts = {index: count for index, count, _ in plan.rescales}
        groups = self.search.groups
        for bits in (plan.input_bits - 2, plan.input_bits + 2):
            yield bits, counts
        moves = [{group: by} for group in groups for by in (-1, 1)]
        moves += [{a: by, b: -by} for a, b in pairwise(groups) for by in (-1, 1)]
        for move in moves:
            yield plan.input_bits, counts | {i: counts[i] + by for group, by in move.items() for i in group}

    def _found(self, input_bits: int, rescales: dict[int, int], most: float) -> Candidate | None:
        """None if it was looked at before, does not hold, or a limb less would not bring its work below ``most``."""
        key = input_bits, tuple(rescales.items())
        if key in self._seen:
            return None
        self._seen.add(key)
        found = self.search.fitted(input_bits, rescales)
        if found is None or self._work(found) * (1 - 1 / found.limbs) ** 2 >= most:
            return None
        found = self._tight(found)
        return found if found.limbs <= self.most else None

    def _tight(self, plan: Candidate) -> Candidate:
        """The same rescalings with as few limbs as their primes allow."""
        rescales = {index: count for index, count, _ in plan.rescales}
        while (program := self._lowered(plan)) is not None:
            # what a plan with a limb fewer would need of its larger primes, then what this one needs of its own
            for limbs in (plan.limbs - 1, plan.limbs):
                needs = self._needs(program, _room(self.ring(max(1, limbs))))
                tighter = self.search.fitted(plan.input_bits, rescales, needs)
                if tighter is not None and self._work(tighter) < self._work(plan) and self._holds(tighter):
                    plan = tighter
                    break
            else:
                break
        return plan

    def _lowered(self, plan: Candidate) -> IntegerProgram | None:
        start, ring = Fraction(1 << plan.input_bits), self.ring(plan.limbs)
        try:
            return lower_lattice(self.graph, self.layer_bits, ring, start, dict(plan.placements))
        except ParameterError:  # too few limbs to rescale so often
            return None

    def _holds(self, plan: Candidate) -> bool:
        program, room = self._lowered(plan), _room(self.ring(plan.limbs))
        return program is not None and all(
            room[level.limbs] >= bits for level, bits in zip(program.levels, self._bits(program), strict=True)
        )

    def _needs(self, program: IntegerProgram, room: Sequence[float]) -> list[tuple[int, int]]:
        """Limbs of every node's value before its rescalings and after them."""
        limbs = [next((k for k in range(1, len(room)) if room[k] >= b), len(room)) for b in self._bits(program)]
        first, last = dict[str, int](), dict[str, int]()
        for step, needed in zip(program.steps, limbs[1:], strict=True):
            first.setdefault(step.name, needed)
            last[step.name] = needed
        nodes = self.graph.nodes
        needs = [(limbs[0], limbs[0])]
        for node in nodes[1:]:
            linear = [nodes[i].name for i in node.inputs if is_linear(nodes[i])]  # made at the scale of the sum
            needs.append((max(first[name] for name in (node.name, *linear)), last[node.name]))
        return needs

    def _bits(self, program: IntegerProgram) -> list[float]:
        """That the modulus of the input and of each step's value must have."""
        bounds = {node.name: bound for node, bound in zip(self.graph.nodes, self.bounds, strict=True)}
        names = [self.graph.nodes[0].name, *(step.name for step in program.steps)]
        return [
            log2(level.scale) + bounds[name] + MARGIN_BITS + _ROUNDING
            for level, name in zip(program.levels, names, strict=True)
        ]

    def _work(self, plan: Candidate) -> float:
        return work(self.graph, plan.limbs, plan.placements)


def _room(ring: Ring) -> list[float]:
    """log2 of the modulus by number of limbs."""
    return [*accumulate(map(log2, ring.moduli), initial=0.0)]
