"""Client specs of the modular scheme as text: only what :meth:`ClientSpec.to_json` can have written is read."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from mcfhe.errors import FormatError
from mcfhe.spec import ClientSpec
from tests.modular_support import LinearServer

SPEC = LinearServer().spec
BODY = json.loads(SPEC.to_json())
ANYTHING = [None, True, -1, 1.5, 1e308, float("inf"), float("nan"), 1 << 400, "", "1", "9" * 5000, [], {}, [[]], ["1"]]


def fields(body: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something is in nested JSON, the first two entries of a list."""
    yield path
    if isinstance(body, dict | list):
        for key in body if isinstance(body, dict) else range(min(len(body), 2)):
            yield from fields(body[key], (*path, key))


def edited(path: tuple[Any, ...], value: Any) -> str:
    if not path:
        return json.dumps(value)
    body = copy.deepcopy(BODY)
    inner = body
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return json.dumps(body)


def test_round_trip() -> None:
    assert ClientSpec.from_json(SPEC.to_json()) == SPEC


@pytest.mark.parametrize("path", list(fields(BODY)), ids=str)
def test_values_of_other_types_are_refused(path: tuple[Any, ...]) -> None:
    """What is accepted is kept as it was written: nothing is converted, so that a text and its digest stay one."""
    for value in ANYTHING:
        with suppress(FormatError):
            spec = ClientSpec.from_json(edited(path, value))
            assert json.loads(spec.to_json()) == json.loads(edited(path, value))
            assert not isinstance(value, bool | float)


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        (("program_id",), "p" * 64, "program_id"),
        (("labels", 0), "a\nb", "labels"),
        (("labels",), "abc", "labels"),
        (("profiles",), {}, "profiles"),
        (("profiles", "patent", "output_order"), [1, 2, 3], "output_order"),
        # a ** t of either would be computed for every score
        (("profiles", "patent", "output_order"), [1 << 40, 5], "output_order"),
        (("profiles", "hardened", "output_order"), [1, 1 << 40], "output_order"),
        (("table", 0, 7), 1 << 31, "table"),
        (("table", 0, 7), -(1 << 31), "table"),
        (("more",), 1, "not the fields"),
        (("profiles", "patent", "more"), 1, "not the fields"),
        (("version",), True, "version True"),
        (("version",), 2, "version 2"),
    ],
)
def test_refusals_name_the_field(path: tuple[Any, ...], value: Any, match: str) -> None:
    with pytest.raises(FormatError, match=match):
        ClientSpec.from_json(edited(path, value))


def test_text_that_is_no_spec() -> None:
    texts: list[Any] = ["", "[", "[]", "null", "[" * 100_000, SPEC.to_json()[:-1], None, 5, b"{}", BODY]
    for text in texts:
        with pytest.raises(FormatError, match="client spec: "):
            ClientSpec.from_json(text)
