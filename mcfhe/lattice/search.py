"""How many rescalings after each square: the search behind :func:`mcfhe.lattice.plan.make_plan`.

Dynamic programming along the graph. Between two nodes all that the rest of the network depends on is, for every value
that is read later, its scale (:class:`Scale`); there are few of those, however many ways lead to one. From the output
backwards every such state gets its front: pairs of (limbs that each value must still have, cost of the rest) none of
which is beaten in both. Cost grows with limbs, so the front of the input holds a cheapest plan for every number of
limbs. Two things are estimated: a node is charged the limbs that it needs and not those that its input happens to have,
and scales are bounded from both sides instead of known, because which primes a ciphertext loses depends on all choices.
:mod:`mcfhe.lattice.refinement` goes on from the candidates, where both are known.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, floor, log2, prod

from mcfhe.graph.nodes import Add, AvgPool2d, Concat, Conv2d, Flatten, Graph, Linear, Node, Poly
from mcfhe.graph.steps import Ring
from mcfhe.lattice import noise
from mcfhe.lattice.lower import Placement, is_linear, raised_bits
from mcfhe.lattice.work import components, linear_work, ring_work
from mcfhe.modular.constants import LayerConstants

MODULUS_BITS = 30  # of every prime but the first
SPECIAL_BITS = 31
MAX_LIMBS = 60
MAX_RESCALES = 4  # after one square
INPUT_BITS = range(20, 41, 2)
MARGIN_BITS = 2.0  # both signs, and noise beside the bound


@dataclass(frozen=True, slots=True)
class Requirements:
    """``bounds``: log2 of the proved bound of each node's value, as a real number. ``precision``: bits."""

    bounds: tuple[float, ...]
    precision: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """``rescales``: (index of a node, rescalings, limbs afterwards) for every place where there may be some."""

    limbs: int
    input_bits: int
    rescales: tuple[tuple[int, int, int], ...]

    @property
    def placements(self) -> tuple[tuple[int, Placement], ...]:
        return tuple((index, Placement(count, limbs, True)) for index, count, limbs in self.rescales)


@dataclass(frozen=True, slots=True)
class Scale:
    """A value's scale is 2^low or, since primes are a little smaller than 2^30, a little more.

    ``lost``: which primes it is divided by, and how often, by their place among the limbs of the value that lost the
    first of them (:func:`_primes`). Two values that agree in it have scales that are a power of two apart exactly.
    """

    low: int
    lost: tuple[tuple[int, int], ...]


State = tuple[Scale, ...]  # of the values that are read later, by index


@dataclass(frozen=True, slots=True)
class _Past:
    """Over all ways to a state: log2 of how much larger than 2^low each scale may be; fewest rescalings so far."""

    drifts: tuple[float, ...]
    rescales: int

    def join(self, other: _Past) -> _Past:
        drifts = tuple(max(a, b) for a, b in zip(self.drifts, other.drifts, strict=True))
        return _Past(drifts, min(self.rescales, other.rescales))


@dataclass(frozen=True, slots=True)
class _Step:
    """One way past a node: what it makes of a state."""

    rescales: int
    needed_before: int  # limbs before the rescalings
    needed_after: int
    state: State
    past: _Past


@dataclass(frozen=True, slots=True)
class _Rest:
    """Of one way to the output: limbs that each value of a state must have, cost, and the choices made."""

    limbs: tuple[int, ...]
    cost: float
    choices: tuple[object, ...] | None  # (index, rescalings, limbs after), the choices behind it


_END = _Rest((1,), 0.0, None)


