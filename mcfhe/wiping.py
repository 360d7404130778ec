"""Memory for secrets that is overwritten after use, as far as Python has such memory."""

from __future__ import annotations

from typing import Any

import numpy as np


def wipe(*buffers: bytearray | np.ndarray) -> None:
    """Overwrite with zeros; lengths stay."""
    for buffer in buffers:
        if isinstance(buffer, np.ndarray):
            buffer[...] = 0
        else:
            buffer[:] = bytes(len(buffer))


def derived(function: Any, secret: bytes | bytearray, length: int = 32) -> bytearray:
    """``function.derive(secret)``, a key derivation of ``cryptography``; without an immutable copy from 47 on."""
    out = bytearray(length)
    if hasattr(function, "derive_into"):
        function.derive_into(secret, out)
    else:
        out[:] = function.derive(secret)
    return out
