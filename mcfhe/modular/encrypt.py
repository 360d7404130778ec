"""S2 and S3: images to residues.

Patent profile, one public key an image: V_pk = a * Delta + e, PK = Enc_SK(1.0), CT[p][m] = PK[p][m] * PT mod b_p,
so every lane of CT stands for a multiple of the same pixels. Hardened profile: V = a * PT + e with its own e and
its own decoys for every pixel. PT is the client spec's table, so a pixel takes one of 256 values per channel: the
products are computed once per value and gathered, which costs less than a reduction per pixel.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mcfhe.errors import ImageError, ParameterError
from mcfhe.modular.csprng import RandomStream
from mcfhe.modular.keys import SecretKey
from mcfhe.modular.params import integer

# Images are taken in chunks of about this many bytes of temporaries, so that they stay in the cache.
_CHUNK_BYTES = 1 << 20


class Encrypted(NamedTuple):
    """Residues and, on request, the exact input integers they stand for."""

    ciphertext: np.ndarray  # int64 [N, C, H, W, batch * M]
    public_key: np.ndarray | None  # int64 [N, batch * M]; None in the hardened profile
    integers: np.ndarray | None  # object [batch, C, H, W] of Python ints


def ciphertext_bytes(key: SecretKey, shape: Sequence[int]) -> int:
    """Bytes of the int64 ciphertext of images ``[batch, C, H, W]``."""
    batch, channels, height, width = shape
    return 8 * len(key.moduli) * channels * height * width * batch * key.lanes


def default_byte_budget() -> int:
    """A quarter of the machine's memory; 1 GiB where that is unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    except (AttributeError, ValueError, OSError):
        return 1 << 30


def encrypt(
    images: np.ndarray,
    table: Sequence[Sequence[int]],
    key: SecretKey,
    *,
    return_integers: bool = False,
    byte_budget: int | None = None,
) -> Encrypted:
    """Encrypt uint8 ``[batch, C, H, W]``, batch >= 1.

    table: C rows of 256 integers, PT = table[c][pixel], of either sign. All randomness is fresh from the operating
    system's CSPRNG. Stream index of the result: image * M + lane. ImageError if the ciphertext alone
    would exceed ``byte_budget`` (default: a quarter of memory).
    """
    if len(table) != images.shape[1]:
        raise ImageError(f"images: {images.shape[1]} channels, the table has {len(table)}")
    budget = default_byte_budget() if byte_budget is None else integer("byte_budget", byte_budget, 0, 1 << 63)
    size = ciphertext_bytes(key, images.shape)
    if size > budget:
        raise ImageError(
            f"images: the ciphertext of {len(images)} images takes {size} bytes, byte_budget is {budget}; "
            f"encrypt at most {budget * len(images) // size} at a time or raise byte_budget"
        )
    stream = RandomStream.from_os()
    pixels = np.ascontiguousarray(images.transpose(1, 2, 3, 0)).reshape(images.shape[1], -1, len(images))
    if key.profile == "patent":
        return _encrypt_patent(pixels, images.shape, table, key, stream, return_integers)
    return _encrypt_hardened(pixels, images.shape, table, key, stream, return_integers)


def encrypt_integers(values: np.ndarray, key: SecretKey, stream: RandomStream) -> np.ndarray:
    """Enc_SK of integers V, object or int64 ``[n]``: int64 ``[N, n * M]``, the true lane V mod b_p, decoys uniform."""
    residues = stream.uniform_residues(key.moduli, (len(values), key.lanes))
    for limb, (b, position) in enumerate(zip(key.moduli, key.lane_positions, strict=True)):
        residues[limb, :, position] = (values % b).astype(np.int64)
    return residues.reshape(len(key.moduli), -1)


