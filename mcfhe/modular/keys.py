"""Keys of the modular scheme: the secret key (B, WZ, a, Delta) and the evaluation key (B, a, Delta)."""

from __future__ import annotations

import bisect
import math
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mcfhe.container import Container, TensorField, pack, parse_choice, parse_int, unpack
from mcfhe.errors import CapacityError, FormatError, ParameterError
from mcfhe.keyfile import opened_secret, passphrase_bytes, save_secret, scrypt
from mcfhe.modular.csprng import RandomStream
from mcfhe.modular.evaluation_key import KEY_METADATA, MODULI_FIELD, EvaluationKey
from mcfhe.modular.params import MAX_AMPLIFICATION, MAX_LANES, MAX_LIMBS, MAX_SCALE, Moduli, draw_primes, integer
from mcfhe.spec import DEFAULT_PROFILE, PROFILES
from mcfhe.wiping import wipe

__all__ = ["DERIVATIONS", "EvaluationKey", "SecretKey"]

# How B and WZ came about: by the operating system's CSPRNG, from a user key by HKDF, or by scrypt, then HKDF.
DERIVATIONS = ("random", "hkdf", "scrypt+hkdf")
# User keys of fewer bytes than this are stretched like a passphrase: they can hold too little entropy for HKDF alone.
_MIN_KEY_BYTES = 16
_MAX_SALT_BYTES = 64

_SECRET_KIND = "secret-key"
_SECRET_METADATA = (*KEY_METADATA, "lanes", "profile", "noise", "redundancy", "derivation")
_SECRET_FIELDS = {
    "moduli": MODULI_FIELD,
    "positions": TensorField("I32", ((1, MAX_LIMBS),)),
    "salt": TensorField("U8", ((1, _MAX_SALT_BYTES),), optional=True),
}


class _Positions:
    """The field ``positions``: a tuple to whoever reads it, kept in an array that can be overwritten."""

    def __get__(self, key: SecretKey | None, owner: type | None = None) -> tuple[int, ...]:
        if key is None:
            raise AttributeError("positions")  # so the field has no default
        return tuple(key.lane_positions.tolist())

    def __set__(self, key: SecretKey, positions: Sequence[int]) -> None:
        given = np.asarray(positions)
        # A copy of its own: the caller's may be overwritten. What is not lane numbers is refused by __post_init__.
        own = given.astype(np.int64) if given.dtype.kind in "iu" and given.ndim == 1 else np.empty(0, np.int64)
        object.__setattr__(key, "_positions", own)


