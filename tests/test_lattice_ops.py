"""The lattice ops against the Python-integer oracle, by equality."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mcfhe import ops, reference
from mcfhe.lattice import ring
from tests.conftest import Residues
from tests.test_ops import LATTICE_OPS

# Smallest, middling and the widest primes there are, for n = 8 and 16; mixed widths exercise the digit reductions.
MIXED_BITS = [31, 20, 30, 29, 31]


def basis(n: int, bits: list[int]) -> tuple[Tensor, Tensor]:
    primes = ring.ntt_primes(n, bits)
    return torch.tensor(primes), ring.ntt_tables(primes, n)


@pytest.mark.parametrize("n", [8, 16, 32, 64])
def test_ntt_equals_oracle(residues: Residues, n: int) -> None:
    moduli, tables = basis(n, MIXED_BITS)
    x = residues(moduli, 2 * n)
    forward = ops.ntt(x, tables, moduli)
    assert torch.equal(forward, reference.ntt(x, tables, moduli))
    assert torch.equal(ops.ntt(forward, tables, moduli, inverse=True), x)
    assert torch.equal(ops.ntt(x, tables, moduli, inverse=True), reference.ntt(x, tables, moduli, inverse=True))


@pytest.mark.parametrize("n", [256, 512, 1024, 2048, 4096, 8192, 16384, 32768])
def test_ntt_multiplies_polynomials(residues: Residues, n: int) -> None:
    """inverse(forward(x) * forward(y)) = x y modulo X**n + 1, for y with few terms; and back again."""
    moduli, tables = basis(n, [31, 30, 31])
    x = residues(moduli, n)
    y = torch.zeros_like(x)
    y[:, 0], y[:, 1], y[:, n - 1] = moduli - 1, 1, 5
    product = torch.stack(
        [a * b % q for a, b, q in zip(ops.ntt(x, tables, moduli), ops.ntt(y, tables, moduli), moduli, strict=True)]
    )
    one = torch.cat([-x[:, -1:], x[:, :-1]], 1)  # X x
    last = torch.cat([x[:, 1:], -x[:, :1]], 1) * -5  # 5 X**(n - 1) x = -5 X**-1 x
    assert torch.equal(ops.ntt(product, tables, moduli, inverse=True), (one + last - x) % moduli[:, None])


@pytest.mark.parametrize("n", [1024, 4096, 32768])
@pytest.mark.parametrize("fill", ["zero", "top", "alternate"])
def test_ntt_extreme_residues(n: int, fill: str) -> None:
    """The largest sums that lazy ranges see."""
    moduli, tables = basis(n, [31, 30, 31, 30])
    x = torch.zeros(4, n, dtype=torch.int64)
    if fill != "zero":
        x[:, :: 1 if fill == "top" else 2] = (moduli - 1)[:, None]
    for inverse in (False, True):
        y = ops.ntt(x, tables, moduli, inverse=inverse)
        assert int(torch.ops.mcfhe.count_out_of_range(y, moduli)) == 0
        assert torch.equal(ops.ntt(y, tables, moduli, inverse=not inverse), x)


@pytest.mark.parametrize("n", [1, 3, 8, 17])
@pytest.mark.parametrize("channels", [1, 3])
def test_tensor_square_equals_oracle(residues: Residues, n: int, channels: int) -> None:
    moduli = torch.tensor([2, 3, 1073741789, (1 << 31) - 1])
    x = residues(moduli, channels, *([2] if n < 100 else []), 2 * n)
    for rows in {1, channels}:
        shift, table = residues(moduli, rows), residues(moduli, rows, 3)
        monic = table.clone()
        monic[..., 2] = 1
        for s in (None, shift):
            for c in (None, table, monic, torch.tensor([0, 0, 1]).expand(4, rows, 3)):
                got = ops.tensor_square(x, moduli, shift=s, coefficients=c)
                assert torch.equal(got, reference.tensor_square(x, moduli, shift=s, coefficients=c))


WINDOWS = [(1, 1, 1, 1), (2, 2, 2, 2), (4, 6, 2, 2), (5, 7, 2, 3), (3, 4, 1, 4), (9, 5, 9, 5), (4, 2, 3, 1)]


@pytest.mark.parametrize("n", [1, 3, 8, 17])
@pytest.mark.parametrize(("height", "width", "pool_h", "pool_w"), WINDOWS)
def test_tensor_square_and_its_pool_equal_oracle(
    residues: Residues, n: int, height: int, width: int, pool_h: int, pool_w: int
) -> None:
    moduli = torch.tensor([2, 3, 65536, 1073741789, (1 << 31) - 1])
    x = residues(moduli, 2, height, width, 2 * n)
    pool = (pool_h, pool_w)
    for rows in (1, 2):
        for shift in (None, residues(moduli, rows)):
            for table in (None, residues(moduli, rows, 3), torch.tensor([0, 0, 1]).expand(5, rows, 3)):
                got = ops.tensor_square(x, moduli, shift=shift, coefficients=table, pool=pool)
                square = ops.tensor_square(x, moduli, shift=shift, coefficients=table)
                assert torch.equal(got, ops.sum_pool2d(square, moduli, kernel=pool))
                if height * width < 20 and n < 8:
                    oracle = reference.tensor_square(x, moduli, shift=shift, coefficients=table, pool=pool)
                    assert torch.equal(got, oracle)


@pytest.mark.parametrize("b", [2, 3, 1 << 16, (1 << 30) - 35, (1 << 30) + 3, (1 << 31) - 1])
@pytest.mark.parametrize("pool", [(1, 3), (2, 2), (1, 5), (4, 4), (1, 17), (1, 18), (8, 8)])
def test_the_largest_window_sums(b: int, pool: tuple[int, int]) -> None:
    """As many of the largest products as 64 bits hold, one more, and several times as many."""
    moduli = torch.tensor([b])
    x = torch.full((1, 1, *pool, 2 * 11), b - 1)
    square = torch.tensor([pool[0] * pool[1] * c * (b - 1) ** 2 % b for c in (1, 2, 1)])
    assert torch.equal(ops.tensor_square(x, moduli, pool=pool).view(3, 11), square[:, None].expand(3, 11))
    shift, table = torch.tensor([[b - 1]]), torch.tensor([[[b - 1, b - 1, b - 1]]])
    got = ops.tensor_square(x, moduli, shift=shift, coefficients=table, pool=pool)
    assert torch.equal(got, reference.tensor_square(x, moduli, shift=shift, coefficients=table, pool=pool))


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_relinearise_and_rescale_equal_oracle(data: st.DataObject) -> None:
    n = data.draw(st.sampled_from([8, 16]))
    bits = data.draw(st.lists(st.sampled_from([9, 20, 28, 29, 30, 31]), min_size=2, max_size=5))
    moduli, tables = basis(n, [b if b != 9 or bits.count(9) <= 2 else 20 for b in bits])
    shape = data.draw(st.sampled_from([(), (1,), (3,), (2, 1, 2)]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1 << 30)))

    def draw(*size: int) -> Tensor:
        return torch.stack([torch.randint(0, q, size, generator=generator) for q in moduli.tolist()])

    x = draw(*shape, 3 * n)[:-1]
    keys = draw(len(bits) - 1, 2, n).permute(1, 2, 0, 3)
    got = ops.relinearise(x, keys, tables, moduli)
    assert torch.equal(got, reference.relinearise(x, keys, tables, moduli))
    y = draw(*shape, 2 * n)
    assert torch.equal(ops.rescale(y, tables, moduli), reference.rescale(y, tables, moduli))


def test_positions_do_not_mix(residues: Residues) -> None:
    """So many limbs that one reading of the keys serves several positions: as one position at a time."""
    n = 1024
    moduli, tables = basis(n, [30] * 33 + [31])
    x = residues(moduli[:-1], 6, 3 * n)
    keys = residues(moduli, 33, 2, n).permute(1, 2, 0, 3).contiguous()
    together = ops.relinearise(x, keys, tables, moduli)
    for i in range(6):
        assert torch.equal(together[:, i], ops.relinearise(x[:, i], keys, tables, moduli))


@pytest.mark.parametrize("streams", [None, 0, 1, 5, 9, 18])
def test_add_const_to_the_first_streams(residues: Residues, streams: int | None) -> None:
    moduli = torch.tensor([3, 1073741789, (1 << 31) - 1])
    for shape in ((2, 3, 18), (18,), (2, 1, 2, 18)):
        x = residues(moduli, *shape)
        for rows in {1, shape[0] if len(shape) > 1 else 1}:
            constant = residues(moduli, rows)
            got = ops.add_const(x, constant, moduli, streams=streams)
            assert torch.equal(got, reference.add_const(x, constant, moduli, streams=streams))


def test_opcheck_every_lattice_op(residues: Residues) -> None:
    n = 16
    moduli, tables = basis(n, [30, 30, 31])
    x = residues(moduli, 2, 2 * n)
    keys = residues(moduli, 2, 2, n).permute(1, 2, 0, 3).contiguous()
    m = torch.ops.mcfhe
    calls: list[tuple[object, tuple[object, ...]]] = [
        (m.ntt.default, (x, tables, moduli)),
        (m.ntt.default, (x, tables, moduli, True)),
        (m.tensor_square.default, (x, residues(moduli, 2), residues(moduli, 1, 3), moduli)),
        (m.tensor_square.default, (x, None, None, moduli)),
        (m.tensor_square.default, (residues(moduli, 2, 3, 2, 2 * n), None, None, moduli, [2, 1])),
        (m.relinearise.default, (residues(moduli[:2], 3, 3 * n), keys, tables, moduli)),
        (m.rescale.default, (x, tables, moduli)),
        (m.expand_uniform.default, (torch.zeros(2, 64, dtype=torch.uint8), moduli, n)),
    ]
    covered = set()
    for op, arguments in calls:
        torch.library.opcheck(op, arguments)  # type: ignore[arg-type]
        covered.add(op.name().split("::")[1])  # type: ignore[attr-defined]
    assert covered == LATTICE_OPS


def _call(op: str, **changes: object) -> Tensor:
    moduli, tables = basis(16, [30, 30, 31])
    arguments: dict[str, object] = {
        "ntt": {"x": torch.zeros(3, 2, 32, dtype=torch.int64), "tables": tables, "moduli": moduli},
        "tensor_square": {"x": torch.zeros(3, 2, 32, dtype=torch.int64), "moduli": moduli},
        "relinearise": {
            "x": torch.zeros(2, 2, 48, dtype=torch.int64),
            "keys": torch.zeros(2, 2, 3, 16, dtype=torch.int64),
            "tables": tables,
            "moduli": moduli,
        },
        "rescale": {"x": torch.zeros(3, 2, 32, dtype=torch.int64), "tables": tables, "moduli": moduli},
        "add_const": {
            "x": torch.zeros(3, 2, 32, dtype=torch.int64),
            "constant": torch.zeros(3, 1, dtype=torch.int64),
            "moduli": moduli,
        },
    }[op]
    arguments.update(changes)
    return getattr(ops, op)(**arguments)


def _swapped() -> Tensor:
    return basis(16, [30, 30, 31])[1][[1, 0, 2]]


def _same_prime_twice() -> dict[str, object]:
    moduli, tables = basis(16, [30, 30, 31])
    return {"moduli": moduli[[0, 1, 1]], "tables": tables[[0, 1, 1]]}


REFUSALS = {
    "x dtype": ("ntt", {"x": torch.zeros(3, 32)}, "x must be int64"),
    "x rank": ("ntt", {"x": torch.zeros(3, dtype=torch.int64)}, r"x has shape \[3\]"),
    "stream": ("ntt", {"x": torch.zeros(3, 24, dtype=torch.int64)}, "24 streams, which n = 16 of tables does not"),
    "tables dtype": ("ntt", {"tables": torch.zeros(3, 4, 16)}, "tables must be int32"),
    "tables shape": ("ntt", {"tables": torch.zeros(3, 4, 12, dtype=torch.int32)}, r"tables has shape \[3, 4, 12\]"),
    "tables of too few limbs": ("rescale", {"tables": ring.ntt_tables([97, 193], 16)}, r"\[3, 4, n\]"),
    "tables of other moduli": ("ntt", {"tables": _swapped()}, r"tables\[0\] are not the transform's"),
    "moduli shape": ("rescale", {"moduli": torch.tensor([97])}, r"moduli has shape \[1\]"),
    "moduli without roots": ("ntt", {"moduli": torch.tensor([97, 193, 101])}, r"moduli\[2\] = 101 must be a prime"),
    "modulus 2^31": ("ntt", {"moduli": torch.tensor([97, 193, 1 << 31])}, r"moduli\[2\] = 2147483648"),
    "residue q": ("ntt", {"x": torch.full((3, 32), (1 << 31) - 1)}, "outside 0 <= r < b"),
    "negative residue": ("rescale", {"x": torch.full((3, 32), -1)}, "outside 0 <= r < b"),
    "square residue": ("tensor_square", {"x": torch.full((3, 32), 1 << 40)}, "outside 0 <= r < b"),
    "relinearise residue": ("relinearise", {"x": torch.full((2, 48), 1 << 40)}, "outside 0 <= r < b"),
    "one component": ("tensor_square", {"x": torch.zeros(3, 33, dtype=torch.int64)}, "33 streams but must have 2 "),
    "shift shape": ("tensor_square", {"shift": torch.zeros(3, 3, dtype=torch.int64)}, r"shift has shape \[3, 3\]"),
    "shift range": ("tensor_square", {"shift": torch.full((3, 1), -1)}, "shift holds -1 in limb 0"),
    "coefficients": ("tensor_square", {"coefficients": torch.zeros(3, 1, 2, dtype=torch.int64)}, "coefficients has"),
    "pool of a list": ("tensor_square", {"pool": (1, 1)}, r"x has shape \[3, 2, 32\] but must be \[limbs, channels,"),
    "pool too large": ("tensor_square", {"x": torch.zeros(3, 1, 2, 2, 32, dtype=torch.int64), "pool": 3}, "spans 3"),
    "empty pool": ("tensor_square", {"x": torch.zeros(3, 1, 2, 2, 32, dtype=torch.int64), "pool": 0}, "pool = "),
    "pooled residue": ("tensor_square", {"x": torch.full((3, 1, 2, 2, 32), -1), "pool": 2}, "outside 0 <= r < b"),
    "two components": ("relinearise", {"x": torch.zeros(2, 2, 32, dtype=torch.int64)}, "must have 3 \\* n = 48"),
    "keys shape": ("relinearise", {"keys": torch.zeros(2, 2, 2, 16, dtype=torch.int64)}, r"keys has shape"),
    "keys range": ("relinearise", {"keys": torch.full((2, 2, 3, 16), -1)}, "keys holds a value outside"),
    "special prime used": ("relinearise", _same_prime_twice(), "shares a factor"),
    "last prime used": ("rescale", _same_prime_twice(), "shares a factor"),
    "one limb": (
        "rescale",
        {"x": torch.zeros(1, 16, dtype=torch.int64), "moduli": torch.tensor([97]), "tables": ring.ntt_tables([97], 16)},
        "1 limb",
    ),
    "streams": ("add_const", {"streams": 33}, "streams = 33 must lie in 0..32"),
    "negative streams": ("add_const", {"streams": -1}, "streams = -1"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_name_the_argument(name: str) -> None:
    op, changes, message = REFUSALS[name]
    with pytest.raises(RuntimeError, match=message):
        _call(op, **changes)


def test_empty_and_non_contiguous_inputs(residues: Residues) -> None:
    moduli, tables = basis(128, [30, 30, 31])
    keys = residues(moduli, 2, 2, 128).permute(1, 2, 0, 3)
    for count in (0, 3):
        x = residues(moduli, 3 * 128, count).transpose(1, 2)
        assert x.is_contiguous() == (count == 0)
        dense = x.contiguous()
        assert torch.equal(ops.ntt(x, tables, moduli), ops.ntt(dense, tables, moduli))
        assert torch.equal(ops.tensor_square(x, moduli), ops.tensor_square(dense, moduli))
        assert torch.equal(ops.rescale(x, tables, moduli), ops.rescale(dense, tables, moduli))
        got = ops.relinearise(x[:2], keys, tables, moduli)
        assert got.shape == (2, count, 256)
        assert torch.equal(got, ops.relinearise(dense[:2].clone(), keys.contiguous(), tables, moduli))


@pytest.mark.parametrize("isa", ["generic", "avx2"])
def test_other_instruction_sets(isa: str) -> None:
    """This file and SEAL's again under another instruction set; tests/test_ops.py does so for the other ops."""
    if os.environ.get("MCFHE_CPU_ISA"):
        pytest.skip("already running under a forced instruction set")
    with Path("/proc/cpuinfo").open() as cpuinfo:
        if isa == "avx2" and " avx2 " not in cpuinfo.read():
            pytest.skip("this processor has no AVX2")
    here = Path(__file__)
    files = [here, here.with_name("test_lattice_seal.py")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "not opcheck", *files],
        env={**os.environ, "MCFHE_CPU_ISA": isa},
        cwd=here.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
