"""What the readers of all kinds of client spec share. A value of another type is refused, never converted: one spec,
one text, one digest. Every function here raises FormatError, naming the field."""

from __future__ import annotations

import json
import re
from collections.abc import Set
from typing import Any

from mcfhe.arguments import shown
from mcfhe.errors import FormatError


def parsed(text: Any) -> Any:
    """The JSON in a text."""
    if not isinstance(text, str):
        raise FormatError(f"client spec: a text expected, not {type(text).__name__}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"client spec: not JSON ({error}); fetch it again from the program") from None


def check_header(body: Any, kind: str, version: int, fields: Set[str]) -> None:
    """An object of that format and version, with ``fields`` and no others."""
    if not isinstance(body, dict) or body.get("format") != kind:
        raise FormatError(f"client spec: field 'format' is not {kind!r}")
    found = body.get("version")
    if type(found) is not int or found != version:
        raise FormatError(f"client spec: version {shown(found)}, this build reads {version}")
    if set(body) != fields:
        raise FormatError(f"client spec: not the fields {', '.join(sorted(fields))}")


def whole(field: str, value: object) -> int:
    """A whole number."""
    if type(value) is not int:  # not isinstance: True is no number
        raise FormatError(f"client spec: {field}: {shown(value)} is no whole number")
    return value


def real(field: str, value: object) -> float:
    """A number; infinity and NaN among them."""
    try:
        if type(value) is float or type(value) is int:
            return float(value)
    except OverflowError:
        pass
    raise FormatError(f"client spec: {field}: {shown(value)} is no number")


def listed(field: str, value: object) -> list[Any]:
    """A list: texts and objects can be walked through, too."""
    if not isinstance(value, list):
        raise FormatError(f"client spec: {field}: {shown(value)} is no list")
    return value


def wholes(field: str, value: object) -> tuple[int, ...]:
    """Whole numbers."""
    return tuple(whole(field, entry) for entry in listed(field, value))


def shape(field: str, value: object) -> tuple[int, int, int]:
    """Three whole numbers, 1 or more: (C, H, W)."""
    sizes = wholes(field, value)
    if len(sizes) != 3 or min(sizes) < 1:
        raise FormatError(f"client spec: {field} {shown(value)} is not (C, H, W)")
    return (sizes[0], sizes[1], sizes[2])


def names(field: str, value: object) -> tuple[str, ...]:
    """Printable texts that are not empty."""
    for entry in (found := listed(field, value)):
        if not isinstance(entry, str) or not entry or not entry.isprintable():
            raise FormatError(f"client spec: {field}: {shown(entry)} is no printable text")
    return tuple(found)


def identity(field: str, value: object) -> str:
    """Id of a program."""
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise FormatError(f"client spec: {field} is not 64 lower-case hex digits")
    return value
