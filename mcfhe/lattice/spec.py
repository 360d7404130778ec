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
        try:
            body = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"client spec: not JSON ({error}); fetch it again from the program") from None
        if not isinstance(body, dict) or body.get("format") != LATTICE_FORMAT:
            raise FormatError(f"client spec: field 'format' is not {LATTICE_FORMAT!r}")
        if body.get("version") != SPEC_VERSION:
            raise FormatError(f"client spec: version {body.get('version')!r}, this build reads {SPEC_VERSION}")
        try:
            if set(body) != _FIELDS:
                raise ValueError(f"not the fields {', '.join(sorted(_FIELDS))}")
            if len(body["moduli"]) > _MAX_LIMBS or any(len(v) > _MAX_SCALE_BITS for v in body["output_scale"]):
                raise ValueError("too many limbs or digits")
            numerator, denominator = (int(v, 16) for v in body["output_scale"])
            spec = LatticeSpec(
                program_id=str(body["program_id"]),
                input_shape=tuple(_whole(v) for v in body["input_shape"]),  # type: ignore[arg-type]
                scale_bits=_whole(body["scale_bits"]),
                table=tuple(tuple(_whole(v) for v in row) for row in body["table"]),
                labels=tuple(str(v) for v in list(body["labels"])),
                ring=Ring(_whole(body["degree"]), tuple(_whole(q) for q in body["moduli"]), _whole(body["special"])),
                input_bits=_whole(body["input_bits"]),
                output_limbs=_whole(body["output_limbs"]),
                output_scale=Fraction(numerator, denominator),
                output_bound_bits=float(body["output_bound_bits"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise FormatError(f"client spec: field missing or of the wrong type ({error})") from None
        spec._validate()
        return spec

    def _validate(self) -> None:
        if not re.fullmatch("[0-9a-f]{64}", self.program_id):
            raise FormatError("client spec: program_id is not 64 lower-case hex digits")
        sizes = len(self.input_shape) == 3 and all(1 <= v <= _MAX_PIXELS for v in self.input_shape)
        if not sizes or prod(self.input_shape) > _MAX_PIXELS:
            raise FormatError(
                f"client spec: input_shape {self.input_shape} is not (C, H, W) of at most {_MAX_PIXELS} pixels"
            )
        if len(self.table) != self.input_shape[0] or any(len(row) != 256 for row in self.table):
            raise FormatError("client spec: table must hold 256 integers per input channel")
        moduli = (*self.ring.moduli, self.ring.special)
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


def _whole(value: object) -> int:
    if type(value) is not int:  # not isinstance: True is no number
        raise TypeError(f"{str(value)[:40]!r} is no whole number")
    return value