class Search:
    """All scales that one graph can have in one ring degree, and what is best from each."""

    def __init__(
        self,
        graph: Graph,
        constants: LayerConstants,
        points: Mapping[int, int],
        requirements: Requirements,
        ring: Ring,
        greedy: bool = False,
    ) -> None:
        """``points``: node after which each square is rescaled, by the square's index. ``ring``: that of a plan with
        the most limbs. ``greedy``: everywhere as many rescalings as the noise allows."""
        self._ring, self._most, self._greedy = ring, len(ring.moduli), greedy
        self._graph, self._constants = graph, constants
        self._places = frozenset(points.values())
        self._requirements = requirements
        # the first prime is never divided by; of the others, how far the smallest falls short of 2^30
        self._base = log2(ring.moduli[0])
        self._drift = MODULUS_BITS - log2(min(ring.moduli[1:], default=1 << MODULUS_BITS))
        last = {source: index for index, node in enumerate(graph.nodes) for source in node.inputs}
        last[len(graph.nodes) - 1] = len(graph.nodes)
        self._live = [[v for v in range(i + 1) if last.get(v, -1) > i] for i in range(len(graph.nodes))]
        self._linear = [is_linear(node) for node in graph.nodes]
        self._twins = _twins(graph, self._places)
        self._parts = components(graph, self._places)
        # values of one origin have the same limbs: those that were there before, less as many as were rescaled by
        self._origins: list[int] = []
        for index, node in enumerate(graph.nodes):
            origins = {i if i in self._places else self._origins[i] for i in node.inputs}
            self._origins.append(origins.pop() if len(origins) == 1 else index)

    def candidates(self) -> Iterator[Candidate]:
        """Best plans by number of limbs, for every scale of the input. None if noise rules all out."""
        first = [(Scale(bits, ()),) for bits in self._inputs]
        tables = self._forward(first)
        fronts = self._backward(tables)
        for bits, state in zip(self._inputs, first, strict=True):
            for rest in fronts.get(state, ()):
                yield self._candidate(bits, rest)

    def fitted(
        self, input_bits: int, rescales: Mapping[int, int], needs: Sequence[tuple[int, int]] | None = None
    ) -> Candidate | None:
        """The plan with so many rescalings after each node; None if its noise is too much.

        ``needs``: of every node's value the limbs before its rescalings and after, if better known than by estimate.
        """
        if input_bits not in self._inputs:
            return None
        state: State = (Scale(input_bits, ()),)
        past = _Past((0.0,), 0)
        chosen = list[_Step]()
        for index in range(1, len(self._graph.nodes)):
            step = next(self._steps(index, state, past, rescales.get(index, 0)), None)
            if step is None:
                return None
            state, past = step.state, step.past
            before, after = needs[index] if needs else (step.needed_before, step.needed_after)
            chosen.append(replace(step, needed_before=before, needed_after=after))
        rest = _END
        for index, step in reversed(list(enumerate(chosen, 1))):
            rest = self._rest(index, step, rest)
        return self._candidate(input_bits, rest, needs[0][0] if needs else None)

    def _candidate(self, input_bits: int, rest: _Rest, fresh: int | None = None) -> Candidate:
        limbs = max(rest.limbs[0], self._limbs(input_bits, 0) if fresh is None else fresh)
        return Candidate(limbs, input_bits, tuple(_unrolled(rest.choices)))

    @cached_property
    def _inputs(self) -> tuple[int, ...]:
        fresh = log2(noise.fresh(self._ring.degree))
        return tuple(bits for bits in INPUT_BITS if fresh - bits <= -self._requirements.precision)

    @cached_property
    def groups(self) -> list[tuple[int, ...]]:
        """Places, those together that rescale alike."""
        groups: dict[int, tuple[int, ...]] = {}
        for index in sorted(self._places):
            first = self._twins.get(index, index)
            groups[first] = (*groups.get(first, ()), index)
        return list(groups.values())

    def _limbs(self, high: float, index: int) -> int:
        """The fewest that hold the value of a node at a scale of 2^high."""
        bits = high + self._requirements.bounds[index] + MARGIN_BITS
        return 1 + max(0, ceil((bits - self._base) / (MODULUS_BITS - self._drift)))

    def _forward(self, first: Sequence[State]) -> list[dict[State, list[_Step]]]:
        """For every node but the input: each state that it may find, and the ways past it."""
        tables: list[dict[State, list[_Step]]] = []
        reached = dict.fromkeys(first, _Past((0.0,), 0))
        for index in range(1, len(self._graph.nodes)):
            table = {state: list(self._steps(index, state, past)) for state, past in reached.items()}
            reached = {}
            for steps in table.values():
                for step in steps:
                    known = reached.get(step.state)
                    reached[step.state] = step.past if known is None else known.join(step.past)
            tables.append(table)
        return tables

    def _steps(self, index: int, state: State, past: _Past, only: int | None = None) -> Iterator[_Step]:
        """The ways past a node, or the one of them with ``only`` so many rescalings."""
        node = self._graph.nodes[index]
        live = self._live[index - 1]
        scales, drifts = dict(zip(live, state, strict=True)), dict(zip(live, past.drifts, strict=True))
        made, drift = self._made(index, node, [scales[i] for i in node.inputs], [drifts[i] for i in node.inputs])
        linear = [i for i in node.inputs if self._linear[i]]  # made at the scale of the sum
        before = max(self._limbs(made.low + drift, i) for i in (index, *linear))
        counts = range(1)
        if index in self._places:
            lowest = self._requirements.precision + self._noise
            counts = range(min(MAX_RESCALES, floor((made.low - lowest) / MODULUS_BITS)) + 1)
            counts = counts[-1:] if self._greedy else counts
            if (twin := scales.get(self._twins.get(index, -1))) is not None:
                alike = round((made.low - twin.low) / MODULUS_BITS)
                counts = range(alike, alike + 1) if alike in counts else counts
        for count in counts if only is None else (only,) if only in counts else ():
            lost = sorted((*made.lost, *((_name(self._origins[index], i), 1) for i in range(count))))
            after = Scale(made.low - count * MODULUS_BITS, tuple(lost))
            shift = drift + count * self._drift
            needed = self._limbs(after.low + shift, index)
            needed_before = max(before, needed + count)
            # every rescaling so far took a limb; sums may have met on the way, so count those of one path only
            if needed_before + past.rescales > self._most:
                continue
            values, shifts = scales | {index: after}, drifts | {index: shift}
            following = self._live[index]
            rescales = past.rescales + count if len(live) == len(following) == 1 else past.rescales
            behind = _Past(tuple(shifts[v] for v in following), rescales)
            yield _Step(count, needed_before, needed, _normal([values[v] for v in following]), behind)

    @cached_property
    def _noise(self) -> float:
        """Ciphertexts of three components are rescaled, then relinearised: log2 of the larger noise."""
        degree = self._ring.degree
        relinearised = noise.relinearised(degree, self._ring.moduli, self._ring.special)
        return log2(max(noise.rescaled(degree, 3), relinearised))

    def _made(self, index: int, node: Node, inputs: Sequence[Scale], drifts: Sequence[float]) -> tuple[Scale, float]:
        x, drift = inputs[0], drifts[0]
        match node:
            case AvgPool2d() if node.divisor == 1:
                return x, drift
            case Conv2d() | Linear() | AvgPool2d():
                return Scale(x.low + self._constants.bits(node), x.lost), drift
            case Poly() if self._linear[index]:
                return Scale(x.low, ((_name(index, _ROUNDED), 1),)), drift
            case Poly():
                lost = tuple((place, 2 * times) for place, times in x.lost)
                return Scale(2 * x.low + self._constants.bits(node), lost), 2 * drift
            case Add() | Concat():
                linear = [self._linear[i] for i in node.inputs]
                low, high, exact = _joined(inputs, drifts, linear)
                return Scale(low, x.lost if exact else ((_name(index, _JOINED), 1),)), high - low
            case Flatten():
                return x, drift
        raise TypeError(f"layer {node.name!r}: no scale for {type(node).__name__}")

    def _backward(self, tables: Sequence[Mapping[State, Sequence[_Step]]]) -> dict[State, list[_Rest]]:
        fronts: dict[State, list[_Rest]] = {}
        for index in reversed(range(1, len(self._graph.nodes))):
            final = index == len(self._graph.nodes) - 1
            found = {}
            for state, steps in tables[index - 1].items():
                ways = [
                    self._rest(index, step, rest)
                    for step in steps
                    for rest in ([_END] if final else fronts.get(step.state, ()))
                ]
                found[state] = _front(ways)
            fronts = found
        return fronts

    def _rest(self, index: int, step: _Step, behind: _Rest) -> _Rest:
        node, parts = self._graph.nodes[index], self._parts[index]
        needs = dict(zip(self._live[index], behind.limbs, strict=True))
        after = max(step.needed_after, needs.pop(index, 1))
        before = max(step.needed_before, after + step.rescales)
        outputs = prod(self._graph.shapes[index])
        cost, choices = behind.cost, behind.choices
        if index in self._places:
            # every place is behind a square: three components up to here, two from here on
            cost += linear_work(node, outputs) * before * 3 + ring_work(outputs, before, step.rescales, after)
            choices = ((index, step.rescales, after), behind.choices)
        else:
            cost += linear_work(node, outputs) * before * parts
        for source in node.inputs:
            needs[source] = max(needs.get(source, 1), before)
        return _Rest(tuple(needs[v] for v in self._live[index - 1]), cost, choices)


