"""Mutated messages, from a seed: damaged ones, and well-formed ones (fitting digest) with lying content."""

from __future__ import annotations

import hashlib
import json
import random
from typing import Any

_JUNK: tuple[Any, ...] = (
    None,
    -1,
    0,
    1,
    2**31,
    2**63,
    1e308,
    "",
    "x" * 70,
    [],
    {},
    True,
    [0, 2**62],
    "0" * 64,
    "\ud800",
)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Something else than ``data``, almost surely; never longer than twice it and a few bytes."""
    return rng.choice((_flip, _splice, _truncate, _lie, _lie))(data, rng)


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _splice(data: bytes, rng: random.Random) -> bytes:
    start, end, to = sorted(rng.randrange(len(data)) for _ in range(3))
    return data[:start] + rng.choice((data[start:end] * 2, rng.randbytes(end - start), data[end:to], b"")) + data[end:]


def _truncate(data: bytes, rng: random.Random) -> bytes:
    return rng.choice((data[: rng.randrange(len(data))], data + rng.randbytes(rng.randint(1, 64)), b""))


def _lie(data: bytes, rng: random.Random) -> bytes:
    """One field of the header changed, the digest made to fit again."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    metadata = header["__metadata__"]
    tensor = rng.choice([name for name in header if name != "__metadata__"])
    choice = rng.randrange(6)
    if choice == 0:
        metadata[rng.choice(sorted(metadata))] = rng.choice(_JUNK)
    elif choice == 1:
        metadata[rng.choice(("positions", "wz", "extra", "kind", "version"))] = rng.choice(("1", "2", "secret-key"))
    elif choice == 2:
        header[tensor][rng.choice(("dtype", "shape", "data_offsets"))] = rng.choice(_JUNK)
    elif choice == 3:
        shape = header[tensor]["shape"]
        shape[rng.randrange(len(shape))] = rng.choice((0, 1, -1, 2**20, 2**40, 2**62))
    elif choice == 4:
        header[rng.choice(("positions", "more", tensor + "2"))] = header.pop(tensor)
    else:
        at = 8 + size + rng.randrange(len(data) - 8 - size)
        data = data[:at] + b"\xff" * 4 + data[at + 4 :]
    if not isinstance(metadata.get("digest"), str):
        metadata["digest"] = ""
    metadata["digest"] = "0" * 64
    text = json.dumps(header, separators=(",", ":")).encode()
    blob = len(text).to_bytes(8, "little") + text + data[8 + size :]
    digest = hashlib.sha256(blob).hexdigest().encode()
    return blob.replace(b'"digest":"' + b"0" * 64, b'"digest":"' + digest, 1)