@dataclass(frozen=True, repr=False)
class SecretKey:
    """The client's key.

    ``positions`` is WZ: w_p in 0..lanes-1 is the lane of limb p that holds the true residue. ``noise`` is the
    exclusive upper end of e (0 or 1: none). ``redundancy`` limbs are there for error correction. ``salt`` and
    ``derivation`` tell how B and WZ follow from a user key, if they do.

    :meth:`close` overwrites the positions; as a context manager the key does so at the end of the block. Python allows
    no more than that: integers made of them (reading ``positions`` makes new ones) and what the interpreter or a
    library copied last until their memory is used again.
    """

    evaluation_key: EvaluationKey
    if TYPE_CHECKING:
        positions: tuple[int, ...]
    else:
        positions: tuple[int, ...] = _Positions()
    lanes: int
    profile: str
    noise: int
    redundancy: int = 0
    derivation: str = "random"
    salt: bytes | None = None

    def __post_init__(self) -> None:
        integer("lanes", self.lanes, 1, MAX_LANES)
        if self.profile not in PROFILES:
            raise ParameterError(f"profile {self.profile!r}: choose one of {', '.join(PROFILES)}")
        # e < a / 2 keeps a * PT recoverable by rounding, and every bound is proved for it.
        integer("noise", self.noise, 0, self.amplification // 2)
        integer("redundancy", self.redundancy, 0, len(self.moduli) - 1)
        if self.derivation not in DERIVATIONS or (self.derivation == "random") != (self.salt is None):
            raise ParameterError("derivation and salt do not go together: a derived key has both, a random one neither")
        if self.salt is not None and not 1 <= len(self.salt) <= _MAX_SALT_BYTES:
            raise ParameterError(f"salt: {len(self.salt)} bytes, 1..{_MAX_SALT_BYTES} expected")
        # The message must not show a position, so the generic range check is not used here.
        found = self.__dict__["_positions"]
        if len(found) != len(self.moduli) or found.min() < 0 or found.max() >= self.lanes:
            raise ParameterError(f"positions: {len(self.moduli)} lane numbers in 0..{self.lanes - 1} expected")

    @property
    def lane_positions(self) -> np.ndarray:
        """WZ, int64 ``[N]``: the key's own memory, which :meth:`close` overwrites. ParameterError once it is closed."""
        if self.closed:
            raise ParameterError("secret key: closed; load or generate it again")
        positions: np.ndarray = self.__dict__["_positions"]
        return positions

    @property
    def closed(self) -> bool:
        return len(self.__dict__["_positions"]) == 0

    def close(self) -> None:
        """Overwrite the lane positions. What needs them raises ParameterError from then on; may be called again."""
        wipe(self.__dict__["_positions"])
        object.__setattr__(self, "_positions", np.empty(0, np.int64))

    def __enter__(self) -> SecretKey:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> str:
        raise TypeError("SecretKey is not pickled: use save, which sets the file's mode and takes a passphrase")

    @property
    def moduli(self) -> Moduli:
        return self.evaluation_key.moduli

    @property
    def amplification(self) -> int:
        return self.evaluation_key.amplification

    @property
    def scale(self) -> int:
        return self.evaluation_key.scale

    @property
    def key_id(self) -> str:
        """The evaluation key's id: public, and nothing of WZ enters it."""
        return self.evaluation_key.key_id

    def __repr__(self) -> str:
        return (
            f"SecretKey(limbs={len(self.moduli)}, lanes={self.lanes}, profile={self.profile!r}, "
            f"redundancy={self.redundancy}, key_id={self.key_id[:12]})"
        )

    @staticmethod
    def generate(
        *,
        amplification: int,
        scale: int,
        required_product: int,
        lanes: int = 4,
        profile: str = DEFAULT_PROFILE,
        noise: int = 0,
        redundancy: int = 0,
        modulus_bits: int = 30,
        user_key: bytes | bytearray | str | None = None,
        salt: bytes | None = None,
        moduli: Sequence[int] | None = None,
    ) -> SecretKey:
        """Draw a key.

        The basis grows by distinct primes of ``modulus_bits`` bits until the product of all but the
        ``redundancy`` largest exceeds ``required_product``; ``moduli`` gives the basis instead. With
        ``user_key`` (bytes: HKDF-SHA256; a passphrase, or fewer than 16 bytes: scrypt, then HKDF-SHA256) the
        same user key, salt and parameters give the same B and WZ; a new salt of 16 bytes is drawn if none is
        given. CapacityError carries both bit counts when the basis is, or would stay, too small.
        """
        integer("lanes", lanes, 1, MAX_LANES)
        integer("amplification", amplification, 1, MAX_AMPLIFICATION)
        integer("scale", scale, 1, MAX_SCALE)
        integer("redundancy", redundancy, 0, MAX_LIMBS - 1)
        derivation = "random"
        moduli_stream = positions_stream = RandomStream.from_os()
        if user_key is not None:
            salt = secrets.token_bytes(16) if salt is None else bytes(salt)
            derivation, secret = _stretch(user_key, salt)
            # With the parameters in the info, keys that differ in any of them share no prime and no position.
            info = f"lanes={lanes},bits={modulus_bits},a={amplification},scale={scale},redundancy={redundancy}".encode()
            moduli_stream = RandomStream.from_key(secret, salt, b"mcfhe/keygen/1/moduli/" + info)
            positions_stream = RandomStream.from_key(secret, salt, b"mcfhe/keygen/1/positions/" + info)
            wipe(secret)
        elif salt is not None:
            raise ParameterError("salt: only a key from user_key has one")
        if moduli is None:
            basis = _draw_basis(moduli_stream, modulus_bits, amplification * scale, required_product, redundancy)
        else:
            basis = Moduli(moduli)
            basis.require_capacity(required_product, redundancy)
        positions: Any = positions_stream.uniform_below(lanes, (len(basis),))
        key = EvaluationKey(basis, amplification, scale)
        try:
            return SecretKey(key, positions, lanes, profile, noise, redundancy, derivation, salt)
        finally:
            wipe(positions)

    def to_parts(self) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Tensors and metadata of a secret container."""
        tensors = {
            "moduli": self.moduli.as_array().astype("<i4"),
            "positions": self.lane_positions.astype("<i4"),
        }
        if self.salt is not None:
            tensors["salt"] = np.frombuffer(self.salt, np.uint8)
        numbers = {"lanes": self.lanes, "noise": self.noise, "redundancy": self.redundancy}
        metadata = self.evaluation_key.metadata() | {name: str(value) for name, value in numbers.items()}
        return tensors, {**metadata, "profile": self.profile, "derivation": self.derivation}

    @staticmethod
    def from_container(container: Container) -> SecretKey:
        """Inverse of :meth:`to_parts`; FormatError names the field that is out of range."""
        salt = container.tensors.get("salt")
        positions: Any = container.tensors["positions"]
        try:
            return SecretKey(
                evaluation_key=EvaluationKey.from_container(container),
                positions=positions,
                lanes=parse_int(container, "lanes", 1, MAX_LANES),
                profile=parse_choice(container, "profile", PROFILES),
                noise=parse_int(container, "noise", 0, MAX_AMPLIFICATION),
                redundancy=parse_int(container, "redundancy", 0, MAX_LIMBS - 1),
                derivation=parse_choice(container, "derivation", DERIVATIONS),
                salt=None if salt is None else salt.tobytes(),
            )
        except ParameterError as error:
            raise FormatError(f"{container.kind}: {error}") from None

    def to_bytes(self) -> bytes:
        """The secret container itself, not encrypted: for storage inside another secret container."""
        tensors, metadata = self.to_parts()
        try:
            return pack(_SECRET_KIND, tensors, metadata, allow_secret=True)
        finally:
            wipe(tensors["positions"])

    @staticmethod
    def from_bytes(data: bytes | bytearray) -> SecretKey:
        """Inverse of :meth:`to_bytes`."""
        return SecretKey.from_container(unpack(data, _SECRET_KIND, _SECRET_FIELDS, _SECRET_METADATA, allow_secret=True))

    def save(self, path: str | os.PathLike[str], passphrase: str | bytes | None = None) -> None:
        """Write atomically with mode 0600; with a passphrase the content is encrypted (scrypt, AES-256-GCM)."""
        tensors, metadata = self.to_parts()
        try:
            save_secret(path, _SECRET_KIND, tensors, metadata, passphrase)
        finally:
            wipe(tensors["positions"])

    @staticmethod
    def load(path: str | os.PathLike[str], passphrase: str | bytes | None = None) -> SecretKey:
        """Read what :meth:`save` wrote; one FormatError for a wrong passphrase or an altered file."""
        with opened_secret(path, _SECRET_KIND, _SECRET_FIELDS, _SECRET_METADATA, passphrase) as content:
            return SecretKey.from_container(content)


def _stretch(user_key: bytes | bytearray | str, salt: bytes) -> tuple[str, bytearray]:
    """(derivation, keying material for HKDF, in memory of its own)."""
    if not isinstance(user_key, bytes | bytearray | str):
        raise ParameterError(f"user_key: bytes or str expected, not {type(user_key).__name__}")
    if not user_key:
        raise ParameterError("user_key: empty; give 32 random bytes or a passphrase")
    if not 1 <= len(salt) <= _MAX_SALT_BYTES:
        raise ParameterError(f"salt: {len(salt)} bytes, 1..{_MAX_SALT_BYTES} expected")
    if isinstance(user_key, str) or len(user_key) < _MIN_KEY_BYTES:
        return "scrypt+hkdf", scrypt(passphrase_bytes(user_key), salt)
    return "hkdf", bytearray(user_key)


def _draw_basis(stream: RandomStream, bits: int, coprime_to: int, required_product: int, redundancy: int) -> Moduli:
    """Primes in drawing order until all but the ``redundancy`` largest multiply to more than ``required_product``."""
    basis: list[int] = []
    ascending: list[int] = []
    held = 1
    for prime in draw_primes(stream, bits, coprime_to):
        basis.append(prime)
        bisect.insort(ascending, prime)
        held = math.prod(ascending[: max(0, len(basis) - redundancy)])
        if len(basis) > redundancy and held > required_product:
            return Moduli(basis)
        if len(basis) == MAX_LIMBS:
            break
    raise CapacityError(
        f"modulus_bits = {bits}, redundancy = {redundancy}: the {len(basis)} limbs there can be hold "
        f"{held.bit_length()} bits, the program needs {required_product.bit_length()} bits; "
        "raise modulus_bits or lower redundancy"
    )
