"""Encryption of one pixel of a batch of images: one ciphertext, one image a slot. Workers load this: no torch here."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from mcfhe.errors import FormatError
from mcfhe.graph.steps import Ring
from mcfhe.lattice.seal import Seal

if TYPE_CHECKING:
    from mcfhe.lattice.spec import LatticeSpec

Encryption = Literal["seeded", "symmetric", "public"]  # the first two are under the secret key

Job = tuple[int, np.ndarray]  # channel, uint8 pixels of the batch
Encrypted = tuple[np.ndarray, bytes]  # uint32 [L, n] and a seed, or uint32 [L, 2 * n] and none


@dataclass(frozen=True)
class Parameters:
    """What encryption needs beside the key. ``table``: normalised pixels of each channel, times 2^scale_bits."""

    moduli: tuple[int, ...]
    special: int
    degree: int
    table: tuple[tuple[int, ...], ...]
    scale_bits: int
    input_bits: int
    encryption: Encryption

    @staticmethod
    def of(spec: LatticeSpec, encryption: Encryption) -> Parameters:
        """Those of a program's clients."""
        return Parameters(
            moduli=spec.ring.moduli,
            special=spec.ring.special,
            degree=spec.ring.degree,
            table=spec.table,
            scale_bits=spec.scale_bits,
            input_bits=spec.input_bits,
            encryption=encryption,
        )

    @staticmethod
    def from_json(text: str) -> Parameters:
        body = json.loads(text)
        body["moduli"], body["table"] = tuple(body["moduli"]), tuple(map(tuple, body["table"]))
        return Parameters(**body)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @property
    def seeded(self) -> bool:
        return self.encryption == "seeded"

    @property
    def words(self) -> int:
        """Residues of a limb of what one ciphertext becomes."""
        return self.degree if self.seeded else 2 * self.degree

    def ring(self) -> Ring:
        return Ring(self.degree, self.moduli, self.special)


class PixelEncryptor:
    """Turns one pixel of a batch of images into a ciphertext, one image a slot."""

    def __init__(self, parameters: Parameters, seal: Seal, key: bytes | bytearray) -> None:
        """``key``: SEAL's serialised secret key or, for public-key encryption, residues as :func:`public_key_bytes`
        gives them. FormatError for another."""
        self._parameters, self._seal = parameters, seal
        if parameters.encryption == "public":
            self._encryptor = seal.public_encryptor(_public_key(key, parameters.ring()))
        else:
            self._encryptor = seal.encryptor(seal.secret(key))
        self._table = np.array(parameters.table, np.float64) / 2.0**parameters.scale_bits
        self._scale = 2.0**parameters.input_bits
        self._slots = np.zeros(parameters.degree // 2)

    def encrypt(self, channel: int, pixels: np.ndarray) -> Encrypted:
        """``pixels``: uint8 of every image, at most n / 2; the other slots hold 0."""
        self._slots[: len(pixels)] = self._table[channel, pixels]
        self._slots[len(pixels) :] = 0.0
        seal, encryptor, slots, scale = self._seal, self._encryptor, self._slots, self._scale
        if self._parameters.encryption == "seeded":
            return seal.encrypt_seeded(encryptor, slots, scale)
        if self._parameters.encryption == "public":
            return seal.encrypt_public(encryptor, slots, scale), b""
        return seal.encrypt(encryptor, slots, scale), b""


def public_key_bytes(residues: np.ndarray) -> bytes:
    """Residues ``[2, D + 1, n]`` as :class:`PixelEncryptor` takes them."""
    return residues.astype("<u4").tobytes()


def _public_key(data: bytes | bytearray, ring: Ring) -> np.ndarray:
    shape = 2, len(ring.moduli) + 1, ring.degree
    if len(data) != 4 * shape[0] * shape[1] * shape[2]:
        raise FormatError(f"public key: {len(data)} bytes are no residues of shape {list(shape)}")
    return np.frombuffer(data, "<u4").reshape(shape)
