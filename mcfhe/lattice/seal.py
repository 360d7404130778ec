"""The boundary to SEAL: keys, encoding, encryption and decryption of RNS-CKKS are its work, residues are ours.

Nothing else in mcfhe imports SEAL, which comes in the ``tenseal`` wheel (extra ``mcfhe[lattice]``). Its objects are
exchanged in SEAL's own serialised form (Microsoft SEAL 4.1, native/src/seal/{serialization,ciphertext,dynarray,
kswitchkeys}.cpp), all little-endian:

    header      u16 magic 0xA15E, u8 header size 16, u8 major, u8 minor, u8 compression (0 none, 2 zstd), u16 0,
                u64 size of header and (compressed) body
    ciphertext  u64[4] parms_id, u8 NTT form, u64 components, u64 n, u64 limbs, f64 scale, u64 correction factor, array
    array       header, u64 count, u64[count]: component, limb, coefficient
    seeded      the array holds the first component only; behind it header, u8 generator (1: BLAKE2Xb), 64 bytes of seed
    key switch  u64[4] parms_id, u64 number of keys, then for each u64 digits and as many ciphertexts with a header

SEAL reads and writes files; those are anonymous memory here, so that no secret touches a disk.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from mcfhe.errors import FormatError, ParameterError
from mcfhe.graph.steps import Ring
from mcfhe.lattice.security import SEED_BYTES, require_security

_HEADER = struct.Struct("<HBBBBHQ")
_CIPHERTEXT = struct.Struct("<32sBQQQdQ")
_MAGIC, _HEADER_SIZE, _NONE, _ZSTD = 0xA15E, 16, 0, 2
_BLAKE2XB = 1  # SEAL's prng_type


def _seal() -> Any:
    try:
        import tenseal.sealapi as sealapi
    except ImportError:
        raise ParameterError(
            "the lattice scheme's keys and ciphertexts need SEAL: pip install 'mcfhe[lattice]'"
        ) from None
    return sealapi


def available() -> bool:
    """Whether the ``tenseal`` wheel is installed."""
    try:
        _seal()
    except ParameterError:
        return False
    return True


@dataclass(frozen=True)
class Seal:
    """SEAL's context for one ring. ParameterError if the ring has less than 128 bits or SEAL refuses it."""

    ring: Ring

    def __post_init__(self) -> None:
        require_security(self.ring.degree, (*self.ring.moduli, self.ring.special))
        if not self.context.parameters_set():
            raise ParameterError(
                f"SEAL refuses n = {self.ring.degree} with moduli {self.ring.moduli} and {self.ring.special}: "
                f"{self.context.parameters_error_message()}"
            )

    @cached_property
    def context(self) -> Any:
        sealapi = _seal()
        parameters = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
        parameters.set_poly_modulus_degree(self.ring.degree)
        parameters.set_coeff_modulus([sealapi.Modulus(q) for q in (*self.ring.moduli, self.ring.special)])
        return sealapi.SEALContext(parameters, True, self._level)

    @property
    def _level(self) -> Any:
        """What SEAL checks parameters against."""
        return _seal().SEC_LEVEL_TYPE.TC128

    @cached_property
    def encoder(self) -> Any:
        return _seal().CKKSEncoder(self.context)

    @cached_property
    def levels(self) -> dict[int, tuple[int, int, int, int]]:
        """SEAL's parms_id by number of limbs."""
        found, data = {}, self.context.first_context_data()
        while data is not None:
            found[data.chain_index() + 1] = tuple(data.parms_id())
            data = data.next_context_data()
        return found

    def generate_secret(self) -> bytes:
        """A fresh ternary secret key from SEAL's generator, serialised."""
        return _saved(_seal().KeyGenerator(self.context).secret_key())

    def secret(self, data: bytes | bytearray) -> Any:
        """SEAL's secret key from its serialised form. FormatError if it is none of this ring."""
        return self._loaded(_seal().SecretKey(), data, "secret key")

    def relinearisation_keys(self, secret: Any) -> np.ndarray:
        """Fresh keys for one secret key: int64 ``[D, 2, D + 1, n]`` for D moduli, NTT form, the special limb last."""
        sealapi = _seal()
        keys = sealapi.RelinKeys()
        sealapi.KeyGenerator(self.context, secret).create_relin_keys(keys)
        return self.key_residues(keys)

    def key_residues(self, keys: Any) -> np.ndarray:
        """int64 ``[D, 2, D + 1, n]`` of SEAL's relinearisation keys."""
        reader = _Reader(_unwrapped(_saved(keys)))
        reader.take(32)
        if reader.number() != 1:
            raise FormatError("SEAL's relinearisation keys: more than one power of the secret")
        digits = [self._polynomials(_Reader(reader.nested()))[0] for _ in range(reader.number())]
        return np.stack(digits).astype(np.int64)

    def public_key(self, secret: Any) -> np.ndarray:
        """A fresh public key of a secret one: int64 ``[2, D + 1, n]`` for D moduli, NTT form, the special limb last."""
        sealapi = _seal()
        key = sealapi.PublicKey()
        sealapi.KeyGenerator(self.context, secret).create_public_key(key)
        return self._polynomials(_Reader(_unwrapped(_saved(key))))[0].astype(np.int64)

    def public_encryptor(self, residues: np.ndarray) -> Any:
        """Encrypts under a public key ``[2, D + 1, n]``. FormatError for residues that SEAL refuses."""
        data = self._as_ciphertext(residues, self._key_level, 1.0)
        return _seal().Encryptor(self.context, self._loaded(_seal().PublicKey(), data, "public key"))

    def encryptor(self, secret: Any) -> Any:
        """Encrypts under the secret key: less noise than under a public one, and ciphertexts may be seeded."""
        return _seal().Encryptor(self.context, secret)

    def encrypt(self, encryptor: Any, values: np.ndarray, scale: float) -> np.ndarray:
        """One ciphertext of float64 ``[n / 2]`` slots at ``scale``: residues uint32 ``[L, 2 * n]``, NTT form."""
        sealapi = _seal()
        plaintext, ciphertext = sealapi.Plaintext(), sealapi.Ciphertext()
        self.encoder.encode(values.tolist(), float(scale), plaintext)
        encryptor.encrypt_symmetric(plaintext, ciphertext)
        return self.residues(ciphertext)

    def encrypt_public(self, encryptor: Any, values: np.ndarray, scale: float) -> np.ndarray:
        """:meth:`encrypt` with an encryptor of :meth:`public_encryptor`."""
        sealapi = _seal()
        plaintext, ciphertext = sealapi.Plaintext(), sealapi.Ciphertext()
        self.encoder.encode(values.tolist(), float(scale), plaintext)
        encryptor.encrypt(plaintext, ciphertext)
        return self.residues(ciphertext)

    def encrypt_seeded(self, encryptor: Any, values: np.ndarray, scale: float) -> tuple[np.ndarray, bytes]:
        """The same with the second component as what it is drawn from: residues uint32 ``[L, n]`` and a public seed of
        64 bytes, which :func:`mcfhe.ops.expand_uniform` expands."""
        plaintext = _seal().Plaintext()
        self.encoder.encode(values.tolist(), float(scale), plaintext)
        return self.seeded_residues(_saved(encryptor.encrypt_symmetric(plaintext)))

    def seeded_residues(self, data: bytes) -> tuple[np.ndarray, bytes]:
        """First component uint32 ``[limbs, n]`` and seed of a serialised seeded ciphertext."""
        reader = _Reader(_unwrapped(data))
        _, ntt, components, degree, limbs, _, _ = _CIPHERTEXT.unpack(reader.take(_CIPHERTEXT.size))
        array = _Reader(reader.nested())
        if (ntt, components, degree) != (1, 2, self.ring.degree) or array.number() != limbs * degree:
            raise FormatError(f"SEAL ciphertext: a seeded one of degree {self.ring.degree} in NTT form expected")
        values = np.frombuffer(array.take(8 * limbs * degree), "<u8").astype(np.uint32)
        generator = reader.nested()
        if len(generator) != 1 + SEED_BYTES or generator[0] != _BLAKE2XB:
            raise FormatError("SEAL ciphertext: its seed is not one of BLAKE2Xb")
        return values.reshape(limbs, degree), bytes(generator[1:])

    def decrypt(self, secret: Any, residues: np.ndarray, scale: float) -> np.ndarray:
        """Slots float64 ``[n / 2]`` of one ciphertext ``[limbs, components * n]`` at ``scale``."""
        sealapi = _seal()
        plaintext = sealapi.Plaintext()
        sealapi.Decryptor(self.context, secret).decrypt(self.ciphertext(residues, scale), plaintext)
        return np.array(self.encoder.decode_double(plaintext))

    def residues(self, ciphertext: Any) -> np.ndarray:
        """uint32 ``[limbs, components * n]`` of SEAL's ciphertext."""
        polynomials, _ = self._polynomials(_Reader(_unwrapped(_saved(ciphertext))))
        components, limbs, degree = polynomials.shape
        return np.ascontiguousarray(polynomials.transpose(1, 0, 2)).reshape(limbs, components * degree)

    def ciphertext(self, residues: np.ndarray, scale: float) -> Any:
        """SEAL's ciphertext of residues ``[limbs, components * n]``. FormatError for residues it refuses."""
        limbs, degree = residues.shape[0], self.ring.degree
        components = residues.shape[1] // degree
        if limbs not in self.levels or residues.shape[1] != components * degree:
            raise FormatError(f"ciphertext of {list(residues.shape)}: no level of this ring has that shape")
        polynomials = residues.reshape(limbs, components, degree).transpose(1, 0, 2)
        data = self._as_ciphertext(polynomials, self.levels[limbs], scale)
        return self._loaded(_seal().Ciphertext(), data, "ciphertext")

    def _as_ciphertext(self, polynomials: np.ndarray, level: tuple[int, int, int, int], scale: float) -> bytes:
        """SEAL's stream of residues [components, limbs, n]."""
        array = struct.pack("<Q", polynomials.size) + polynomials.astype("<u8").tobytes()
        components, limbs, degree = polynomials.shape
        body = _CIPHERTEXT.pack(struct.pack("<4Q", *level), 1, components, degree, limbs, float(scale), 1)
        return _wrapped(body + _wrapped(array))

    @cached_property
    def _key_level(self) -> tuple[int, int, int, int]:
        """SEAL's parms_id of keys, which have the special limb."""
        a, b, c, d = self.context.key_parms_id()
        return a, b, c, d

    def _polynomials(self, reader: _Reader) -> tuple[np.ndarray, float]:
        """uint32 [components, limbs, n] and the scale."""
        _, ntt, components, degree, limbs, scale, _ = _CIPHERTEXT.unpack(reader.take(_CIPHERTEXT.size))
        if not ntt or degree != self.ring.degree:
            raise FormatError(f"SEAL ciphertext: NTT form of degree {self.ring.degree} expected")
        array = _Reader(reader.nested())
        count = array.number()
        if count != components * limbs * degree:
            raise FormatError(f"SEAL ciphertext: {count} residues for {components} x {limbs} x {degree}; is it seeded?")
        values = np.frombuffer(array.take(8 * count), "<u8").astype(np.uint32)
        return values.reshape(components, limbs, degree), scale

    def _loaded(self, target: Any, data: bytes | bytearray, what: str) -> Any:
        try:
            with _memory_file(data) as path:
                target.load(self.context, path)
        except (RuntimeError, ValueError) as error:
            raise FormatError(f"{what}: SEAL refuses it ({error})") from None
        return target


