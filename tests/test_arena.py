"""Memory kept between evaluations: no two users of one byte, no more than the peak, nothing fresh the second time."""

from __future__ import annotations

import mmap
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mcfhe.engine import arena as module
from mcfhe.engine.arena import HOST, Arena

SIZES = st.integers(1, 40_000)
# Of one evaluation: take a value of so many words, or give back the oldest but k.
STEPS = st.lists(
    st.one_of(st.tuples(st.just("take"), SIZES), st.tuples(st.just("give"), st.integers(0, 5))), max_size=30
)


def evaluate(arena: Arena, steps: list[tuple[str, int]]) -> int:
    """Runs the steps, every value filled with its number and checked before it goes; the most bytes held at once."""
    held: list[tuple[int, torch.Tensor]] = []
    most = used = 0
    with arena.lease() as lease:
        for number, (what, size) in enumerate(steps):
            if what == "take":
                tensor = lease.take((size,), torch.int32)
                assert tensor.shape == (size,)
                held.append((number, tensor.fill_(number)))
                used += 4 * size
                most = max(most, used)
            elif size < len(held):
                found, tensor = held.pop(size)
                assert bool((tensor == found).all())
                used -= tensor.nbytes
                lease.give(tensor)
        assert all(bool((tensor == found).all()) for found, tensor in held)
    return most


@given(steps=STEPS)
def test_values_do_not_meet(steps: list[tuple[str, int]]) -> None:
    evaluate(Arena(), steps)


@given(steps=STEPS, repeats=st.integers(1, 3))
def test_no_more_is_kept_than_was_in_use_at_once(steps: list[tuple[str, int]], repeats: int) -> None:
    """Blocks that serve smaller values count in full: four times what was asked for, an eighth on top."""
    arena = Arena()
    for _ in range(repeats):
        most = evaluate(arena, steps)
        assert arena.kept_bytes <= 1.125 * 4 * most


@given(sizes=st.lists(SIZES, min_size=1, max_size=6))
def test_the_same_evaluation_again_takes_nothing_fresh(sizes: list[int]) -> None:
    arena, fresh = Arena(), []
    with pytest.MonkeyPatch.context() as patch:
        new = module._new_block
        patch.setattr(module, "_new_block", lambda size: (fresh.append(size), new(size))[1])
        steps = [("take", size) for size in sizes]
        evaluate(arena, steps)
        assert sorted(fresh) == sorted(4 * size for size in sizes)
        fresh.clear()
        evaluate(arena, steps)
        assert fresh == []


def test_a_value_takes_the_block_of_a_dead_one() -> None:
    arena = Arena()
    with arena.lease() as lease:
        first = lease.take((1000,), torch.int64)
        at = first.data_ptr()
        lease.give(first[:10])  # a view that begins where it does
        assert lease.take((500,), torch.int64).data_ptr() == at
        assert lease.take((100,), torch.int64).data_ptr() != at
        lease.give(torch.zeros(3))  # of somebody else
    assert arena.kept_bytes == 8 * 1100


def test_large_blocks_go_when_others_are_needed() -> None:
    arena = Arena()
    for size in (1_000_000, 1_500_000):
        evaluate(arena, [("take", size)])
        assert arena.kept_bytes == 4 * size


def test_after_an_error_blocks_are_not_used_again() -> None:
    """Threads may still be writing to them."""
    arena = Arena()
    taken: list[torch.Tensor] = []

    def stopped() -> None:
        with arena.lease() as lease:
            taken.append(lease.take((1000,), torch.int32))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert arena.kept_bytes == 0
    with arena.lease() as lease:
        value = lease.take((1000,), torch.int32).zero_()
        taken[0].fill_(7)
        assert not bool(value.any())


def test_two_evaluations_at_once() -> None:
    arena, barrier, failed = Arena(), threading.Barrier(4), []

    def work() -> None:
        try:
            for turn in range(30):
                barrier.wait()
                evaluate(arena, [("take", 5000), ("take", 300 + turn), ("give", 0), ("take", 4000)])
        except BaseException as error:
            failed.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_any_thread_may_write_whatever_the_caller_s_mode() -> None:
    with torch.inference_mode(), Arena().lease() as lease:
        for tensor in (lease.take((4,), torch.int32), HOST.take((4,), torch.int32)):
            thread = threading.Thread(target=tensor.fill_, args=(3,))
            thread.start()
            thread.join()
            assert tensor.tolist() == [3] * 4
            assert not tensor.is_inference()


@pytest.mark.parametrize("memory", ["lease", "torch"])
def test_nothing_is_no_memory(memory: str) -> None:
    with Arena().lease() as lease:
        found = (lease if memory == "lease" else HOST).take((0, 3), torch.int32)
    assert found.shape == (0, 3)
    assert found.dtype == torch.int32


def test_systems_without_the_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MADV_FREE", "MADV_HUGEPAGE"):
        monkeypatch.delattr(mmap, name, raising=False)
    arena = Arena()
    evaluate(arena, [("take", 1000), ("give", 0), ("take", 1000)])
    assert arena.kept_bytes == 4000
