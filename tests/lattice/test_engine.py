"""Schedule and engine on lattice programs: parts, levels, tiles, threads, packed residues; modular ones as ever."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch

from mcfhe.engine import Engine
from mcfhe.engine.arena import TorchMemory
from mcfhe.engine.schedule import fuse, schedule
from mcfhe.errors import ParameterError
from mcfhe.graph.nodes import Add, AvgPool2d, Conv2d, Flatten, Graph, Input, Linear, Node, Poly
from mcfhe.graph.steps import RING_STEPS, IntegerProgram
from mcfhe.lattice.lower import Placement
from tests.lattice.support import Oracle, lowered, small_ring
from tests.lattice.test_equals_seal import SQUARE, constants
from tests.test_engine import residual_program

DEGREE, LIMBS = 64, 5


def network() -> IntegerProgram:
    """Two squares, the second beside a shortcut of a higher level, pooled between its rescaling and the sum."""
    random = Random(4)
    fields = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    one = fields | {"padding": (0, 0)}
    nodes: list[Node] = [
        Input(name="input", inputs=(), shape=(1, 4, 4)),
        Conv2d(name="c1", inputs=(0,), weight=constants(random, 2, 1, 3, 3), bias=constants(random, 2), **fields),  # type: ignore[arg-type]
        Poly(name="p1", inputs=(1,), coefficients=SQUARE),
        AvgPool2d(name="pool", inputs=(2,), kernel=(2, 2), stride=(2, 2), padding=(0, 0), divisor=1),
        Conv2d(name="c2", inputs=(3,), weight=constants(random, 2, 2, 1, 1), bias=None, **one),  # type: ignore[arg-type]
        Poly(name="p2", inputs=(4,), coefficients=constants(random, 2, 3)),
        Add(name="add", inputs=(5, 3)),
        Flatten(name="flat", inputs=(6,)),
        Linear(name="fc", inputs=(7,), weight=constants(random, 2, 8), bias=constants(random, 2)),
    ]
    placements = {3: Placement(1, 4, True), 5: Placement(1, 2, True)}
    return lowered(Graph(tuple(nodes)), {node.name: 3 for node in nodes}, small_ring(DEGREE, LIMBS), placements)


PROGRAM = network()


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle(small_ring(DEGREE, LIMBS))


@pytest.fixture(scope="module")
def x(oracle: Oracle) -> torch.Tensor:
    generator = torch.Generator().manual_seed(6)
    return torch.stack([torch.randint(0, q, (1, 4, 4, 2 * DEGREE), generator=generator) for q in oracle.ring.moduli])


@pytest.fixture(scope="module")
def expected(oracle: Oracle, x: torch.Tensor) -> torch.Tensor:
    return oracle.run(PROGRAM, x)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest, one_thread: None) -> Iterator[None]:
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(1)


def test_modular_programs_are_one_part() -> None:
    program = residual_program()
    items = fuse(program)
    (part,) = schedule(program, items)
    assert [item.step for _, item in part.items] == [item.step for item in items]
    assert (part.reads, part.writes, part.ring) == ((0,), (items[-1].output,), False)
    assert Engine(program).live_entries == part.live


def test_parts_alternate_and_hold_one_level_each() -> None:
    items = fuse(PROGRAM)
    parts = schedule(PROGRAM, items)
    assert [part.ring for part in parts] == [False, True, False, True, False]
    assert [index for part in parts for index, _ in part.items] == list(range(len(items)))
    for part in parts:
        assert all(isinstance(item.step, RING_STEPS) == part.ring for _, item in part.items)
        if not part.ring:
            assert len({PROGRAM.levels[item.output].limbs for _, item in part.items}) == 1
    known = {0}
    for number, part in enumerate(parts):
        assert set(part.reads) <= known
        known |= set(part.writes)
        assert set(part.dead) <= known
        assert all(value not in later.reads for value in part.dead for later in parts[number + 1 :])
        known -= set(part.dead)
    assert known == {len(PROGRAM.steps)}
    assert PROGRAM.levels[-1].limbs == 2
    assert len({PROGRAM.levels[i].limbs for i in PROGRAM.steps[-3].inputs}) == 2, "branches of different levels"


def test_ring_parts_write_where_nobody_reads_anymore(oracle: Oracle, x: torch.Tensor) -> None:
    parts = schedule(PROGRAM, fuse(PROGRAM))
    assert [part.in_place for part in parts] == [False, True, False, True, False]
    ring = parts[1]
    assert not replace(ring, dead=()).in_place, "somebody does"
    assert not replace(ring, reads=(0,), dead=(0,)).in_place, "the caller's"
    engine = Engine(PROGRAM)
    assert engine._ring is not None
    keys = engine.bind_ring(oracle.keys).keys
    steps = [item.step for _, item in ring.items]
    values = torch.cat([x, x[..., :DEGREE]], -1).to(torch.int32)
    packed = values[:4].clone()
    memory = TorchMemory(engine.device)
    expected = engine._ring.run(steps[1:], keys, packed, memory)
    got = engine._ring.run(steps[1:], keys, packed, memory, in_place=True)
    assert torch.equal(got, expected)
    assert got.data_ptr() == packed.data_ptr()
    rescaled = engine._ring.run(steps[:1], keys, values.clone(), memory)
    both = engine._ring.run(steps[:1], keys, values, memory, in_place=True)
    assert (both.shape[0], both.data_ptr()) == (4, values.data_ptr())
    assert torch.equal(both, rescaled)
    assert torch.equal(
        engine._ring.run(steps[1:], keys, both, memory, in_place=True),
        engine._ring.run(steps[1:], keys, rescaled, memory),
    ), "in a view"


@pytest.mark.parametrize("tile_bytes", [1, 30_000, 200_000, 1 << 40, None])
def test_tiles_and_threads_change_nothing(
    oracle: Oracle, x: torch.Tensor, expected: torch.Tensor, tile_bytes: int | None, threads: None
) -> None:
    engine = Engine(PROGRAM, tile_bytes=tile_bytes)
    assert torch.equal(engine.run(engine.bind_ring(oracle.keys), x), expected)
    with torch.inference_mode():  # which the threads are not in
        assert torch.equal(engine.run(engine.bind_ring(oracle.keys), x), expected)


def test_chunks_of_ring_steps_change_nothing(
    oracle: Oracle, x: torch.Tensor, expected: torch.Tensor, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in (1, 40_000):
        monkeypatch.setattr("mcfhe.engine.ring_runner.CPU_CHUNK_BYTES", size)
        monkeypatch.setattr("mcfhe.engine.ring_runner.CPU_CHUNK_LEAST", 1)
        engine = Engine(PROGRAM)
        assert torch.equal(engine.run(engine.bind_ring(oracle.keys), x), expected)


def test_packed_residues_and_progress(oracle: Oracle, x: torch.Tensor, expected: torch.Tensor, threads: None) -> None:
    engine = Engine(PROGRAM, tile_bytes=30_000)
    done: list[float] = []
    packed = x.to(torch.int32)
    before = packed.clone()
    got = engine.run(engine.bind_ring(oracle.keys), packed, done.append)
    assert got.dtype == torch.int64
    assert torch.equal(got, expected)
    assert torch.equal(packed, before)
    assert done == sorted(done)
    assert done[0] > 0
    assert np.isclose(done[-1], 1)


def test_memory_is_kept_and_shared(oracle: Oracle, x: torch.Tensor, expected: torch.Tensor, threads: None) -> None:
    """Evaluations one after the other, several at once, and after one that was stopped halfway."""
    engine = Engine(PROGRAM)
    binding = engine.bind_ring(oracle.keys)
    first = engine.run(binding, x)
    assert engine._arena is not None
    kept = engine._arena.kept_bytes
    assert kept > 0
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: engine.run(binding, x), range(12)))
    assert engine._arena.kept_bytes <= 5 * kept

    def stop(share: float) -> None:
        if share > 0.3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.run(binding, x, stop)
    assert engine._arena._used == 0
    found += [engine.run(binding, x), first]
    assert all(torch.equal(y, expected) for y in found)


def test_one_engine_serves_many_keys(x: torch.Tensor) -> None:
    engine = Engine(PROGRAM)
    oracles = [Oracle(small_ring(DEGREE, LIMBS)) for _ in range(2)]
    bound = [engine.bind_ring(oracle.keys) for oracle in oracles]
    assert bound[0].binding is bound[1].binding
    assert set(bound[0].keys) == {2, 4}
    results = [engine.run(binding, x) for binding in bound]
    assert not torch.equal(*results)
    for oracle, result in zip(oracles, results, strict=True):
        assert torch.equal(result, oracle.run(PROGRAM, x))


def test_refuses_keys_and_residues_of_another_ring(oracle: Oracle, x: torch.Tensor) -> None:
    engine = Engine(PROGRAM)
    for keys in (oracle.keys[:-1], oracle.keys[:, :, :-1], oracle.keys.int()):
        with pytest.raises(ParameterError, match=r"relinearisation key: .* int64 \[5, 2, 6, 64\] expected"):
            engine.bind_ring(keys)
    with pytest.raises(ParameterError, match="this is no lattice program"):
        Engine(residual_program()).bind_ring(oracle.keys)
    bound = engine.bind_ring(oracle.keys)
    for residues in (x[:-1], x[..., :-1], x[:, :, :1], x[0], torch.cat([x, x[..., :DEGREE]], -1)):
        with pytest.raises(ParameterError, match="residues of shape"):
            engine.run(bound, residues)
