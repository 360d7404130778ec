"""Client specs of lattice programs: what a client is told is checked before SEAL sees it."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest

from mcfhe.errors import FormatError
from mcfhe.lattice.program import LatticeProgram
from mcfhe.lattice.spec import LatticeSpec
from mcfhe.spec import ClientSpec

FORGED: list[tuple[str, Any]] = [
    ("degree", 4097),
    ("degree", 1 << 40),
    ("degree", "x"),
    ("degree", 4096.5),
    ("degree", True),
    ("moduli", []),
    ("moduli", [97]),
    ("moduli", [2**61 - 1]),
    ("moduli", [8193] * 70),
    ("special", 12289),
    ("moduli", "12"),
    ("input_bits", 0),
    ("input_bits", 61),
    ("input_bits", 59),
    ("output_limbs", 0),
    ("output_limbs", 9),
    ("labels", []),
    ("labels", 3),
    ("table", [[0] * 256]),
    ("table", [[0] * 255] * 2),
    ("table", [[10**30] * 256] * 2),
    ("table", None),
    ("input_shape", [2, 3]),
    ("input_shape", [2, 1 << 15, 1 << 15]),
    ("input_shape", [2, 0, 3]),
    ("scale_bits", 0),
    ("output_scale", ["0x1"]),
    ("output_scale", ["0x0", "0x1"]),
    ("output_scale", ["0x1", "0x0"]),
    ("output_scale", [1, 2]),
    ("output_scale", ["0x" + "f" * 40, "0x1"]),
    ("output_bound_bits", float("nan")),
    ("output_bound_bits", float("inf")),
    ("output_bound_bits", -3),
    ("output_bound_bits", 1000),
    ("program_id", "q"),
    ("scale_bits", float("inf")),
]


@pytest.mark.parametrize(("field", "value"), FORGED)
def test_forged_specs_are_refused(program: LatticeProgram, field: str, value: object) -> None:
    spec = program.client_spec()
    text = spec.to_json()
    for read in (LatticeSpec.from_json, ClientSpec.from_json):
        assert read(text) == spec
        with pytest.raises(FormatError, match="client spec: "):
            read(json.dumps(json.loads(text) | {field: value}))
    assert spec.digest() != LatticeSpec.from_json(json.dumps(json.loads(text) | {"labels": ["a", "b"]})).digest()


def test_forged_specs_never_crash(program: LatticeProgram) -> None:
    body = json.loads(program.client_spec().to_json())
    for field in body:
        for value in (
            None,
            -1,
            0,
            1 << 70,
            1e308,
            float("inf"),
            "",
            "9" * 5000,
            [],
            {},
            [[]],
            ["a"],
            True,
            [[1e400] * 256] * 2,
        ):
            with suppress(FormatError):
                LatticeSpec.from_json(json.dumps(body | {field: value}))
        with pytest.raises(FormatError):
            LatticeSpec.from_json(json.dumps({k: v for k, v in body.items() if k != field}))
    for text in ("", "[", "[]", "null", "[" * 100_000, json.dumps(body)[:-1], json.dumps(body | {"extra": 1})):
        with pytest.raises(FormatError):
            LatticeSpec.from_json(text)
