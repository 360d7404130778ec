"""The harness catches what it is there to catch: kernels with one deliberate mistake each."""

from __future__ import annotations

import pytest
from harness import Driver, SimtError, planted_names

from tests.simt.cases import Buffers, Numbers

# Which build sees the mistake, and what it says.
CAUGHT_BY = {
    "missing_barrier": {"race": "race|uninitialised"},
    "missing_second_barrier": {"race": "race"},
    "missing_warp_barrier": {"race": "race|uninitialised"},
    "missing_warp_barrier_in_place": {"race": "race|uninitialised"},
    "warp_barrier_for_block": {"race": "race"},
    "missing_atomic": {"race": "race"},
    "uninitialised_shared": {"race": "uninitialised"},
    "divergent_barrier": {"race": "divergent barrier", "address": "divergent barrier"},
    "mismatched_barriers": {"race": "divergent barrier", "address": "divergent barrier"},
    "divergent_shuffle": {"race": "divergent warp", "address": "divergent warp"},
    "global_read_out_of_bounds": {"race": "out-of-bounds global read", "address": "heap-buffer-overflow"},
    "global_write_out_of_bounds": {"race": "out-of-bounds global write", "address": "heap-buffer-overflow"},
    "shared_read_out_of_bounds": {"race": "out-of-bounds shared read", "address": "heap-buffer-overflow"},
    "static_shared_out_of_bounds": {"address": "global-buffer-overflow"},
    "incomplete_window": {"race": "out-of-bounds global read", "address": "heap-buffer-overflow"},
    "misaligned_pair": {"race": "misaligned", "address": "misaligned"},
    "index_overflow_unsigned": {"race": "32-bit index overflow", "address": "32-bit index overflow"},
    "index_overflow_int": {"race": "32-bit index overflow", "address": "32-bit index overflow"},
    "offset_overflow": {"race": "signed integer overflow", "address": "signed integer overflow"},
}


def test_every_planted_mistake_is_expected_somewhere() -> None:
    assert sorted(CAUGHT_BY) == planted_names()


@pytest.mark.parametrize("name", CAUGHT_BY)
@pytest.mark.parametrize("schedule", [0, 1, 2, 3])
def test_a_mistake_is_caught(driver: Driver, caught: list[str], name: str, schedule: int) -> None:
    """The mistake is an error whatever the order of threads; the same kernel without it is none."""
    numbers: Numbers = {"name": name, "size": 64, "edge_blocks": 1, "schedule": schedule}
    buffers: Buffers = {"x": list(range(64))}
    assert driver.launch("planted", numbers | {"bug": 0}, buffers).size == 64
    expected = CAUGHT_BY[name].get(driver.variant)
    if expected is None:
        return  # the other build's business
    with pytest.raises(SimtError, match=expected):
        driver.launch("planted", numbers | {"bug": 1}, buffers)
    if name not in caught:
        caught.append(name)


def test_malformed_requests_are_refused(driver: Driver) -> None:
    requests: list[tuple[str, Numbers]] = [
        ("no_such_op", {}),
        ("square", {"limbs": 1}),
        ("planted", {"name": "none", "bug": 1, "size": 1}),
    ]
    for op, numbers in requests:
        with pytest.raises(SimtError):
            driver.launch(op, numbers, {})
