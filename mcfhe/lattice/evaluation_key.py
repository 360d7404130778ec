"""The evaluation key of the lattice scheme: a ring and a relinearisation key. Public; no secret-key code here."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from mcfhe.container import Container, TensorField, pack, parse_hex, parse_int, read_file, unpack, write_file
from mcfhe.errors import FormatError, MismatchError
from mcfhe.graph.steps import Ring

MAX_LIMBS = 64
MAX_DEGREE = 1 << 15
_KIND = "lattice-evaluation-key"
KEY_FIELDS = {
    "relinearisation_key": TensorField("I32", ((1, MAX_LIMBS), (2, 2), (2, MAX_LIMBS + 1), (1, MAX_DEGREE))),
    "moduli": TensorField("I32", ((2, MAX_LIMBS + 1),)),
}
KEY_METADATA = ("degree", "key_id")


@dataclass(frozen=True, eq=False)
class LatticeEvaluationKey:
    """What a server needs of a key: int32 ``[D, 2, D + 1, n]`` in NTT form, canonical, the special limb last.

    Two keys are the same when their ids are: SHA-256 over ring and key.
    """

    ring: Ring
    keys: torch.Tensor

    def __post_init__(self) -> None:
        digits = len(self.ring.moduli)
        expected = (digits, 2, digits + 1, self.ring.degree)
        if self.keys.dtype != torch.int32 or tuple(self.keys.shape) != expected:
            raise FormatError(
                f"relinearisation key: {self.keys.dtype} {list(self.keys.shape)}, int32 {list(expected)} expected"
            )
        for limb, q in enumerate((*self.ring.moduli, self.ring.special)):
            rows = self.keys[:, :, limb]
            if int(rows.min()) < 0 or int(rows.max()) >= q:
                raise FormatError(f"relinearisation key: a residue outside 0 <= r < {q}")

    def __repr__(self) -> str:
        return f"LatticeEvaluationKey(n={self.ring.degree}, limbs={len(self.ring.moduli)}, key_id={self.key_id[:12]})"

    @cached_property
    def key_id(self) -> str:
        """SHA-256, 64 hex digits, over public values only."""
        state = hashlib.sha256(b"mcfhe/lattice-evaluation-key/1\0")
        state.update(np.array([self.ring.degree, *self.ring.moduli, self.ring.special], "<u8").tobytes())
        state.update(np.ascontiguousarray(self.keys.numpy(), "<i4").data)
        return state.hexdigest()

    @property
    def nbytes(self) -> int:
        """What its residues take, packed."""
        return 4 * self.keys.numel()

    def tensors(self) -> dict[str, np.ndarray]:
        """What :meth:`from_container` reads, beside :meth:`metadata`."""
        moduli = np.array([*self.ring.moduli, self.ring.special], "<i4")
        return {"relinearisation_key": self.keys.numpy(), "moduli": moduli}

    def metadata(self) -> dict[str, str]:
        return {"degree": str(self.ring.degree), "key_id": self.key_id}

    @staticmethod
    def from_container(container: Container) -> LatticeEvaluationKey:
        """FormatError if damaged or out of range, MismatchError if the id is not that of the values."""
        *moduli, special = container.tensors["moduli"].tolist()
        ring = Ring(parse_int(container, "degree", 1, MAX_DEGREE), tuple(moduli), special)
        if min(*moduli, special) < 2:
            raise FormatError(f"{container.kind}: moduli must be 2 or more")
        key = LatticeEvaluationKey(ring, torch.from_numpy(container.tensors["relinearisation_key"].copy()))
        if (key_id := parse_hex(container, "key_id", 64)) != key.key_id:
            raise MismatchError(f"{container.kind}: key_id {key_id[:12]} but its values give {key.key_id[:12]}")
        return key

    def to_bytes(self) -> bytes:
        return pack(_KIND, self.tensors(), self.metadata())

    @staticmethod
    def from_bytes(data: bytes) -> LatticeEvaluationKey:
        """FormatError if damaged; SecretFieldError if ``data`` holds secrets."""
        return LatticeEvaluationKey.from_container(unpack(data, _KIND, KEY_FIELDS, KEY_METADATA))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write atomically; McfheError if the file cannot be written."""
        write_file(path, self.to_bytes())

    @staticmethod
    def load(path: str | os.PathLike[str]) -> LatticeEvaluationKey:
        return LatticeEvaluationKey.from_bytes(read_file(path, 1 << 30))
