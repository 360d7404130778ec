"""SEAL by way of the tenseal wheel, for tests and benchmarks: its evaluator on the residue tensors of the lattice ops.

The streams are those of SEAL 4 (native/src/seal/serialization.h, ciphertext.cpp, kswitchkeys.cpp): a header of 16 bytes
(magic, header size, version, compression, two reserved bytes, total size), then the fields of save_members.
"""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

sealapi: Any = pytest.importorskip("tenseal.sealapi", reason="tenseal is not installed: pip install mcfhe[lattice]")
zstandard: Any = pytest.importorskip("zstandard", reason="zstandard is not installed: pip install mcfhe[lattice]")

HEADER = struct.Struct("<HBBBBHQ")
FIELDS = struct.Struct("<4QBQQQdQ")  # parms_id, NTT form, components, n, limbs, scale, correction factor
ZSTD = 2


class Stream:
    """The bytes SEAL saves, decompressed, and a position."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    @staticmethod
    def of(thing: Any) -> Stream:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "seal"
            thing.save(str(path))
            data = path.read_bytes()
        body = data[HEADER.size :]
        if HEADER.unpack_from(data)[4] == ZSTD:
            body = zstandard.ZstdDecompressor().decompressobj().decompress(body)
        return Stream(body)

    def take(self, layout: struct.Struct) -> tuple[Any, ...]:
        values = layout.unpack_from(self.data, self.at)
        self.at += layout.size
        return values

    def ciphertext(self) -> np.ndarray:
        """[components, limbs, n]; the nested array has a header and a count of its own."""
        *_, components, n, limbs, _scale, _factor = self.take(FIELDS)
        self.at += HEADER.size
        (count,) = self.take(struct.Struct("<Q"))
        assert count == components * limbs * n
        words = np.frombuffer(self.data, "<u8", count, self.at).astype(np.int64)
        self.at += 8 * count
        return words.reshape(components, limbs, n)


class Seal:
    """A CKKS context without a security check, its keys and its evaluator. The last prime is the special one."""

    def __init__(self, n: int, bits: list[int]) -> None:
        parameters = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
        parameters.set_poly_modulus_degree(n)
        primes = sealapi.CoeffModulus.Create(n, bits)
        parameters.set_coeff_modulus(primes)
        self.n, self.primes = n, [p.value() for p in primes]
        self.context = sealapi.SEALContext(parameters, True, sealapi.SEC_LEVEL_TYPE.NONE)
        self.generator = sealapi.KeyGenerator(self.context)
        self.relin_keys = sealapi.RelinKeys()
        self.generator.create_relin_keys(self.relin_keys)
        self.evaluator = sealapi.Evaluator(self.context)
        level = self.context.first_context_data()
        self.parms_ids: dict[int, list[int]] = {}
        for limbs in range(len(bits) - 1, 0, -1):
            self.parms_ids[limbs] = level.parms_id()
            level = level.next_context_data()

    def moduli(self, limbs: int, special: bool = False) -> Tensor:
        return torch.tensor(self.primes[:limbs] + self.primes[-1:] * special)

    def keys(self, limbs: int) -> Tensor:
        """[limbs, 2, limbs + 1, n] for ops.relinearise at a level of so many limbs."""
        stream = Stream.of(self.relin_keys)
        stream.take(struct.Struct("<4Q"))
        count, digits = stream.take(struct.Struct("<QQ"))
        assert count == 1
        rows = []
        for _ in range(digits):
            stream.at += HEADER.size
            rows.append(stream.ciphertext())
        kept = [*range(limbs), len(self.primes) - 1]
        return torch.from_numpy(np.stack(rows[:limbs])[:, :, kept])

    def random(self, limbs: int, components: int, generator: torch.Generator) -> Tensor:
        """Uniform residues [limbs, components * n]."""
        rows = [torch.randint(0, q, (components * self.n,), generator=generator) for q in self.primes[:limbs]]
        return torch.stack(rows)

    def ciphertext(self, residues: Tensor) -> Any:
        """SEAL's ciphertext of [limbs, components * n], scale 1."""
        limbs = residues.shape[0]
        words = residues.view(limbs, -1, self.n).transpose(0, 1).contiguous().numpy().astype("<u8").tobytes()
        sample = sealapi.Ciphertext(self.context)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "seal"
            sample.save(str(path))
            magic, size, major, minor, _, reserved, _ = HEADER.unpack_from(path.read_bytes())

            def framed(body: bytes) -> bytes:
                return HEADER.pack(magic, size, major, minor, 0, reserved, HEADER.size + len(body)) + body

            components = residues.shape[1] // self.n
            fields = FIELDS.pack(*self.parms_ids[limbs], 1, components, self.n, limbs, 1.0, 1)
            path.write_bytes(framed(fields + framed(struct.pack("<Q", len(words) // 8) + words)))
            sample.load(self.context, str(path))
        return sample

    @staticmethod
    def residues(ciphertext: Any) -> Tensor:
        """[limbs, components * n]"""
        words = Stream.of(ciphertext).ciphertext()
        return torch.from_numpy(words).transpose(0, 1).reshape(words.shape[1], -1)
