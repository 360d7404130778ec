"""Secret containers on disk: mode 0600 from creation, optionally encrypted under a passphrase.

What is read, and the keys on the way, lie in memory of their own that is overwritten after use. Python gives no such
memory to some: passphrases (``str``), what a container is packed into for writing, the operating system's random
bytes, and what the interpreter or a library copied of any of them. Those last until the memory is used again.
"""

from __future__ import annotations

import json
import os
import secrets
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from mcfhe.arguments import require
from mcfhe.container import (
    FORMAT,
    VERSION,
    Container,
    TensorField,
    naming,
    pack,
    parse_choice,
    read_header,
    read_secret_file,
    unpack,
    write_file,
)
from mcfhe.errors import FormatError, ParameterError
from mcfhe.wiping import derived, wipe

# scrypt cost; fixed by the container version so that a hostile file cannot ask for gigabytes.
MAX_KEY_FILE = 1 << 30
SCRYPT_N, SCRYPT_R, SCRYPT_P = 1 << 15, 8, 1


def passphrase_bytes(passphrase: str | bytes | bytearray) -> bytes:
    """UTF-8 of the NFC form, so that the same passphrase typed on two systems is the same key."""
    require("passphrase", passphrase, (str, bytes, bytearray), "give text, bytes, or None for no protection")
    raw = unicodedata.normalize("NFC", passphrase).encode() if isinstance(passphrase, str) else bytes(passphrase)
    if not raw:
        raise ParameterError("passphrase: empty; give one or more characters, or None for no protection")
    return raw


def scrypt(passphrase: bytes, salt: bytes) -> bytearray:
    """32 bytes, scrypt (RFC 7914) with n = 2**15, r = 8, p = 1: about 32 MiB and 0.1 s a guess."""
    return derived(Scrypt(salt=salt, length=32, n=SCRYPT_N, r=SCRYPT_R, p=SCRYPT_P), passphrase)


_SEALED = "scrypt+aes-256-gcm"
_TAG_BYTES = 16
_SEALED_FIELDS = {
    "sealed": TensorField("U8", ((16, 1 << 30),)),
    "kdf_salt": TensorField("U8", ((16, 16),)),
    "nonce": TensorField("U8", ((12, 12),)),
}


def _associated_data(kind: str, metadata: Mapping[str, str]) -> bytes:
    return json.dumps({**metadata, "format": FORMAT, "kind": kind, "version": VERSION}, sort_keys=True).encode()


def save_secret(
    path: str | os.PathLike[str],
    kind: str,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
    passphrase: str | bytes | None,
) -> None:
    """Write a container of a secret kind, mode 0600; with a passphrase its content is encrypted.

    Then tensors and metadata lie inside ``sealed``: AES-256-GCM under an scrypt key, with the readable
    metadata (kind, version, protection) as associated data.
    """
    if passphrase is None:
        write_file(path, pack(kind, tensors, {**metadata, "protection": "none"}, allow_secret=True), secret=True)
        return
    inner = pack(kind, tensors, {**metadata, "protection": "none"}, allow_secret=True)
    outer = {"protection": _SEALED}
    salt, nonce = secrets.token_bytes(16), secrets.token_bytes(12)
    key = scrypt(passphrase_bytes(passphrase), salt)
    try:
        sealed = AESGCM(key).encrypt(nonce, inner, _associated_data(kind, outer))
    finally:
        wipe(key)
    parts = {"sealed": sealed, "kdf_salt": salt, "nonce": nonce}
    arrays = {name: np.frombuffer(value, np.uint8) for name, value in parts.items()}
    write_file(path, pack(kind, arrays, outer, allow_secret=True), secret=True)


def kind_of(path: str | os.PathLike[str]) -> str:
    """Kind of the secret container in a file; FormatError if it is no container."""
    data = read_secret_file(path, MAX_KEY_FILE)
    try:
        with naming(path):
            return read_header(data).metadata.get("kind", "")
    finally:
        wipe(data)


@contextmanager
def opened_secret(
    path: str | os.PathLike[str],
    kind: str,
    fields: Mapping[str, TensorField],
    metadata: Iterable[str],
    passphrase: str | bytes | None,
) -> Iterator[Container]:
    """Read what :func:`save_secret` wrote. A wrong passphrase and an altered file give the same FormatError.

    The tensors are views of memory that is overwritten when the block ends: copy what must stay.
    """
    data = read_secret_file(path, MAX_KEY_FILE)
    try:
        names = (*metadata, "protection")
        with naming(path):
            sealed = read_header(data).metadata.get("protection") == _SEALED
            if sealed:
                inner = _unsealed(data, path, kind, passphrase)
                wipe(data)
                data = inner
            content = unpack(data, kind, fields, names, allow_secret=True)
            if not sealed:
                parse_choice(content, "protection", ("none",))
        if not sealed and passphrase is not None:
            # Otherwise whoever swaps the file for one of their own would not even need the passphrase.
            raise ParameterError(f"{path}: not protected by a passphrase; load it with passphrase=None")
        yield content
    finally:
        wipe(data)


def _unsealed(data: bytearray, path: str | os.PathLike[str], kind: str, passphrase: str | bytes | None) -> bytearray:
    """The container inside one that a passphrase protects."""
    sealed = unpack(data, kind, _SEALED_FIELDS, ("protection",), allow_secret=True)
    if passphrase is None:
        raise ParameterError(f"{path}: protected by a passphrase; give passphrase=...")
    parts = {name: value.tobytes() for name, value in sealed.tensors.items()}
    key = scrypt(passphrase_bytes(passphrase), parts["kdf_salt"])
    arguments = parts["nonce"], parts["sealed"], _associated_data(kind, sealed.metadata)
    inner = bytearray(len(parts["sealed"]) - _TAG_BYTES)
    try:
        cipher: Any = AESGCM(key)
        if hasattr(cipher, "decrypt_into"):
            cipher.decrypt_into(*arguments, inner)
        else:
            inner[:] = cipher.decrypt(*arguments)
    except InvalidTag:
        raise FormatError("wrong passphrase, or the file was altered") from None
    finally:
        wipe(key)
    return inner
