"""Fewest cuts, then least cost, against trying everything; and how few stages are planned for it."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcfhe.staged.cut_search import CutSearch


def brute_force(points: list[int], costs: dict[tuple[int, int], float | None], counts: range) -> float | None:
    """Least cost with the first count that has a way."""
    for count in counts:
        totals = []
        for cuts in itertools.combinations(points[1:-1], count):
            found = [costs[pair] for pair in itertools.pairwise((points[0], *cuts, points[-1]))]
            totals += [] if None in found else [sum(v for v in found if v is not None)]
        if totals:
            return min(totals)
    return None


@given(st.integers(2, 6), st.integers(0, 2**31), st.booleans(), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_equals_brute_force(places: int, seed: int, monotone: bool, first: int) -> None:
    import random

    source = random.Random(seed)
    points = sorted(source.sample(range(100), places + 2))
    limit = source.randint(1, places + 1)
    costs: dict[tuple[int, int], float | None] = {}
    for i, j in itertools.combinations(range(len(points)), 2):
        possible = j - i <= limit if monotone else source.random() < 0.7
        costs[points[i], points[j]] = source.randint(1, 20) * (j - i) ** 2 if possible else None
    planned: list[tuple[int, int]] = []

    def cost(start: int, end: int) -> float | None:
        planned.append((start, end))
        return costs[start, end]

    def bound(start: int, end: int) -> float:
        known = costs[start, end]
        return source.choice((0.0, 1.0)) if known is None else known * source.choice((0.1, 0.5, 1.0))

    search = CutSearch(points[0], points[1:-1], points[-1], cost, bound, monotone)
    counts = range(first, places + 1)
    found = search.best(counts)
    expected = brute_force(points, costs, counts)
    assert (found is None) == (expected is None)
    if found is not None:
        way = itertools.pairwise((points[0], *found, points[-1]))
        assert sum(costs[pair] or math.inf for pair in way) == expected
    assert len(planned) == len(set(planned)) == search.planned


def test_few_stages_are_planned() -> None:
    """A line of 40 places where at most 12 fit a stage and bounds are a quarter of the cost."""
    asked = []

    def cost(start: int, end: int) -> float | None:
        asked.append((start, end))
        return float((end - start) ** 2 + 100 * (end % 7)) if end - start <= 12 else None

    search = CutSearch(0, range(1, 41), 41, cost, lambda a, b: ((b - a) ** 2 + 100 * (b % 7)) / 4, monotone=True)
    found = search.best(range(42))
    assert found is not None
    assert len(found) == 3
    assert max(b - a for a, b in itertools.pairwise((0, *found, 41))) <= 12
    assert len(asked) < 861 / 3, "of 861 pairs"


@pytest.mark.parametrize("monotone", [False, True])
def test_nothing_is_possible(monotone: bool) -> None:
    search = CutSearch(0, [3, 5], 9, lambda a, b: None, lambda a, b: 0.0, monotone)
    assert search.best(range(3)) is None
    assert search.best(()) is None
