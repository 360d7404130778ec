"""Uniform random integers from a ChaCha20 keystream, vectorised.

A stream is seeded by the operating system (encryption, key generation) or by a derived key (key generation
from a user key). Samples are exactly uniform: words are masked to the bit length of the bound and redrawn
while they are not below it, so there is no modulo bias.

The mapping from keystream to samples is part of the file format: a user key must give the same modular basis
on every machine. Words are little-endian and 32 bits wide for bounds up to 2**32, else 64.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from mcfhe.errors import ParameterError
from mcfhe.wiping import derived, wipe

_ZEROS = bytes(1 << 20)
# ChaCha20's 32-bit block counter wraps after 2**38 bytes; a stream takes a new key well before that.
_REKEY_BYTES = 1 << 36
# Limbs are sampled in groups of about this many words, so that a group stays in the cache.
_GROUP_WORDS = 1 << 18


class RandomStream:
    """A ChaCha20 keystream (RFC 8439) as a source of uniform integers. Not thread-safe; never shared across a fork."""

    def __init__(self, seed: bytes | bytearray) -> None:
        if len(seed) != 32:
            raise ParameterError(f"seed: 32 bytes expected, got {len(seed)}")
        self._rekey(seed)

    @classmethod
    def from_os(cls) -> RandomStream:
        """A new stream, seeded with 32 bytes of ``os.urandom``."""
        return cls(os.urandom(32))

    @classmethod
    def from_key(cls, key: bytes | bytearray, salt: bytes, info: bytes) -> RandomStream:
        """The deterministic stream of HKDF-SHA256(key, salt, info) (RFC 5869)."""
        seed = derived(HKDF(algorithm=hashes.SHA256(), length=32, salt=salt, info=info), key)
        try:
            return cls(seed)
        finally:
            wipe(seed)

    def __repr__(self) -> str:
        return "RandomStream()"

    def __reduce__(self) -> str:
        raise TypeError("RandomStream is never copied or pickled: two streams with one key repeat each other")

    def _rekey(self, seed: bytes | bytearray) -> None:
        # Every seed is used once, so a constant nonce repeats nothing.
        self._cipher = Cipher(algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor()
        self._used = 0

    def random_bytes(self, size: int) -> np.ndarray:
        """The next ``size`` keystream bytes, uint8 [size]."""
        if self._used + size > _REKEY_BYTES and self._used:
            self._rekey(self._cipher.update(_ZEROS[:32]))
        self._used += size
        out = np.empty(size, np.uint8)
        view = out.data
        for start in range(0, size, len(_ZEROS)):
            piece = view[start : start + len(_ZEROS)]
            self._cipher.update_into(_ZEROS[: len(piece)], piece)
        return out

    def uniform_below(self, bound: int, shape: Sequence[int] = ()) -> np.ndarray:
        """int64 array of ``shape``, each entry independent and uniform in 0 <= x < bound; 1 <= bound <= 2**63."""
        if not 1 <= bound <= 1 << 63:
            raise ParameterError(f"bound = {bound} is outside 1..2**63")
        if bound == 1:
            return np.zeros(tuple(shape), np.int64)
        word = np.dtype("<u4") if bound <= 1 << 32 else np.dtype("<u8")
        flat = self._below(np.array([[bound - 1]], word), math.prod(shape))
        return flat.astype(np.int64).reshape(tuple(shape))

    def uniform_residues(self, moduli: Sequence[int], shape: Sequence[int]) -> np.ndarray:
        """int64 array ``[L, *shape]``; row p independent and uniform in 0 <= r < moduli[p], 2 <= moduli[p] < 2**32."""
        if any(not 2 <= b < 1 << 32 for b in moduli):
            raise ParameterError("moduli: every one must be in 2 <= b < 2**32")
        width = math.prod(shape)
        out = np.empty((len(moduli), width), np.int64)
        highest = (np.array([int(b) for b in moduli], np.int64) - 1).astype("<u4")[:, None]
        group = max(1, _GROUP_WORDS // max(1, width))
        for start in range(0, len(moduli), group):
            part = slice(start, start + group)
            out[part] = self._below(highest[part], width)
        return out.reshape((len(moduli), *shape))

    def _below(self, highest: np.ndarray, width: int) -> np.ndarray:
        """Words ``[L, width]``, row p uniform in 0 <= x <= highest[p]; ``highest`` is ``[L, 1]``."""
        mask = np.array([[(1 << int(h).bit_length()) - 1] for h in highest[:, 0]], highest.dtype)
        words = self.random_bytes(len(highest) * width * highest.itemsize).view(highest.dtype)
        words = words.reshape(len(highest), width)
        words &= mask
        rejected = np.flatnonzero(words > highest)
        if len(rejected) == 0:
            return words
        rows = rejected // max(1, width)
        flat, low, top = words.reshape(-1), mask[rows, 0], highest[rows, 0]
        while len(rejected):
            again = self.random_bytes(len(rejected) * highest.itemsize).view(highest.dtype) & low
            flat[rejected] = again
            keep = again > top
            rejected, low, top = rejected[keep], low[keep], top[keep]
        return words
