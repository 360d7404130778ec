"""How a secret may turn up in what a program writes: every plausible form of positions, keys and pass-phrases."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote_from_bytes

import numpy as np
import pytest

from mcfhe.cli import run

# Positions in a row. Chance finds so many bytes once in 2^64 places, so many of 100 lanes once in 10^16; a run of the
# tests looks at some 10^7 places for a dozen windows. (Of five bytes it found one in 5,000 runs.)
WINDOW = 8
_TYPES = ("u1", "<i2", ">i2", "<i4", ">i4", "<i8", ">i8", "<f4", ">f4", "<f8", ">f8")
_SHORTEST = 8  # bytes that chance does not make


def forms_of_bytes(value: bytes) -> set[bytes]:
    """A byte string as it may turn up: raw, hex, base64 at any offset, quoted, a Python literal."""
    return {
        value,
        value.hex().encode(),
        value.hex().upper().encode(),
        value.hex(":").encode(),
        repr(value)[2:-1].encode(),
        quote_from_bytes(value).encode(),
        value[::-1],
        *(form for alphabet in (base64.b64encode, base64.urlsafe_b64encode) for form in _base64(value, alphabet)),
        *([base64.b32encode(value)[: len(value) // 5 * 8]] if len(value) >= 5 else []),
    }


def _base64(value: bytes, encode: object) -> set[bytes]:
    """What is the same at each of the three offsets, whatever stands around it."""
    assert callable(encode)
    found = set()
    for skip in range(3):
        whole = value[skip:]
        found.add(encode(whole[: len(whole) // 3 * 3]))
    return {form for form in found if len(form) >= 8}


@dataclass(frozen=True)
class Numbers:
    """A sequence of small integers: positions, or the bytes of a key."""

    values: tuple[int, ...]

    def __post_init__(self) -> None:
        assert len(self.values) >= WINDOW, "too few to be found"

    def in_text(self, data: bytes) -> bool:
        """WINDOW of them in a row among the numbers of a text, with up to two other numbers between each."""
        tokens = [int(token) for token in re.findall(rb"\d{1,9}", data)]
        windows = {self.values[i : i + WINDOW] for i in range(len(self.values) - WINDOW + 1)}
        for stride in (1, 2, 3):
            for offset in range(stride):
                every = tokens[offset::stride]
                if any(tuple(every[i : i + WINDOW]) in windows for i in range(len(every) - WINDOW + 1)):
                    return True
        return False

    def in_bytes(self, data: bytes, encoded: bool = True) -> bool:
        """WINDOW of them in a row as any type of number, raw or (``encoded``) in an encoding of bytes."""
        for start in range(len(self.values) - WINDOW + 1):
            part = self.values[start : start + WINDOW]
            for kind in _TYPES:
                if kind == "u1" and max(part) > 255:
                    continue
                raw = np.array(part, kind).tobytes()
                forms = forms_of_bytes(raw) if encoded else {raw}
                if any(form in data for form in forms if len(form) >= _SHORTEST):
                    return True
        return False


@dataclass(frozen=True)
class Canaries:
    """Secrets by name, and which of them some bytes give away."""

    positions: Mapping[str, Numbers]
    secrets: Mapping[str, bytes]

    @staticmethod
    def of(positions: Mapping[str, Sequence[int]], secrets: Mapping[str, bytes]) -> Canaries:
        return Canaries({name: Numbers(tuple(values)) for name, values in positions.items()}, dict(secrets))

    def found_in(self, data: bytes, text: bool = True) -> set[str]:
        """Names of secrets. text: also as text would hold them, which takes seconds a megabyte."""
        found = {name for name, values in self.positions.items() if values.in_bytes(data, text)}
        if text:
            found |= {name for name, values in self.positions.items() if values.in_text(data)}
        for name, secret in self.secrets.items():
            numbers = text and Numbers(tuple(secret)).in_text(data)
            if numbers or any(form in data for form in forms_of_bytes(secret)):
                found.add(name)
        return found


class Watch:
    """Runs commands in this process and keeps all they print and log."""

    def __init__(self, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
        self.capfd, self.caplog, self.text = capfd, caplog, ""

    def run(self, *arguments: object, code: int = 0) -> str:
        """What a command that must end with ``code`` printed on both streams."""
        before = len(self.caplog.text)
        self.capfd.readouterr()
        found = run([str(argument) for argument in arguments])
        captured = self.capfd.readouterr()
        self.text += captured.out + captured.err + self.caplog.text[before:]
        assert found == code, captured.err
        return captured.out + captured.err
