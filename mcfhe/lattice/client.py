"""The client of the lattice scheme: holds a SEAL secret key, encrypts images, decrypts scores.

Scores are approximate: decrypted ones differ from the quantised network's by noise, which depends on the secret key.
Whoever sees the ciphertexts and gets decrypted scores, even of honest evaluations and without choosing anything, may
recover the key (IND-CPA-D: B. Li, D. Micciancio, On the Security of Homomorphic Encryption on Approximate Numbers,
EUROCRYPT 2021). Do not hand scores back to the server; whoever must publish something should publish labels, or scores
rounded far above the noise, which leak much less but have no proof here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from mcfhe.container import TensorField
from mcfhe.errors import DecryptionError, FormatError, MismatchError, ParameterError
from mcfhe.keyfile import opened_secret, save_secret
from mcfhe.lattice.encryption import encrypt_images
from mcfhe.lattice.evaluation_key import LatticeEvaluationKey
from mcfhe.lattice.public_key import PublicKey
from mcfhe.lattice.seal import Seal
from mcfhe.lattice.spec import LatticeSpec
from mcfhe.lattice.wire import LatticeRequest, LatticeResponse
from mcfhe.staged.spec import Levels
from mcfhe.wiping import wipe
from mcfhe.wire import check_kind, check_match

_KIND = "lattice-client"
KEY_PARTS = {
    "secret_key": TensorField("U8", ((1, 1 << 26),)),
    "relinearisation_key": TensorField("I32", ((1, 64), (2, 2), (2, 65), (1, 1 << 15))),
}
_FIELDS = KEY_PARTS | {"spec": TensorField("U8", ((1, 1 << 26),))}


class LatticeClient:
    """A secret key and its evaluation key, with the spec of the program they are for."""

    scheme = "lattice"

    def __init__(self, spec: LatticeSpec, secret: bytearray, evaluation_key: LatticeEvaluationKey) -> None:
        """``secret``: SEAL's serialised secret key, kept and overwritten by :meth:`close`.

        FormatError or MismatchError if parts are of different rings.
        """
        if evaluation_key.ring != spec.ring:
            raise MismatchError("evaluation key: its ring is not the client spec's; generate a key from this spec")
        self.spec = spec
        self.evaluation_key = evaluation_key
        self._seal = Seal(spec.ring)
        self._serialised = secret
        self._opened = self._seal.secret(secret)

    @classmethod
    def generate(cls, spec: LatticeSpec) -> LatticeClient:
        """Draw a key for ``spec`` with SEAL: a ternary secret and the relinearisation key of every level."""
        seal = Seal(spec.ring)
        secret = bytearray(seal.generate_secret())
        keys = torch.from_numpy(seal.relinearisation_keys(seal.secret(secret)).astype(np.int32))
        return cls(spec, secret, LatticeEvaluationKey(spec.ring, keys))

    def __repr__(self) -> str:
        return f"LatticeClient(program_id={self.spec.program_id[:12]}, evaluation_key={self.evaluation_key!r})"

    def close(self) -> None:
        """Overwrite the serialised secret key and let go of SEAL's, which clears its own memory. Idempotent."""
        wipe(self._serialised)
        self._opened = None

    def __enter__(self) -> LatticeClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _secret(self) -> Any:
        if self._opened is None:
            raise ParameterError("client: closed, its secret key was overwritten; load it again")
        return self._opened

    def encrypt(
        self,
        images: Any,
        progress: Callable[[float], None] | None = None,
        *,
        seeded: bool = True,
        workers: int | None = None,
    ) -> LatticeRequest:
        """Encrypt uint8 images ``[batch, C, H, W]``, 1 <= batch <= n / 2: one ciphertext a pixel, one image a slot.

        ``seeded``: half the bytes, see :class:`mcfhe.lattice.wire.LatticeRequest`; the server expands the other half.
        ``workers``: processes that encrypt; 1 is this one alone, by default as many as torch has threads, if there is
        enough for all. They get the secret key over a private socket and have ended when this returns.
        ImageError for another shape or dtype, or more images than slots; ParameterError for fewer workers than 1;
        WorkerError if one ends before it is done. ``progress`` gets the finished share.
        """
        _ = self._secret  # refuses after close()
        return encrypt_images(
            images,
            self.spec,
            self.evaluation_key,
            self._serialised,
            "seeded" if seeded else "symmetric",
            workers,
            progress,
        )

    def public_key(self) -> PublicKey:
        """A fresh public key: who has it encrypts for this client. Every call draws another, all are of this key."""
        residues = torch.from_numpy(self._seal.public_key(self._secret).astype(np.int32))
        return PublicKey(self.spec, self.evaluation_key, residues)

    def decrypt(self, response: LatticeResponse, *, request_id: str | None = None) -> torch.Tensor:
        """Scores, float64 ``[batch, labels]``.

        Whoever made the response must not get them back: scores of a response that a server made up give it the secret
        key, and the noise of honest ones tells of it (SECURITY.md).

        MismatchError if the response is of another program, key, level or (where given) request; FormatError for
        residues that are not canonical; DecryptionError for a score beyond the proved bound, which no image has.
        """
        spec = self.spec
        check_kind("response", response, LatticeResponse)
        check_match("response", "program_id", response.program_id, spec.program_id)
        check_match("response", "key_id", response.key_id, self.evaluation_key.key_id)
        if request_id is not None:
            check_match("response", "request_id", response.request_id, request_id)
        expected = (spec.output_limbs, len(spec.labels), 2 * spec.ring.degree)
        if tuple(response.residues.shape) != expected or response.batch > spec.slots:
            raise MismatchError(
                f"response: residues of shape {list(response.residues.shape)} for {response.batch} images, "
                f"{list(expected)} for at most {spec.slots} expected: another level, ring or number of labels"
            )
        residues = response.residues.cpu().numpy()
        scores = np.empty((response.batch, len(spec.labels)))
        for label in range(len(spec.labels)):
            slots = self._seal.decrypt(self._secret, residues[:, label], float(spec.output_scale))
            scores[:, label] = slots[: response.batch]
        # noise is far below the margin of one bit that every bound has
        if not (np.abs(scores) <= 2.0 ** (spec.output_bound_bits + 1)).all():
            raise DecryptionError(
                f"scores: {np.abs(scores).max():.3g} is beyond the proved bound 2^{spec.output_bound_bits:.1f}; "
                "the response is damaged or was made with another key"
            )
        return torch.from_numpy(scores)

    def decrypt_levels(self, response: LatticeResponse, levels: Levels, *, request_id: str | None = None) -> np.ndarray:
        """The nearest levels of the noisy scores, uint8 ``[batch, C, H, W]``: pixels of a next stage
        (:mod:`mcfhe.staged`). Errors as :meth:`decrypt`."""
        return levels.of_noisy(self.decrypt(response, request_id=request_id).numpy())

    def for_spec(self, spec: LatticeSpec) -> LatticeClient:
        """The same key for another program of the same ring; MismatchError for another ring. Either is closed by
        itself."""
        _ = self._secret  # refuses after close()
        return LatticeClient(spec, bytearray(self._serialised), self.evaluation_key)

    def save(self, path: str | os.PathLike[str], passphrase: str | bytes | None = None) -> None:
        """Write keys and spec to one file, mode 0600, atomically; encrypted when a passphrase is given."""
        tensors = self.parts() | {"spec": np.frombuffer(self.spec.to_json().encode(), np.uint8)}
        save_secret(path, _KIND, tensors, {"program_id": self.spec.program_id}, passphrase)

    def parts(self) -> dict[str, np.ndarray]:
        """The keys as the tensors of a file, :data:`KEY_PARTS`; secret, and views of what :meth:`close` overwrites."""
        _ = self._secret  # refuses after close()
        secret = np.frombuffer(self._serialised, np.uint8)
        return {"secret_key": secret, "relinearisation_key": self.evaluation_key.keys.numpy()}

    @classmethod
    def from_parts(cls, spec: LatticeSpec, parts: Mapping[str, np.ndarray]) -> LatticeClient:
        """The inverse of :meth:`parts`, copied; FormatError or MismatchError if they are damaged or of another ring."""
        if set(parts) != set(KEY_PARTS):
            raise FormatError(f"client: {' and '.join(KEY_PARTS)} expected, not {', '.join(sorted(parts))}")
        keys = torch.from_numpy(parts["relinearisation_key"].copy())
        return cls(spec, bytearray(parts["secret_key"]), LatticeEvaluationKey(spec.ring, keys))

    @classmethod
    def load(cls, path: str | os.PathLike[str], passphrase: str | bytes | None = None) -> LatticeClient:
        """Read what :meth:`save` wrote; one FormatError for a wrong passphrase or an altered file."""
        with opened_secret(path, _KIND, _FIELDS, ("program_id",), passphrase) as content:
            try:
                text = content.tensors["spec"].tobytes().decode()
            except UnicodeDecodeError:
                raise FormatError(f"{path}: the client spec is not UTF-8") from None
            spec = LatticeSpec.from_json(text)
            check_match(str(path), "program_id", content.metadata["program_id"], spec.program_id)
            return cls.from_parts(spec, {name: content.tensors[name] for name in KEY_PARTS})
