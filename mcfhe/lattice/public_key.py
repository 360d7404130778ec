"""The public key of the lattice scheme: who has it encrypts images that only the owner of the secret key decrypts.

Anybody who has the file may encrypt, so a request proves nothing about who made it. And whoever can put another file
in its place reads what is encrypted under that: compare :attr:`PublicKey.fingerprint` with the owner's over a
channel that you trust.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from mcfhe.container import Stored, TensorField, as_bytes, pack, parse_hex, unpack
from mcfhe.errors import FormatError, MismatchError
from mcfhe.lattice.encryption import encrypt_images
from mcfhe.lattice.evaluation_key import KEY_FIELDS, KEY_METADATA, MAX_DEGREE, MAX_LIMBS, LatticeEvaluationKey
from mcfhe.lattice.pixels import public_key_bytes
from mcfhe.lattice.spec import LatticeSpec
from mcfhe.lattice.wire import LatticeRequest
from mcfhe.wire import check_match

PUBLIC_KEY_KIND = "lattice-public-key"
_FIELDS = KEY_FIELDS | {
    "public_key": TensorField("I32", ((2, 2), (2, MAX_LIMBS + 1), (1, MAX_DEGREE))),
    "spec": TensorField("U8", ((1, 1 << 26),)),
}
_METADATA = (*KEY_METADATA, "program_id", "fingerprint")


@dataclass(frozen=True, eq=False)
class PublicKey(Stored):
    """What it takes to encrypt for the owner of a key: no secret is in it.

    residues: int32 ``[2, D + 1, n]``, NTT form, canonical, the special limb last: an encryption of 0 under the secret
    key, b = -(a s + e) and a. FormatError for another shape or range, MismatchError if parts are of different rings.
    """

    spec: LatticeSpec
    evaluation_key: LatticeEvaluationKey
    residues: torch.Tensor

    def __post_init__(self) -> None:
        ring = self.spec.ring
        if self.evaluation_key.ring != ring:
            raise MismatchError("public key: its evaluation key is of another ring than its client spec")
        expected = 2, len(ring.moduli) + 1, ring.degree
        if self.residues.dtype != torch.int32 or tuple(self.residues.shape) != expected:
            raise FormatError(
                f"public key: {self.residues.dtype} {list(self.residues.shape)}, int32 {list(expected)} expected"
            )
        for limb, q in enumerate((*ring.moduli, ring.special)):
            rows = self.residues[:, limb]
            if int(rows.min()) < 0 or int(rows.max()) >= q:
                raise FormatError(f"public key: a residue outside 0 <= r < {q} in limb {limb}")
            # b = -(a s + e) is an error alone where a is 0, and c_0 = m + b u + e_0 then the plaintext with a little
            # noise; where b is 0 itself that is plain to anybody
            for name, row in zip(("first", "second"), rows, strict=True):
                if not bool(row.any()):
                    raise FormatError(f"public key: its {name} component is 0 in limb {limb}; it would hide nothing")

    def __repr__(self) -> str:
        return (
            f"PublicKey(program_id={self.spec.program_id[:12]}, key_id={self.key_id[:12]}, "
            f"fingerprint={self.fingerprint[:16]})"
        )

    @property
    def key_id(self) -> str:
        """Of the owner's key: what requests carry, and responses come back with."""
        return self.evaluation_key.key_id

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, 64 hex digits, over all that encryption depends on: residues, evaluation key and client spec."""
        state = hashlib.sha256(b"mcfhe/lattice-public-key/1\0")
        state.update(bytes.fromhex(self.key_id))
        state.update(bytes.fromhex(self.spec.digest()))
        state.update(np.ascontiguousarray(self.residues.numpy(), "<i4").data)
        return state.hexdigest()

    def encrypt(
        self, images: Any, progress: Callable[[float], None] | None = None, *, workers: int | None = None
    ) -> LatticeRequest:
        """Encrypt uint8 images ``[batch, C, H, W]``, 1 <= batch <= n / 2, for the owner of the key.

        Twice the bytes of what the owner's own :meth:`mcfhe.lattice.client.LatticeClient.encrypt` gives: neither
        component can be drawn from a seed. Arguments and errors as there.
        """
        key = public_key_bytes(self.residues.numpy())
        return encrypt_images(images, self.spec, self.evaluation_key, key, "public", workers, progress)

    def to_bytes(self) -> bytes:
        tensors = {"public_key": self.residues.numpy(), "spec": np.frombuffer(self.spec.to_json().encode(), np.uint8)}
        metadata = {"program_id": self.spec.program_id, "fingerprint": self.fingerprint}
        return pack(PUBLIC_KEY_KIND, tensors | self.evaluation_key.tensors(), metadata | self.evaluation_key.metadata())

    @staticmethod
    def from_bytes(data: bytes | bytearray | memoryview) -> PublicKey:
        """Parse and validate every field; FormatError or MismatchError otherwise."""
        content = unpack(as_bytes(data), PUBLIC_KEY_KIND, _FIELDS, _METADATA)
        try:
            text = content.tensors["spec"].tobytes().decode()
        except UnicodeDecodeError:
            raise FormatError("public key: the client spec is not UTF-8") from None
        spec = LatticeSpec.from_json(text)
        residues = torch.from_numpy(content.tensors["public_key"].copy())
        key = PublicKey(spec, LatticeEvaluationKey.from_container(content), residues)
        check_match("public key", "program_id", parse_hex(content, "program_id", 64), spec.program_id)
        check_match("public key", "fingerprint", parse_hex(content, "fingerprint", 64), key.fingerprint)
        return key


__all__ = ["PUBLIC_KEY_KIND", "PublicKey"]
