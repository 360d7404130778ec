"""The engine against the Python-integer evaluation of the same program, for every kind of step and every tiling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mcfhe.engine import Engine
from mcfhe.errors import ParameterError
from mcfhe.graph.integers import evaluate_integers
from mcfhe.graph.order import Order
from mcfhe.graph.steps import (
    AddStep,
    ConcatStep,
    Conv2dStep,
    FlattenStep,
    IntegerProgram,
    LinearStep,
    PolyStep,
    PoolStep,
    Step,
)
from tests.shapes import PRIMES_30

BIG = 3**200  # constants far beyond 64 bits, as real programs have
RNG = np.random.default_rng(5)
ORDER = Order(1, 8)


def conv(name: str, source: int, c: int, o: int, size: int, bias: bool = True) -> Conv2dStep:
    return Conv2dStep(
        name=name,
        inputs=(source,),
        shape=(o, size, size),
        order=ORDER,
        weight=RNG.integers(-200, 200, (o, c, 3, 3)),
        bias=tuple(int(v) * BIG + 7 for v in RNG.integers(-9, 9, o)) if bias else None,
        stride=(1, 1),
        padding=(1, 1),
        dilation=(1, 1),
        groups=1,
    )


def residual_program() -> IntegerProgram:
    """Two branches of different depth, a value read twice, concatenation, per-channel polynomials, fusing and not."""
    steps: list[Step] = [
        conv("a", 0, 2, 3, 6),  # value 1
        PolyStep(name="p", inputs=(1,), shape=(3, 6, 6), order=ORDER, coefficients=((5, -BIG, 3),)),  # 2: fused with a
        conv("b", 2, 3, 3, 6, bias=False),  # 3, read by the add and the concat: not fused
        PolyStep(name="q", inputs=(3,), shape=(3, 6, 6), order=ORDER, coefficients=((0, 0, 1), (1, 2, 3), (BIG, 1, 0))),
        AddStep(name="add", inputs=(4, 2), shape=(3, 6, 6), order=ORDER, factors=(1, 2**90)),  # 5
        ConcatStep(name="cat", inputs=(5, 3), shape=(6, 6, 6), order=ORDER, factors=(BIG, 1)),  # 6
        PoolStep(
            name="pool",
            inputs=(6,),
            shape=(6, 3, 3),
            order=ORDER,
            kernel=(2, 2),
            stride=(2, 2),
            padding=(0, 0),
            factor=64,
        ),  # 7
        FlattenStep(name="flat", inputs=(7,), shape=(54,), order=ORDER),  # 8
        LinearStep(
            name="fc",
            inputs=(8,),
            shape=(4,),
            order=ORDER,
            weight=RNG.integers(-300, 300, (4, 54)),
            bias=(BIG, -BIG, 0, 1),
        ),  # 9
        PolyStep(name="last", inputs=(9,), shape=(4,), order=ORDER, coefficients=((1, 1, 1),)),  # 10: fused with fc
    ]
    return IntegerProgram(steps=tuple(steps), input_shape=(2, 6, 6), input_order=ORDER)


def encode(values: np.ndarray, moduli: tuple[int, ...]) -> Tensor:
    """Integers [batch, C, H, W] to residues [L, C, H, W, batch]."""
    return (
        torch.tensor([[int(v) % b for v in values.ravel()] for b in moduli])
        .reshape(len(moduli), *values.shape)
        .permute(0, 2, 3, 4, 1)
    )


def check(engine: Engine, values: np.ndarray, moduli: tuple[int, ...]) -> None:
    got = engine.run(engine.bind(moduli), encode(values, moduli))
    expected = evaluate_integers(engine.program, values.astype(object))
    for limb, b in enumerate(moduli):
        assert got[limb].T.tolist() == [[v % b for v in row] for row in expected]


def test_engine_equals_python_integers() -> None:
    check(Engine(residual_program()), RNG.integers(-1000, 1000, (5, 2, 6, 6)), PRIMES_30[:3])


@pytest.mark.parametrize("tile_bytes", [1, 3000, 20_000, 1 << 20])
def test_tiling_changes_nothing(tile_bytes: int) -> None:
    engine = Engine(residual_program(), tile_bytes=tile_bytes)
    values = RNG.integers(-1000, 1000, (130, 2, 6, 6))
    whole = Engine(engine.program, tile_bytes=1 << 30)
    x = encode(values, PRIMES_30)
    assert torch.equal(engine.run(engine.bind(PRIMES_30), x), whole.run(whole.bind(PRIMES_30), x))


def test_tiles_respect_their_budget_and_keep_threads_busy() -> None:
    workers = torch.get_num_threads()
    engine = Engine(residual_program(), tile_bytes=50_000 * workers)
    limbs, streams = engine.tile(8, 1000)
    assert 1 <= limbs * streams * engine.live_entries * 8 <= 50_000
    limbs, streams = Engine(residual_program(), tile_bytes=1 << 40).tile(8, 1000)
    assert streams == 1000
    assert -(-8 // limbs) >= min(8, workers)


def test_threads_change_nothing_and_leave_torch_as_it_was() -> None:
    values = RNG.integers(-1000, 1000, (70, 2, 6, 6))
    x = encode(values, PRIMES_30)
    engine = Engine(residual_program(), tile_bytes=20_000)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(engine.run(engine.bind(PRIMES_30), x))
            assert torch.get_num_threads() == threads
            with torch.inference_mode():
                results.append(engine.run(engine.bind(PRIMES_30), x))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_a_failing_tile_raises_in_the_caller() -> None:
    engine = Engine(residual_program(), tile_bytes=20_000)
    x = encode(RNG.integers(0, 9, (40, 2, 6, 6)), PRIMES_30[:2]).contiguous()
    x[1, 0, 0, 0, 39] = -1
    with pytest.raises(RuntimeError, match="outside 0 <= r < b"):
        engine.run(engine.bind(PRIMES_30[:2]), x)


def test_live_entries_counts_neighbouring_layers_only() -> None:
    """Input 72 and the first output 108 live together; fusing keeps the value between conv and polynomial away."""
    program = residual_program()
    assert Engine(IntegerProgram(steps=program.steps[:2], input_shape=(2, 6, 6), input_order=ORDER)).live_entries == 180


def test_progress_ends_at_one() -> None:
    engine = Engine(residual_program(), tile_bytes=20_000)
    seen: list[float] = []
    x = encode(RNG.integers(0, 9, (40, 2, 6, 6)), PRIMES_30[:2])
    engine.run(engine.bind(PRIMES_30[:2]), x, seen.append)
    assert len(seen) > 1
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_one_binding_serves_many_inputs_and_edge_moduli() -> None:
    engine = Engine(residual_program())
    for moduli in ((3,), (2147483647, 3), (1000, 1001, 2147483646)):
        check(engine, RNG.integers(-5, 5, (2, 2, 6, 6)), moduli)


def test_wrong_shapes_and_devices_are_refused() -> None:
    engine = Engine(residual_program())
    binding = engine.bind(PRIMES_30[:2])
    with pytest.raises(ParameterError, match=r"residues of shape \[3, 2, 6, 6, 1\]"):
        engine.run(binding, torch.zeros(3, 2, 6, 6, 1, dtype=torch.int64))
    with pytest.raises(ParameterError, match=r"residues of shape \[2, 2, 6, 7, 1\]"):
        engine.run(binding, torch.zeros(2, 2, 6, 7, 1, dtype=torch.int64))
    with pytest.raises(ParameterError, match="choose cpu or cuda"):
        Engine(residual_program(), device=torch.device("meta"))
    if not torch.cuda.is_available():
        with pytest.raises(ParameterError, match="use device='cpu'"):
            Engine(residual_program(), device=torch.device("cuda"))
