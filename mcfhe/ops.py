"""Typed wrappers of the residue ops, with the shape rules torch.compile and torch.export need.

Every tensor is int64. A residue tensor is ``[L, C, H, W, S]`` or ``[L, K, S]`` (limbs, channels, rows, columns,
stream), canonical: ``0 <= r < moduli[l]``. ``moduli`` is ``[L]`` with ``2 <= b < 2**31``; entries need not be prime.
The arithmetic is exact: what an op returns equals the same expression on Python integers, reduced modulo b.

Bad shapes, dtypes, moduli, weights and per-limb constants raise RuntimeError with a message that names the argument,
an ``x`` that is no tensor ParameterError. Pairs (stride, padding, ...) may be one number for both axes.
The range of ``x`` is checked too: on the CPU as it is read, on CUDA by :func:`check_residues` first, which waits for
the device; ``validate=False`` leaves that out where the caller has already checked.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from mcfhe import _extension
from mcfhe.arguments import require
from mcfhe.errors import ParameterError

_extension.load()

Pair = int | Sequence[int]
F = TypeVar("F", bound=Callable[..., Any])


def _call(name: str, *arguments: object) -> Tensor:
    """torch.ops.mcfhe.NAME(*arguments); every op returns one tensor."""
    return cast(Tensor, getattr(torch.ops.mcfhe, name)(*arguments))


def _fake(name: str) -> Callable[[F], F]:
    """Registers a shape function; torch's own decorator has no types.

    One meta tensor among real ones also ends here, and a result of the right shape that nobody has computed must not.
    """

    def register(shape: F) -> F:
        @functools.wraps(shape)
        def checked(*arguments: Any, **options: Any) -> Tensor:
            devices = {str(a.device) for a in (*arguments, *options.values()) if isinstance(a, Tensor)}
            if len(devices) > 1:
                raise RuntimeError(f"mcfhe::{name}: tensors are on {' and '.join(sorted(devices))}; move all to one")
            return cast(Tensor, shape(*arguments, **options))

        torch.library.register_fake(f"mcfhe::{name}", checked)
        return shape

    return register


def _pair(name: str, value: Pair) -> list[int]:
    """Two numbers, of which one stands for both; the schema's types and the op's own check do the rest."""
    if isinstance(value, int):
        return [value, value]
    require(name, value, Sequence, "give one whole number or two")
    return list(value)


def check_residues(x: Tensor, moduli: Tensor) -> None:
    """Raise ParameterError unless every entry of ``x`` [L, ...] satisfies 0 <= x < moduli[l]."""
    count = int(torch.ops.mcfhe.count_out_of_range(x, moduli))
    if count:
        raise ParameterError(f"x: {count} of {x.numel()} residues lie outside 0 <= r < b; reduce them first")


def _validate(x: Tensor, moduli: Tensor, validate: bool) -> None:
    """``moduli`` may have more than the limbs of ``x``: a special prime behind them."""
    require("x", x, Tensor, "give an int64 tensor of residues")
    if validate and x.is_cuda and x.dim() and moduli.dim():
        check_residues(x, moduli[: x.shape[0]])


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    moduli: Tensor,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    poly: Tensor | None = None,
    weight_bounds: Sequence[int] | None = None,
    pool: Pair | None = None,
    pool_factor: Tensor | None = None,
    validate: bool = True,
) -> Tensor:
    """Convolution of residues with small signed weights, then ``bias``, then ``poly``, then window sums of ``pool``.

    ``x`` [L, C, H, W, S], ``weight`` [O, C / groups, kh, kw] with |q| < 2**31 shared by all limbs, ``bias`` residues
    [L, O], ``poly`` residues [L, 1 or O, D + 1] of y = sum_i poly[i] * x**i with D >= 1; result [L, O, OH, OW, S].
    Stride, zero padding, dilation and groups as in :func:`torch.nn.functional.conv2d`.

    ``weight_bounds`` = (max |q|, max over outputs of sum |q|) chooses the arithmetic; without it the op measures the
    weights, which on CUDA waits for the device. Bounds below the truth give wrong residues.

    ``pool`` = (h, w) sums windows side by side, without overlap or padding, times ``pool_factor`` (residues [L],
    absent: 1); result [L, O, OH // h, OW // w, S]: :func:`sum_pool2d` with that kernel on what conv2d gives without.
    Rows and columns that fill no window are dropped; a window larger than the output is refused.
    """
    _validate(x, moduli, validate)
    sizes = (_pair("stride", stride), _pair("padding", padding), _pair("dilation", dilation), groups)
    window = None if pool is None else _pair("pool", pool)
    return _call("conv2d", x, weight, bias, poly, moduli, *sizes, weight_bounds, window, pool_factor)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    moduli: Tensor,
    *,
    poly: Tensor | None = None,
    weight_bounds: Sequence[int] | None = None,
    validate: bool = True,
) -> Tensor:
    """``x`` [L, K, S], ``weight`` [O, K], ``bias`` [L, O] -> [L, O, S]; ``poly`` and ``weight_bounds`` as in conv2d."""
    _validate(x, moduli, validate)
    return _call("linear", x, weight, bias, poly, moduli, weight_bounds)


def sum_pool2d(
    x: Tensor,
    moduli: Tensor,
    *,
    kernel: Pair,
    stride: Pair | None = None,
    padding: Pair = (0, 0),
    factor: Tensor | None = None,
    validate: bool = True,
) -> Tensor:
    """Window sums of ``x`` [L, C, H, W, S] times ``factor`` [L] (residues); windows off the edge see zeros.

    ``stride`` defaults to ``kernel``. Average pooling is this with factor = round(Delta / divisor).
    """
    _validate(x, moduli, validate)
    step = kernel if stride is None else stride
    sizes = (_pair("kernel", kernel), _pair("stride", step), _pair("padding", padding))
    return _call("sum_pool2d", x, factor, moduli, *sizes)


def square(x: Tensor, moduli: Tensor, *, validate: bool = True) -> Tensor:
    """x**2 mod b, elementwise on ``x`` [L, C, ..., S]."""
    _validate(x, moduli, validate)
    return _call("square", x, moduli)


def poly(x: Tensor, coefficients: Tensor, moduli: Tensor, *, validate: bool = True) -> Tensor:
    """sum_i coefficients[l, c, i] * x**i mod b; ``x`` [L, C, ..., S], ``coefficients`` [L, 1 or C, D + 1], D >= 1."""
    _validate(x, moduli, validate)
    return _call("poly", x, coefficients, moduli)


def align_add(
    x: Tensor,
    y: Tensor,
    moduli: Tensor,
    *,
    x_factor: Tensor | None = None,
    y_factor: Tensor | None = None,
    validate: bool = True,
) -> Tensor:
    """x_factor * x + y_factor * y mod b for ``x``, ``y`` of one shape [L, ...] and factors [L]; no factor means 1."""
    _validate(x, moduli, validate)
    _validate(y, moduli, validate)
    return _call("align_add", x, y, x_factor, y_factor, moduli)


def add_const(
    x: Tensor, constant: Tensor, moduli: Tensor, *, streams: int | None = None, validate: bool = True
) -> Tensor:
    """x + constant mod b; ``x`` [L, C, ..., S], ``constant`` residues [L, 1 or C].

    With ``streams`` (0..S) only the first so many entries of the last axis are added to, the rest is copied: in a
    ciphertext of several polynomials a constant joins the first one only.
    """
    _validate(x, moduli, validate)
    return _call("add_const", x, constant, moduli, streams)


# --- lattice ops: runs of n residues are polynomials of Z_q[X] / (X^n + 1) ------------------------------------------
#
# ``moduli`` here are primes q = 1 mod 2n below 2**31 and ``tables`` [L, 4, n] int32 what
# :func:`mcfhe.lattice.ring.ntt_tables` makes of them. The transformed (NTT) form and its order are SEAL's. Results are
# canonical and equal SEAL's bit for bit.


def ntt(x: Tensor, tables: Tensor, moduli: Tensor, *, inverse: bool = False, validate: bool = True) -> Tensor:
    """Negacyclic transform of every run of n residues of ``x`` [L, ..., S], S a multiple of n.

    out[i] = x(psi ** (2 * bitrev(i) + 1)) mod q with psi the smallest primitive 2n-th root of unity and bitrev over
    log2(n) bits; ``inverse`` undoes it.
    """
    _validate(x, moduli, validate)
    return _call("ntt", x, tables, moduli, inverse)


def tensor_square(
    x: Tensor,
    moduli: Tensor,
    *,
    shift: Tensor | None = None,
    coefficients: Tensor | None = None,
    pool: Pair | None = None,
    validate: bool = True,
) -> Tensor:
    """The quadratic A2 z**2 + A1 z + A0 of a ciphertext z = (z0, z1) in NTT form, three components out.

    ``x`` [L, C, ..., 2n]; z0 = x0 + ``shift`` (residues [L, 1 or C], absent: 0), z1 = x1; ``coefficients`` residues
    [L, 1 or C, 3] are (A0, A1, A2), absent: (0, 0, 1). Result [L, C, ..., 3n]:
    A2 z0**2 + A1 z0 + A0, (2 A2 z0 + A1) z1, A2 z1**2. Pointwise, so any n and any moduli will do.

    ``pool`` = (h, w) sums windows of that, as in :func:`conv2d`: ``x`` [L, C, H, W, 2n], result
    [L, C, H // h, W // w, 3n].
    """
    _validate(x, moduli, validate)
    window = None if pool is None else _pair("pool", pool)
    return _call("tensor_square", x, shift, coefficients, moduli, window)


def relinearise(x: Tensor, keys: Tensor, tables: Tensor, moduli: Tensor, *, validate: bool = True) -> Tensor:
    """Three components [L, ..., 3n] in NTT form to the two [L, ..., 2n] that decrypt alike: SEAL's relinearize.

    ``moduli`` [L + 1] and ``tables`` [L + 1, 4, n] end with the special prime p. ``keys`` [L, 2, L + 1, n] in NTT form:
    keys[i, k, j] is component k of the key for digit i modulo the j-th of ``moduli``.
    Digit i is the third component modulo q_i (one prime a digit); the sum over i of digit times key is divided by p,
    rounded to nearest, and added to the first two.
    """
    _validate(x, moduli, validate)
    return _call("relinearise", x, keys, tables, moduli)


def rescale(x: Tensor, tables: Tensor, moduli: Tensor, *, validate: bool = True) -> Tensor:
    """Divides ciphertexts [L, ..., S] in NTT form by their last prime, rounded to nearest: [L - 1, ..., S], L >= 2.

    S is a multiple of n. SEAL's rescale_to_next.
    """
    _validate(x, moduli, validate)
    return _call("rescale", x, tables, moduli)


def expand_uniform(seeds: Tensor, moduli: Tensor, n: int) -> Tensor:
    """Uniform residues int32 ``[L, P, n]`` from ``seeds`` uint8 ``[P, 64]``, modulo each of ``moduli`` [L], any n >= 1.

    What SEAL expands a seed to: a BLAKE2Xb stream of 64-bit words (4,096 bytes for each value of a counter, keyed with
    the seed) is cut into L rows of n, reduced modulo each modulus; words that would favour small residues are replaced
    by those that follow all rows. Seeds are public.
    """
    return _call("expand_uniform", seeds, moduli, n)


# --- shapes for tracing -------------------------------------------------------------------------------------------


def _out(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


@_fake("conv2d")
def _conv2d_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    poly: Tensor | None,
    moduli: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    weight_bounds: list[int] | None = None,
    pool: list[int] | None = None,
    pool_factor: Tensor | None = None,
) -> Tensor:
    limbs, _, height, width, stream = x.shape
    out, _, kernel_h, kernel_w = weight.shape
    window_h, window_w = (1, 1) if pool is None else pool
    return x.new_empty(
        limbs,
        out,
        _out(height, kernel_h, stride[0], padding[0], dilation[0]) // window_h,
        _out(width, kernel_w, stride[1], padding[1], dilation[1]) // window_w,
        stream,
    )


@_fake("linear")
def _linear_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    poly: Tensor | None,
    moduli: Tensor,
    weight_bounds: list[int] | None = None,
) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0], x.shape[2])


@_fake("sum_pool2d")
def _sum_pool2d_fake(
    x: Tensor, factor: Tensor | None, moduli: Tensor, kernel: list[int], stride: list[int], padding: list[int]
) -> Tensor:
    limbs, channels, height, width, stream = x.shape
    return x.new_empty(
        limbs,
        channels,
        _out(height, kernel[0], stride[0], padding[0]),
        _out(width, kernel[1], stride[1], padding[1]),
        stream,
    )


@_fake("square")
def _square_fake(x: Tensor, moduli: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@_fake("poly")
def _poly_fake(x: Tensor, coefficients: Tensor, moduli: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@_fake("align_add")
def _align_add_fake(x: Tensor, y: Tensor, x_factor: Tensor | None, y_factor: Tensor | None, moduli: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@_fake("add_const")
def _add_const_fake(x: Tensor, constant: Tensor, moduli: Tensor, streams: int | None = None) -> Tensor:
    return x.new_empty(x.shape)


@_fake("ntt")
def _ntt_fake(x: Tensor, tables: Tensor, moduli: Tensor, inverse: bool = False) -> Tensor:
    return x.new_empty(x.shape)


@_fake("tensor_square")
def _tensor_square_fake(
    x: Tensor, shift: Tensor | None, coefficients: Tensor | None, moduli: Tensor, pool: list[int] | None = None
) -> Tensor:
    *before, stream = x.shape
    if pool is not None:
        before[2:] = before[2] // pool[0], before[3] // pool[1]
    return x.new_empty(*before, stream // 2 * 3)


@_fake("relinearise")
def _relinearise_fake(x: Tensor, keys: Tensor, tables: Tensor, moduli: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 3 * 2)


@_fake("rescale")
def _rescale_fake(x: Tensor, tables: Tensor, moduli: Tensor) -> Tensor:
    return x.new_empty(x.shape[0] - 1, *x.shape[1:])


@_fake("expand_uniform")
def _expand_uniform_fake(seeds: Tensor, moduli: Tensor, n: int) -> Tensor:
    return seeds.new_empty((moduli.shape[0], seeds.shape[0], n), dtype=torch.int32)


@_fake("count_out_of_range")
def _count_out_of_range_fake(x: Tensor, moduli: Tensor) -> Tensor:
    return x.new_empty(())
