"""The evaluation key (B, a, Delta). Apart from :mod:`mcfhe.modular.keys`, so that a server loads no secret-key code."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

import numpy as np

from mcfhe.container import Container, TensorField, pack, parse_hex, parse_int, read_file, unpack, write_file
from mcfhe.errors import FormatError, MismatchError, ParameterError
from mcfhe.modular.params import MAX_AMPLIFICATION, MAX_LIMBS, MAX_SCALE, Moduli, integer

# The tensor and the metadata fields that EvaluationKey.from_container reads.
MODULI_FIELD = TensorField("I32", ((1, MAX_LIMBS),))
KEY_METADATA = ("amplification", "scale", "key_id")
_KIND = "evaluation-key"


@dataclass(frozen=True, slots=True, repr=False)
class EvaluationKey:
    """What the server needs of a key and no more: the modular basis, the amplification a and the scale Delta."""

    moduli: Moduli
    amplification: int
    scale: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "moduli", Moduli(self.moduli))
        integer("amplification", self.amplification, 1, MAX_AMPLIFICATION)
        integer("scale", self.scale, 1, MAX_SCALE)
        self.moduli.require_coprime(self.amplification, self.scale)

    def __repr__(self) -> str:
        return f"EvaluationKey(limbs={len(self.moduli)}, bits={self.moduli.bits}, key_id={self.key_id[:12]})"

    @property
    def key_id(self) -> str:
        """SHA-256, 64 hex digits, over the public values of this key: nothing of WZ enters it."""
        state = hashlib.sha256(b"mcfhe/evaluation-key/1\0")
        state.update(np.array([self.amplification, self.scale, *self.moduli], "<u8").tobytes())
        return state.hexdigest()

    @property
    def nbytes(self) -> int:
        """What its residues take, packed."""
        return 4 * len(self.moduli)

    def metadata(self) -> dict[str, str]:
        """The container metadata that :meth:`from_container` reads back, beside the tensor ``moduli``."""
        return {"amplification": str(self.amplification), "scale": str(self.scale), "key_id": self.key_id}

    @staticmethod
    def from_container(container: Container) -> EvaluationKey:
        """From any container with the tensor ``moduli`` and this key's metadata. FormatError if out of range."""
        try:
            key = EvaluationKey(
                Moduli(container.tensors["moduli"].tolist()),
                parse_int(container, "amplification", 1, MAX_AMPLIFICATION),
                parse_int(container, "scale", 1, MAX_SCALE),
            )
        except ParameterError as error:
            raise FormatError(f"{container.kind}: {error}") from None
        if (key_id := parse_hex(container, "key_id", 64)) != key.key_id:
            raise MismatchError(f"{container.kind}: key_id {key_id[:12]} but its values give {key.key_id[:12]}")
        return key

    def to_bytes(self) -> bytes:
        return pack(_KIND, {"moduli": self.moduli.as_array().astype("<i4")}, self.metadata())

    @staticmethod
    def from_bytes(data: bytes) -> EvaluationKey:
        """FormatError if damaged; SecretFieldError if ``data`` is a secret key."""
        return EvaluationKey.from_container(unpack(data, _KIND, {"moduli": MODULI_FIELD}, KEY_METADATA))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write atomically; McfheError if the file cannot be written."""
        write_file(path, self.to_bytes())

    @staticmethod
    def load(path: str | os.PathLike[str]) -> EvaluationKey:
        """Read what :meth:`save` wrote."""
        return EvaluationKey.from_bytes(read_file(path, 1 << 24))