def _encrypt_patent(
    pixels: np.ndarray,
    shape: Sequence[int],
    table: Sequence[Sequence[int]],
    key: SecretKey,
    stream: RandomStream,
    return_integers: bool,
) -> Encrypted:
    batch, channels, height, width = shape
    lanes = key.lanes
    noise = stream.uniform_below(max(1, key.noise), (batch,)).astype(object)
    values = key.amplification * key.scale + noise
    public_key = encrypt_integers(values, key, stream)
    out = np.empty((len(key.moduli), channels, height * width, batch, lanes), np.int64)
    step = max(1, _CHUNK_BYTES // (8 * lanes * 256))
    for first in range(0, batch, step):
        part = slice(first, first + step)
        count = min(step, batch - first)
        # Row image * 256 + pixel value of the products; flat over (pixel position, image).
        rows = (pixels[:, :, part] + 256 * np.arange(count)).reshape(channels, -1)
        for limb, b in enumerate(key.moduli):
            factors = public_key[limb].reshape(batch, 1, lanes)[part]
            for channel, plain in enumerate(_table_residues(table, b)):
                products = (factors * plain[:, None] % b).reshape(-1, lanes)
                gathered = np.take(products, rows[channel], axis=0, mode="clip")
                out[limb, channel, :, part] = gathered.reshape(height * width, count, lanes)
    integers = None
    if return_integers:
        integers = _plain(pixels, table, shape) * values.reshape(batch, 1, 1, 1)
    return Encrypted(_as_ciphertext(out, shape), public_key, integers)


def _encrypt_hardened(
    pixels: np.ndarray,
    shape: Sequence[int],
    table: Sequence[Sequence[int]],
    key: SecretKey,
    stream: RandomStream,
    return_integers: bool,
) -> Encrypted:
    batch, channels, height, width = shape
    lanes = key.lanes
    noise = stream.uniform_below(max(1, key.noise), pixels.shape)
    raised = [[key.amplification * value for value in row] for row in table]
    out = np.empty((len(key.moduli), channels, height * width, batch, lanes), np.int64)
    step = max(1, _CHUNK_BYTES // (4 * lanes * height * width))
    for limb, (b, position) in enumerate(zip(key.moduli, key.lane_positions, strict=True)):
        small_noise = noise if key.noise <= b else noise % b
        for channel, plain in enumerate(_table_residues(raised, b)):
            for first in range(0, batch, step):
                part = slice(first, first + step)
                true = plain[pixels[channel, :, part]]
                true += small_noise[channel, :, part]
                true -= b * (true >= b)
                residues = stream.uniform_residues((b,), (*true.shape, lanes))[0]
                residues[:, :, position] = true
                out[limb, channel, :, part] = residues
    integers = None
    if return_integers:
        offsets = noise.reshape(channels, height, width, batch).transpose(3, 0, 1, 2)
        integers = _plain(pixels, raised, shape) + offsets.astype(object)
    return Encrypted(_as_ciphertext(out, shape), None, integers)


def _table_residues(table: Sequence[Sequence[int]], b: int) -> np.ndarray:
    """int64 [C, 256], 0 <= r < b; the table's entries may be of any size and sign."""
    return np.array([[value % b for value in row] for row in table], np.int64)


def _plain(pixels: np.ndarray, table: Sequence[Sequence[int]], shape: Sequence[int]) -> np.ndarray:
    """Table values of all pixels: object [batch, C, H, W]."""
    batch, channels, height, width = shape
    rows = [np.array(row, object)[pixels[channel]] for channel, row in enumerate(table)]
    plain: np.ndarray = np.stack(rows).reshape(channels, height, width, batch).transpose(3, 0, 1, 2)
    return plain


def _as_ciphertext(out: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    return out.reshape(len(out), *shape[1:], -1)


def check_table(table: Sequence[Sequence[int]], input_shape: Sequence[int]) -> None:
    """ParameterError unless the table has 256 integers per channel."""
    if len(table) != input_shape[0] or any(len(row) != 256 for row in table):
        raise ParameterError(f"table: {input_shape[0]} rows of 256 integers expected")
