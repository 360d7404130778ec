"""The oracle: every residue op on plain Python integers, one value at a time, as slowly and as plainly as possible.

Tensors are int64 as in :mod:`mcfhe.ops`; arithmetic is on Python ints, so nothing can overflow. Tests compare the
kernels with this by equality.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor


def _horner(value: int, coefficients: Sequence[int]) -> int:
    return sum(c * value**i for i, c in enumerate(coefficients))


def _row(table: Tensor, limb: int, channel: int) -> list[int]:
    return table[limb, channel if table.shape[1] > 1 else 0].tolist()


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    moduli: Tensor,
    *,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    poly: Tensor | None = None,
    pool: Sequence[int] | None = None,
    pool_factor: Tensor | None = None,
) -> Tensor:
    """See :func:`mcfhe.ops.conv2d`."""
    limbs, _, height, width, stream = x.shape
    outs, group_in, kernel_h, kernel_w = weight.shape
    out_h = (height + 2 * padding[0] - dilation[0] * (kernel_h - 1) - 1) // stride[0] + 1
    out_w = (width + 2 * padding[1] - dilation[1] * (kernel_w - 1) - 1) // stride[1] + 1
    y = torch.empty(limbs, outs, out_h, out_w, stream, dtype=torch.int64)
    values, weights, basis = x.tolist(), weight.tolist(), moduli.tolist()
    taps = list(itertools.product(range(group_in), range(kernel_h), range(kernel_w)))
    for limb, out, row, column, s in itertools.product(
        range(limbs), range(outs), range(out_h), range(out_w), range(stream)
    ):
        total = 0 if bias is None else int(bias[limb, out])
        first = out // (outs // groups) * group_in
        for c, i, j in taps:
            h = row * stride[0] + i * dilation[0] - padding[0]
            w = column * stride[1] + j * dilation[1] - padding[1]
            if 0 <= h < height and 0 <= w < width:
                total += weights[out][c][i][j] * values[limb][first + c][h][w][s]
        if poly is not None:
            total = _horner(total, _row(poly, limb, out))
        y[limb, out, row, column, s] = total % basis[limb]
    return y if pool is None else sum_pool2d(y, moduli, kernel=pool, factor=pool_factor)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, moduli: Tensor, *, poly: Tensor | None = None) -> Tensor:
    """See :func:`mcfhe.ops.linear`."""
    image = x.reshape(x.shape[0], x.shape[1], 1, 1, x.shape[2])
    y = conv2d(image, weight.reshape(*weight.shape, 1, 1), bias, moduli, poly=poly)
    return y.reshape(x.shape[0], weight.shape[0], x.shape[2])


def sum_pool2d(
    x: Tensor,
    moduli: Tensor,
    *,
    kernel: Sequence[int],
    stride: Sequence[int] | None = None,
    padding: Sequence[int] = (0, 0),
    factor: Tensor | None = None,
) -> Tensor:
    """See :func:`mcfhe.ops.sum_pool2d`."""
    stride = kernel if stride is None else stride
    limbs, channels, height, width, stream = x.shape
    out_h = (height + 2 * padding[0] - kernel[0]) // stride[0] + 1
    out_w = (width + 2 * padding[1] - kernel[1]) // stride[1] + 1
    y = torch.empty(limbs, channels, out_h, out_w, stream, dtype=torch.int64)
    values, basis = x.tolist(), moduli.tolist()
    for limb, c, row, column, s in itertools.product(
        range(limbs), range(channels), range(out_h), range(out_w), range(stream)
    ):
        total = 0
        for i, j in itertools.product(range(kernel[0]), range(kernel[1])):
            h, w = row * stride[0] + i - padding[0], column * stride[1] + j - padding[1]
            if 0 <= h < height and 0 <= w < width:
                total += values[limb][c][h][w][s]
        y[limb, c, row, column, s] = total * (1 if factor is None else int(factor[limb])) % basis[limb]
    return y


def _pointwise(x: Tensor, moduli: Tensor, f: Callable[[int, int, int, int], int]) -> Tensor:
    """f(limb, channel, flat index, value) for every entry of x [L, C, ..., S] or [L, S], modulo the limb."""
    channels = 1 if x.dim() == 2 else x.shape[1]
    flat = x.reshape(x.shape[0], channels, -1)
    y = torch.empty_like(flat)
    for limb, c, i in itertools.product(range(flat.shape[0]), range(channels), range(flat.shape[2])):
        y[limb, c, i] = f(limb, c, i, int(flat[limb, c, i])) % int(moduli[limb])
    return y.reshape(x.shape)


def square(x: Tensor, moduli: Tensor) -> Tensor:
    """See :func:`mcfhe.ops.square`."""
    return _pointwise(x, moduli, lambda _l, _c, _i, value: value * value)


def poly(x: Tensor, coefficients: Tensor, moduli: Tensor) -> Tensor:
    """See :func:`mcfhe.ops.poly`."""
    return _pointwise(x, moduli, lambda limb, c, _i, value: _horner(value, _row(coefficients, limb, c)))


def align_add(
    x: Tensor, y: Tensor, moduli: Tensor, *, x_factor: Tensor | None = None, y_factor: Tensor | None = None
) -> Tensor:
    """See :func:`mcfhe.ops.align_add`."""
    other = y.reshape(x.shape[0], 1 if x.dim() == 2 else x.shape[1], -1)

    def one(limb: int, c: int, i: int, value: int) -> int:
        fx = 1 if x_factor is None else int(x_factor[limb])
        fy = 1 if y_factor is None else int(y_factor[limb])
        return fx * value + fy * int(other[limb, c, i])

    return _pointwise(x, moduli, one)


def add_const(x: Tensor, constant: Tensor, moduli: Tensor, *, streams: int | None = None) -> Tensor:
    """See :func:`mcfhe.ops.add_const`."""
    size = x.shape[-1]
    head = size if streams is None else streams
    return _pointwise(
        x,
        moduli,
        lambda limb, c, i, value: value + (_row(constant.unsqueeze(-1), limb, c)[0] if i % size < head else 0),
    )


# --- lattice ops --------------------------------------------------------------------------------------------------


def _bit_reversed(i: int, n: int) -> int:
    return int(format(i, f"0{n.bit_length() - 1}b")[::-1], 2)


def _root(tables: Tensor, limb: int) -> int:
    """psi: its exponent at index k is bitrev(k), and bitrev(n / 2) = 1."""
    return int(tables[limb, 0, tables.shape[2] // 2]) & 0xFFFFFFFF


def _transform(values: Sequence[int], psi: int, q: int) -> list[int]:
    """The polynomial at the odd powers of psi, by definition: O(n**2)."""
    n = len(values)
    powers = [pow(psi, e, q) for e in range(2 * n)]
    points = [2 * _bit_reversed(i, n) + 1 for i in range(n)]
    return [sum(v * powers[e * k % (2 * n)] for k, v in enumerate(values)) % q for e in points]


def _inverse_transform(values: Sequence[int], psi: int, q: int) -> list[int]:
    n = len(values)
    powers = [pow(psi, -e, q) for e in range(2 * n)]
    points = [2 * _bit_reversed(i, n) + 1 for i in range(n)]
    scale = pow(n, -1, q)
    return [scale * sum(v * powers[e * k % (2 * n)] for v, e in zip(values, points, strict=True)) % q for k in range(n)]


def ntt(x: Tensor, tables: Tensor, moduli: Tensor, *, inverse: bool = False) -> Tensor:
    """See :func:`mcfhe.ops.ntt`; quadratic in n."""
    n = tables.shape[2]
    runs = x.reshape(x.shape[0], -1, n)
    y = torch.empty_like(runs)
    one = _inverse_transform if inverse else _transform
    for limb, run in itertools.product(range(runs.shape[0]), range(runs.shape[1])):
        y[limb, run] = torch.tensor(one(runs[limb, run].tolist(), _root(tables, limb), int(moduli[limb])))
    return y.reshape(x.shape)


def tensor_square(
    x: Tensor,
    moduli: Tensor,
    *,
    shift: Tensor | None = None,
    coefficients: Tensor | None = None,
    pool: tuple[int, int] | None = None,
) -> Tensor:
    """See :func:`mcfhe.ops.tensor_square`."""
    if pool is not None:
        return sum_pool2d(tensor_square(x, moduli, shift=shift, coefficients=coefficients), moduli, kernel=pool)
    n = x.shape[-1] // 2
    channels = 1 if x.dim() == 2 else x.shape[1]
    pairs = x.reshape(x.shape[0], channels, -1, 2, n)
    y = torch.empty(*pairs.shape[:3], 3, n, dtype=torch.int64)
    for limb, c, position, k in itertools.product(range(x.shape[0]), range(channels), range(pairs.shape[2]), range(n)):
        z0, z1 = pairs[limb, c, position, :, k].tolist()
        z0 += 0 if shift is None else _row(shift.unsqueeze(-1), limb, c)[0]
        a0, a1, a2 = (0, 0, 1) if coefficients is None else _row(coefficients, limb, c)
        q = int(moduli[limb])
        y[limb, c, position, 0, k] = (a2 * z0 * z0 + a1 * z0 + a0) % q
        y[limb, c, position, 1, k] = (2 * a2 * z0 + a1) * z1 % q
        y[limb, c, position, 2, k] = a2 * z1 * z1 % q
    return y.reshape(*x.shape[:-1], 3 * n)


def _divide_by_last(rows: Sequence[Sequence[int]], tables: Tensor, basis: Sequence[int]) -> list[list[int]]:
    """One polynomial in NTT form modulo every prime of ``basis``, divided by the last and rounded to nearest.

    Subtracting ((x + h) mod p) - h with h = floor(p / 2) from x leaves a multiple of p.
    """
    p = basis[-1]
    half = p // 2
    last = _inverse_transform(rows[-1], _root(tables, len(basis) - 1), p)
    rest = [(c + half) % p - half for c in last]
    out = []
    for j, q in enumerate(basis[:-1]):
        spread = _transform([c % q for c in rest], _root(tables, j), q)
        out.append([(v - r) * pow(p, -1, q) % q for v, r in zip(rows[j], spread, strict=True)])
    return out


def relinearise(x: Tensor, keys: Tensor, tables: Tensor, moduli: Tensor) -> Tensor:
    """See :func:`mcfhe.ops.relinearise`; quadratic in n."""
    n, limbs, basis = tables.shape[2], x.shape[0], moduli.tolist()
    values = x.reshape(limbs, -1, 3, n)
    y = torch.empty(limbs, values.shape[1], 2, n, dtype=torch.int64)
    key = keys.tolist()
    for position in range(values.shape[1]):
        digits = [_inverse_transform(values[i, position, 2].tolist(), _root(tables, i), basis[i]) for i in range(limbs)]
        rows = [
            [_transform([c % basis[j] for c in digits[i]], _root(tables, j), basis[j]) for i in range(limbs)]
            for j in range(limbs + 1)
        ]
        for k in range(2):
            sums = [
                [sum(rows[j][i][e] * key[i][k][j][e] for i in range(limbs)) % basis[j] for e in range(n)]
                for j in range(limbs + 1)
            ]
            for j, share in enumerate(_divide_by_last(sums, tables, basis)):
                y[j, position, k] = (values[j, position, k] + torch.tensor(share)) % basis[j]
    return y.reshape(*x.shape[:-1], 2 * n)


def rescale(x: Tensor, tables: Tensor, moduli: Tensor) -> Tensor:
    """See :func:`mcfhe.ops.rescale`; quadratic in n."""
    n, limbs = tables.shape[2], x.shape[0]
    runs = x.reshape(limbs, -1, n)
    y = torch.empty(limbs - 1, runs.shape[1], n, dtype=torch.int64)
    for run in range(runs.shape[1]):
        y[:, run] = torch.tensor(_divide_by_last(runs[:, run].tolist(), tables, moduli.tolist()))
    return y.reshape(limbs - 1, *x.shape[1:])


_BLAKE_IV = (
    0x6A09E667F3BCC908, 0xBB67AE8584CAA73B, 0x3C6EF372FE94F82B, 0xA54FF53A5F1D36F1,
    0x510E527FADE682D1, 0x9B05688C2B3E6C1F, 0x1F83D9ABFB41BD6B, 0x5BE0CD19137E2179,
)  # fmt: skip
_SIGMA = tuple(
    tuple(int(digit, 16) for digit in row)
    for row in (
        "0123456789abcdef", "ea489fd61c02b753", "b8c052fdae367194", "7931dcbe265a40f8", "905724afe1bc683d",
        "2c6a0b834d75fe19", "c51fed4a0763928b", "db7ec13950f4862a", "6fe9b308c2d714a5", "a2847615fb9e3cd0",
    )
)  # fmt: skip
_WORD = (1 << 64) - 1


def _rotated(v: int, bits: int) -> int:
    return (v >> bits | v << (64 - bits)) & _WORD


def blake2b(parameters: tuple[int, int, int], blocks: Sequence[tuple[bytes, int]]) -> bytes:
    """BLAKE2b (RFC 7693) with the first three words of a parameter block, the others 0; blocks with bytes so far.

    hashlib's takes no depth of 0, which the nodes of BLAKE2Xb have.
    """
    h = [iv ^ p for iv, p in zip(_BLAKE_IV, (*parameters, 0, 0, 0, 0, 0), strict=True)]
    for number, (block, count) in enumerate(blocks, 1):
        data = block.ljust(128, b"\0")
        m = [int.from_bytes(data[i : i + 8], "little") for i in range(0, 128, 8)]
        v = [*h, *_BLAKE_IV]
        v[12] ^= count
        v[14] ^= _WORD if number == len(blocks) else 0
        for turn in range(12):
            s = _SIGMA[turn % 10]
            for i in range(8):
                column = i % 4
                shift = i // 4
                a, b, c, d = (4 * row + (column + shift * row) % 4 for row in range(4))
                for x, (first, second) in ((m[s[2 * i]], (32, 24)), (m[s[2 * i + 1]], (16, 63))):
                    v[a] = (v[a] + v[b] + x) & _WORD
                    v[d] = _rotated(v[d] ^ v[a], first)
                    v[c] = (v[c] + v[d]) & _WORD
                    v[b] = _rotated(v[b] ^ v[c], second)
        h = [old ^ low ^ high for old, low, high in zip(h, v[:8], v[8:], strict=True)]
    return b"".join(word.to_bytes(8, "little") for word in h)


def seed_stream(seed: bytes) -> Iterator[int]:
    """SEAL's Blake2xbPRNG: 64-bit words; 4,096 bytes for each counter 0, 1, ..: its BLAKE2Xb under the key ``seed``."""
    length = 4096
    for counter in itertools.count():
        root_parameters = (64 | 64 << 8 | 1 << 16 | 1 << 24, length << 32, 0)
        root = blake2b(root_parameters, [(seed, 128), (counter.to_bytes(8, "little"), 136)])
        for node in range(length // 64):
            out = blake2b((64 | 64 << 32, node | length << 32, 64 << 8), [(root, 64)])
            yield from (int.from_bytes(out[i : i + 8], "little") for i in range(0, 64, 8))


def expand_uniform(seeds: Tensor, moduli: Tensor, n: int) -> Tensor:
    """See :func:`mcfhe.ops.expand_uniform`."""
    y = torch.empty(len(moduli), len(seeds), n, dtype=torch.int32)
    basis = moduli.tolist()
    for row, seed in enumerate(seeds):
        stream = seed_stream(bytes(seed.tolist()))
        drawn = [[next(stream) for _ in range(n)] for _ in basis]
        for limb, q in enumerate(basis):
            limit = _WORD - _WORD % q - 1
            for i, value in enumerate(drawn[limb]):
                while value >= limit:
                    value = next(stream)
                y[limb, row, i] = value % q
    return y
