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
    return rng.choice((_flip, _splice, _truncate, _header, _lie, _lie, _lie))(data, rng)


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


def _header(data: bytes, rng: random.Random) -> bytes:
    """The header's text, or the size it claims, made strange; lengths kept consistent now and then."""
    size = int.from_bytes(data[:8], "little")
    text, rest = data[8 : 8 + size], data[8 + size :]
    at = rng.randrange(size)
    strange = rng.choice(
        (
            text[:at] + rng.choice((b"[" * 5000, b"{" * 500, b'"', b"\\u0000", b"\x00", b"\xff")) + text[at:],
            text.rstrip()[:-1] + b"," + text.lstrip()[1:],  # every name twice
            text.replace(b"4", rng.choice((b"1e999", b"9" * 5000, b"-1", b"NaN", b"4.0"))),
            text.replace(b"[", b"[" * 200).replace(b"]", b"]" * 200),
            text + b" " * rng.choice((1, 1 << 17)),
            b"",
        )
    )
    claimed = rng.choice((len(strange), len(strange), size, 0, 1 << 62, (1 << 64) - 1))
    return claimed.to_bytes(8, "little") + strange + rest


def _lie(data: bytes, rng: random.Random) -> bytes:
    """One to three fields of the header or residues changed, the digest made to fit again."""
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), bytearray(data[8 + size :])
    for _ in range(rng.randint(1, 3)):
        _change(header, body, rng)
    metadata = header.setdefault("__metadata__", {})
    metadata["digest"] = "0" * 64
    text = json.dumps(header, separators=(",", ":")).encode()
    blob = len(text).to_bytes(8, "little") + text + body
    digest = hashlib.sha256(blob).hexdigest().encode()
    return blob.replace(b'"digest":"' + b"0" * 64, b'"digest":"' + digest, 1)


def _change(header: dict[str, Any], body: bytearray, rng: random.Random) -> None:
    metadata = header["__metadata__"]
    names = [name for name in header if name != "__metadata__"]
    tensor = rng.choice(names) if names else "more"
    entry = header.setdefault(tensor, {"dtype": "I32", "shape": [1], "data_offsets": [0, 4]})
    choice = rng.randrange(8)
    if choice == 0:
        metadata[rng.choice(sorted(metadata))] = rng.choice(_JUNK)
    elif choice == 1:
        metadata[rng.choice(("positions", "wz", "extra", "kind", "version"))] = rng.choice(("1", "2", "secret-key"))
    elif choice == 2:
        entry[rng.choice(("dtype", "shape", "data_offsets"))] = rng.choice(_JUNK)
    elif choice == 3:
        shape = entry["shape"] if isinstance(entry.get("shape"), list) and entry["shape"] else [1]
        shape[rng.randrange(len(shape))] = rng.choice((0, 1, -1, 2**20, 2**40, 2**62))
    elif choice == 4:
        header[rng.choice(("positions", "more", tensor + "2"))] = header.pop(tensor)
    elif choice == 5:
        metadata["lanes"] = str(rng.choice((0, 1, 3, 1024, 1025, 2**63, "04", "-4", "٤")))
    elif choice == 6:
        metadata["profile"] = rng.choice(("patent", "hardened", "Patent", ""))
    elif body:
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(body))
            body[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80"))[: len(body) - at]
