"""What a client of a lattice program needs to know: ring, levels, the pixels' table. No weights, no layers."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from fractions import Fraction
from math import log2, prod
from typing import Any

from mcfhe.errors import FormatError, ParameterError
from mcfhe.graph.steps import Ring
from mcfhe.lattice.security import require_security
from mcfhe.primes import is_prime
from mcfhe.spec import LATTICE_FORMAT
from mcfhe.spec_json import check_header, identity, listed, names, parsed, real, shape, whole, wholes

SPEC_VERSION = 1
_MAX_LIMBS = 64
_MAX_SCALE_BITS = 2048
_MAX_PIXELS = 1 << 20
_FIELDS = {
    "format",
    "version",
    "program_id",
    "input_shape",
    "scale_bits",
    "table",
    "labels",
    "degree",
    "moduli",
    "special",
    "input_bits",
    "output_limbs",
    "output_scale",
    "output_bound_bits",
}


@dataclass(frozen=True, slots=True)
class LatticeSpec:
    """The client's half of a lattice program.

    Attributes:
        table: ``table[c][u] / 2^scale_bits`` is what a pixel value u of channel c enters the network as.
        ring: degree, moduli of a fresh ciphertext, special modulus.
        input_bits: log2 of the scale that slots are encoded at.
        output_limbs, output_scale: level of the scores' ciphertexts, which have two components.
        output_bound_bits: |score| < 2^output_bound_bits is proved for every image, noise aside; 0 or more.
    """

    program_id: str
    input_shape: tuple[int, int, int]
    scale_bits: int
    table: tuple[tuple[int, ...], ...]
    labels: tuple[str, ...]
    ring: Ring
    input_bits: int
    output_limbs: int
    output_scale: Fraction
    output_bound_bits: float

    @property
    def scheme(self) -> str:
        return "lattice"

    @property
    def slots(self) -> int:
        """Images that fit one request."""
        return self.ring.degree // 2

    def to_json(self) -> str:
        """Canonical JSON: keys sorted, the scale as two decimal strings."""
        body: dict[str, Any] = {
            "format": LATTICE_FORMAT,
            "version": SPEC_VERSION,
            "program_id": self.program_id,
            "input_shape": list(self.input_shape),
            "scale_bits": self.scale_bits,
            "table": [list(row) for row in self.table],
            "labels": list(self.labels),
            "degree": self.ring.degree,
            "moduli": list(self.ring.moduli),
            "special": self.ring.special,
            "input_bits": self.input_bits,
            "output_limbs": self.output_limbs,
            "output_scale": [hex(self.output_scale.numerator), hex(self.output_scale.denominator)],
            "output_bound_bits": self.output_bound_bits,
        }
        return json.dumps(body, sort_keys=True, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> LatticeSpec:
        """Parse and validate; FormatError names the field that is wrong."""
        return LatticeSpec.from_body(parsed(text))

    @staticmethod
    def from_body(body: Any) -> LatticeSpec:
        """:meth:`from_json` of text that is parsed already."""
        check_header(body, LATTICE_FORMAT, SPEC_VERSION, _FIELDS)
        spec = LatticeSpec(
            program_id=identity("program_id", body["program_id"]),
            input_shape=shape("input_shape", body["input_shape"]),
            scale_bits=whole("scale_bits", body["scale_bits"]),
            table=tuple(wholes("table", row) for row in listed("table", body["table"])),
            labels=names("labels", body["labels"]),
            ring=Ring(
                whole("degree", body["degree"]), wholes("moduli", body["moduli"]), whole("special", body["special"])
            ),
            input_bits=whole("input_bits", body["input_bits"]),
            output_limbs=whole("output_limbs", body["output_limbs"]),
            output_scale=_fraction("output_scale", body["output_scale"]),
            output_bound_bits=real("output_bound_bits", body["output_bound_bits"]),
        )
        spec._validate()
        return spec

    def _validate(self) -> None:
        if prod(self.input_shape) > _MAX_PIXELS:
            raise FormatError(f"client spec: input_shape {self.input_shape} has more than {_MAX_PIXELS} values")
        if len(self.table) != self.input_shape[0] or any(len(row) != 256 for row in self.table):
            raise FormatError("client spec: table must hold 256 integers per input channel")
        moduli = (*self.ring.moduli, self.ring.special)
        if len(moduli) > _MAX_LIMBS + 1:
            raise FormatError(f"client spec: moduli: {len(moduli) - 1}, at most {_MAX_LIMBS} are read")
        try:
            require_security(self.ring.degree, moduli)
        except ParameterError as error:
            raise FormatError(f"client spec: {error}") from None
        usable = all(2 < q < 1 << 31 and q % (2 * self.ring.degree) == 1 and is_prime(q) for q in moduli)
        if not self.ring.moduli or not usable or len(set(moduli)) != len(moduli):
            raise FormatError(f"client spec: moduli must be different primes below 2^31, 1 mod {2 * self.ring.degree}")
        for field, value, low, high in (
            ("scale_bits", self.scale_bits, 1, 30),
            ("input_bits", self.input_bits, 1, 60),
            ("output_limbs", self.output_limbs, 1, len(self.ring.moduli)),
            ("labels", len(self.labels), 1, 1 << 20),
            ("output_bound_bits", self.output_bound_bits, 0, _MAX_SCALE_BITS),
        ):
            if not low <= value <= high:
                raise FormatError(f"client spec: {field} = {value} is outside {low}..{high}")
        largest = max(1 << self.scale_bits, *(abs(v) for row in self.table for v in row))
        if largest << (self.input_bits + 2) >= prod(self.ring.moduli) << self.scale_bits:
            raise FormatError(f"client spec: table and input_bits = {self.input_bits} are too large for the moduli")
        out = prod(self.ring.moduli[: self.output_limbs])
        if not 1 <= self.output_scale < out or log2(self.output_scale) + self.output_bound_bits >= log2(out):
            raise FormatError("client spec: output_scale or output_bound_bits is out of the range of its limbs")

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def _fraction(field: str, pair: object) -> Fraction:
    digits = f"0x[1-9a-f][0-9a-f]{{0,{_MAX_SCALE_BITS}}}"
    if len(texts := names(field, pair)) != 2 or any(not re.fullmatch(digits, text) for text in texts):
        raise FormatError(f"client spec: {field} is not two hexadecimal numbers of at most {_MAX_SCALE_BITS} digits")
    return Fraction(int(texts[0], 16), int(texts[1], 16))
