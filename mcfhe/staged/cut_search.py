"""Where to cut: fewest cuts such that every stage is possible, then the least cost.

A stage is a pair (start, end) of places in a line; its cost is known only once it has been planned, which is
expensive. So plans are made lazily, as shortest paths are searched in graphs with expensive edges (C. Dellin,
S. Srinivasa, A Unifying Formalism for Shortest Path Problems with Expensive Edge Evaluations via Lazy Best-First
Search, ICAPS 2016): take the cheapest way by lower bounds, plan a stage of it that is not planned yet, and go on until
all stages of the cheapest way are planned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

Pair = tuple[int, int]


class CutSearch:
    """Costs of stages between ``places``, each planned at most once."""

    def __init__(
        self,
        start: int,
        places: Sequence[int],
        end: int,
        cost: Callable[[int, int], float | None],
        bound: Callable[[int, int], float],
        monotone: bool,
    ) -> None:
        """
        Args:
            start, end: of the whole; ``places`` lie between them, ascending.
            cost: of the stage between two places, None for one that is impossible.
            bound: at most the cost, without a plan.
            monotone: what contains an impossible stage is impossible too, and is not planned.
        """
        self._points = (start, *places, end)
        self._cost, self._bound, self._monotone = cost, bound, monotone
        self._known: dict[Pair, float] = {}
        self._guesses: dict[Pair, float] = {}

    @property
    def planned(self) -> int:
        """Stages planned so far."""
        return len(self._known)

    def best(self, counts: Iterable[int]) -> tuple[int, ...] | None:
        """Places of the cuts, for the first of ``counts`` with which all stages are possible; None if there is none."""
        for count in counts:
            while (way := self._cheapest(count)) is not None:
                open_ = [pair for pair in pairwise(way) if pair not in self._known]
                if not open_:
                    return way[1:-1]
                self._plan(max(open_, key=self._guess))  # the largest is the likeliest to be impossible
        return None

    def _plan(self, pair: Pair) -> None:
        cost = self._cost(*pair)
        self._known[pair] = math.inf if cost is None else cost
        if cost is None and self._monotone:
            for wider in ((a, b) for a in self._points for b in self._points if a <= pair[0] and pair[1] <= b):
                self._guesses[wider] = math.inf

    def _guess(self, pair: Pair) -> float:
        """The cost where it is known, else its lower bound."""
        if pair in self._known:
            return self._known[pair]
        if pair not in self._guesses:
            self._guesses[pair] = self._bound(*pair)
        return self._guesses[pair]

    def _cheapest(self, count: int) -> tuple[int, ...] | None:
        """Points of the cheapest way with ``count`` cuts by what is known and guessed; None if all are impossible."""
        points = self._points
        ways: dict[int, tuple[float, tuple[int, ...]]] = {points[0]: (0.0, points[:1])}
        for left in range(count, -1, -1):
            reached: dict[int, tuple[float, tuple[int, ...]]] = {}
            for point, (cost, way) in ways.items():
                for after in points[-1:] if not left else points[1:-1]:
                    if after <= point:
                        continue
                    total = cost + self._guess((point, after))
                    if total < reached.get(after, (math.inf, ()))[0]:
                        reached[after] = (total, (*way, after))
            ways = reached
        return ways[points[-1]][1] if points[-1] in ways else None
