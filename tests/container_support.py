"""A small container and headers that lie, for the tests of containers and messages."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from mcfhe import container
from mcfhe.container import TensorField

FIELDS = {"numbers": TensorField("I32", ((1, 4), (0, 9))), "extra": TensorField("U8", ((0, 9),), optional=True)}


def sample() -> bytes:
    return container.pack("sample", {"numbers": np.arange(6, dtype="<i4").reshape(2, 3)}, {"note": "n"})


def read_sample(data: bytes) -> container.Container:
    return container.unpack(data, "sample", FIELDS, ("note",))


def with_digest(header: dict[str, Any], body: bytes) -> bytes:
    """A container with any header at all and a digest that fits."""
    header.setdefault("__metadata__", {})["digest"] = "0" * 64
    text = json.dumps(header, separators=(",", ":")).encode()
    data = len(text).to_bytes(8, "little") + text + body
    return data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode(), 1)


def sample_header(**changes: Any) -> dict[str, Any]:
    entry = {"dtype": "I32", "shape": [2, 3], "data_offsets": [0, 24]} | changes
    return {"__metadata__": {"format": "mcfhe", "kind": "sample", "version": "1", "note": "n"}, "numbers": entry}