def _twins(graph: Graph, places: Collection[int]) -> dict[int, int]:
    """Of squares that are rescaled where they are made, those of one value: the first by index of the others.

    They are halves of one activation, whose sum would pay alignment if they lost different primes.
    """
    first: dict[tuple[int, ...], int] = {}
    squares = [(i, node.inputs) for i, node in enumerate(graph.nodes) if isinstance(node, Poly) and i in places]
    return {index: twin for index, source in squares if (twin := first.setdefault(source, index)) != index}


def _name(index: int, which: int) -> int:
    """Of a prime that a value loses, or of what stands for one: node ``index``, and the number of the prime there."""
    return index * (MAX_RESCALES + 2) + which


_JOINED, _ROUNDED = MAX_RESCALES, MAX_RESCALES + 1
_ALIKE = -1


def _joined(values: Sequence[Scale], drifts: Sequence[float], linear: Sequence[bool]) -> tuple[int, float, bool]:
    """log2 of the least and the largest scale that :func:`mcfhe.lattice.lower.alignment` can give, and if it is exact.

    ``linear``: operands that it rounds.
    """
    lows = [value.low for value in values]
    highs = [value.low + drift for value, drift in zip(values, drifts, strict=True)]
    if len({value.lost for value in values}) == 1 and not any(linear):
        return max(lows), max(highs), True
    # bits from the largest scale down to each: least and most
    gaps = [(max(lows) - high, max(highs) - low) for low, high in zip(lows, highs, strict=True)]
    if any(linear):
        gaps = [gap for gap, rounded in zip(gaps, linear, strict=True) if rounded]
        least, most = min(gap[0] for gap in gaps), min(gap[1] for gap in gaps)
    else:  # one is the largest, and those that are a power of two below it do not count
        least, most = sorted(gap[0] for gap in gaps)[1], max(gap[1] for gap in gaps)
    return max(lows) + raised_bits(most), max(highs) + raised_bits(max(0.0, least)), False


def _normal(scales: Sequence[Scale]) -> State:
    """The same state in one form: what all values have lost alike needs no names, but that something was lost."""
    lost = {scale.lost for scale in scales}
    if len(lost) > 1 or lost == {()}:
        return tuple(scales)
    return tuple(Scale(scale.low, ((_ALIKE, 1),)) for scale in scales)


def _front(ways: Sequence[_Rest]) -> list[_Rest]:
    """Those that no other beats in limbs and cost."""
    kept: list[_Rest] = []
    for way in sorted(ways, key=lambda rest: (rest.cost, rest.limbs)):
        if not any(all(a <= b for a, b in zip(rest.limbs, way.limbs, strict=True)) for rest in kept):
            kept.append(way)
    return kept


def _unrolled(choices: object) -> Iterator[tuple[int, int, int]]:
    while isinstance(choices, tuple):
        yield choices[0]
        choices = choices[1]