class _Reader:
    """Takes bytes from the front; FormatError where there are not enough."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = memoryview(data), 0

    def take(self, count: int) -> memoryview:
        part = self._data[self._at : self._at + count]
        if len(part) != count:
            raise FormatError(f"SEAL stream: {count} bytes expected at {self._at}, {len(part)} are there")
        self._at += count
        return part

    def number(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def nested(self) -> bytes:
        """The body of an object with a header of its own."""
        head = self._data[self._at : self._at + _HEADER_SIZE]
        if len(head) != _HEADER_SIZE:
            raise FormatError("SEAL stream: truncated header")
        return _unwrapped(bytes(self.take(_HEADER.unpack(head)[6])))


def _unwrapped(data: bytes) -> bytes:
    """The body behind a header, decompressed."""
    if len(data) < _HEADER_SIZE:
        raise FormatError(f"SEAL stream: {len(data)} bytes are no header")
    magic, size, _, _, compression, _, total = _HEADER.unpack(data[:_HEADER_SIZE])
    if magic != _MAGIC or size != _HEADER_SIZE or total != len(data):
        raise FormatError("SEAL stream: no header of SEAL, or another length")
    if compression == _NONE:
        return data[_HEADER_SIZE:]
    if compression != _ZSTD:
        raise FormatError(f"SEAL stream: compression {compression} is not read here")
    import zstandard

    try:
        with zstandard.ZstdDecompressor().stream_reader(memoryview(data)[_HEADER_SIZE:]) as stream:
            return stream.read()
    except zstandard.ZstdError as error:
        raise FormatError(f"SEAL stream: {error}") from None


@cache
def _version() -> tuple[int, int]:
    """Version of the SEAL that is installed: it reads no streams of others."""
    _, _, major, minor, *_ = _HEADER.unpack(_saved(_seal().Plaintext())[:_HEADER_SIZE])
    return major, minor


def _wrapped(body: bytes) -> bytes:
    total = _HEADER_SIZE + len(body)
    return _HEADER.pack(_MAGIC, _HEADER_SIZE, *_version(), _NONE, 0, total) + body


def _saved(item: Any) -> bytes:
    with _memory_file() as path:
        item.save(path)
        with open(path, "rb") as stream:
            return stream.read()


@contextmanager
def _memory_file(content: bytes | bytearray = b"") -> Iterator[str]:
    """Path of an anonymous file in memory, gone afterwards."""
    if not hasattr(os, "memfd_create"):
        raise ParameterError("the lattice scheme's client needs Linux (memfd_create), so that no key touches a disk")
    descriptor = os.memfd_create("mcfhe")
    try:
        with open(descriptor, "wb", closefd=False) as stream:
            stream.write(content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


__all__ = ["Seal", "available"]
