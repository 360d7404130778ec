"""What a client needs to know of a program, and no more: no weights, no layers."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from mcfhe.errors import FormatError, ParameterError
from mcfhe.graph.order import MAX_ORDER_BITS, TABLE_LIMIT, Order
from mcfhe.spec_json import check_header, identity, listed, names, parsed, shape, whole, wholes

SPEC_FORMAT = "mcfhe/client-spec"
LATTICE_FORMAT = "mcfhe/lattice-client-spec"
STAGED_FORMAT = "mcfhe/staged-client-spec"
SPEC_VERSION = 1
MAX_BOUND_DIGITS = 38_300  # of 2^(31 * 4096): as many limbs as a key may have, of the widest moduli
PROFILES = ("patent", "hardened")
DEFAULT_PROFILE = "hardened"  # what is used where no profile is named; the scheme by the letter is asked for by name

_FIELDS = {
    "format",
    "version",
    "program_id",
    "input_shape",
    "scale_bits",
    "amplification",
    "modulus_bits",
    "guard_bits",
    "table",
    "labels",
    "profiles",
}
_PROFILE_FIELDS = {"input_order", "output_order", "output_bound", "max_noise"}
_PROFILE_NAMES = ", ".join(sorted(_PROFILE_FIELDS))


@dataclass(frozen=True, slots=True)
class ProfileSpec:
    """How one profile's numbers come in and go out.

    ``output_bound`` is proved for every image in the input range and all noise below ``max_noise``:
    |V| <= output_bound for every score V.
    """

    input_order: Order
    output_order: Order
    output_bound: int
    max_noise: int  # noise is drawn from 0 <= e < noise <= max_noise

    def required_bits(self, guard_bits: int) -> int:
        """Bits that the product of the moduli must exceed: prod(b) > 2 * bound * 2**guard."""
        return (self.required_product(guard_bits)).bit_length()

    def required_product(self, guard_bits: int) -> int:
        """The product of the N smallest moduli must be greater than this."""
        return max(1, 2 * self.output_bound) << guard_bits


@dataclass(frozen=True, slots=True)
class ClientSpec:
    """The client's half of a program.

    ``table[c][u]`` is round(Delta * (u / 255 - mean_c) / std_c), ties to even, computed in float64 by the
    server, shipped as integers so that every client agrees bit for bit.
    """

    program_id: str
    input_shape: tuple[int, int, int]
    scale_bits: int
    amplification: int
    modulus_bits: int
    guard_bits: int
    table: tuple[tuple[int, ...], ...]
    labels: tuple[str, ...]
    profiles: dict[str, ProfileSpec]

    @property
    def scheme(self) -> str:
        return "modular"

    @property
    def scale(self) -> int:
        """Delta."""
        return 1 << self.scale_bits

    def profile(self, name: str) -> ProfileSpec:
        if name not in tuple(self.profiles):  # which a name that has no hash may be looked up in
            raise ParameterError(f"profile {name!r}: choose one of {', '.join(sorted(self.profiles))}")
        return self.profiles[name]

    def to_json(self) -> str:
        """Canonical JSON: big integers as decimal strings, keys sorted."""
        body: dict[str, Any] = {
            "format": SPEC_FORMAT,
            "version": SPEC_VERSION,
            "program_id": self.program_id,
            "input_shape": list(self.input_shape),
            "scale_bits": self.scale_bits,
            "amplification": self.amplification,
            "modulus_bits": self.modulus_bits,
            "guard_bits": self.guard_bits,
            "table": [list(row) for row in self.table],
            "labels": list(self.labels),
            "profiles": {
                name: {
                    "input_order": [p.input_order.t, p.input_order.k],
                    "output_order": [p.output_order.t, p.output_order.k],
                    "output_bound": str(Decimal(p.output_bound)),
                    "max_noise": p.max_noise,
                }
                for name, p in self.profiles.items()
            },
        }
        return json.dumps(body, sort_keys=True, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> Any:
        """Parse and validate; FormatError names the field that is wrong. A lattice program's spec comes back as a
        :class:`mcfhe.lattice.spec.LatticeSpec`, that of a staged one as a :class:`mcfhe.staged.spec.StagedSpec`."""
        return ClientSpec.from_body(parsed(text))

    @staticmethod
    def from_body(body: Any) -> Any:
        """:meth:`from_json` of text that is parsed already."""
        kind = body.get("format") if isinstance(body, dict) else None
        if kind == LATTICE_FORMAT:
            from mcfhe.lattice.spec import LatticeSpec

            return LatticeSpec.from_body(body)
        if kind == STAGED_FORMAT:
            from mcfhe.staged.spec import StagedSpec

            return StagedSpec.from_body(body)
        check_header(body, SPEC_FORMAT, SPEC_VERSION, _FIELDS)
        profiles = body["profiles"]
        if not isinstance(profiles, dict):
            raise FormatError("client spec: profiles: no object of profiles by name")
        spec = ClientSpec(
            program_id=identity("program_id", body["program_id"]),
            input_shape=shape("input_shape", body["input_shape"]),
            scale_bits=whole("scale_bits", body["scale_bits"]),
            amplification=whole("amplification", body["amplification"]),
            modulus_bits=whole("modulus_bits", body["modulus_bits"]),
            guard_bits=whole("guard_bits", body["guard_bits"]),
            table=tuple(wholes("table", row) for row in listed("table", body["table"])),
            labels=names("labels", body["labels"]),
            profiles={name: _profile(name, entry) for name, entry in profiles.items()},
        )
        spec._validate()
        return spec

    def _validate(self) -> None:
        if max(self.input_shape) > 1 << 16:
            raise FormatError(f"client spec: input_shape {self.input_shape} is beyond {1 << 16}")
        if len(self.table) != self.input_shape[0] or any(len(row) != 256 for row in self.table):
            raise FormatError("client spec: table must hold 256 integers per input channel")
        if any(abs(v) >= TABLE_LIMIT for row in self.table for v in row):
            raise FormatError(f"client spec: table holds an integer that is not below {TABLE_LIMIT}")
        for field, value, low, high in (
            ("scale_bits", self.scale_bits, 1, 30),
            ("amplification", self.amplification, 1, 1 << 20),
            ("modulus_bits", self.modulus_bits, 8, 31),
            ("guard_bits", self.guard_bits, 0, 256),
            ("labels", len(self.labels), 1, 1 << 20),
            ("profiles", len(self.profiles), 1, len(PROFILES)),
        ):
            if not low <= value <= high:
                raise FormatError(f"client spec: {field} = {value} is outside {low}..{high}")
        for name, profile in self.profiles.items():
            if not 0 <= profile.max_noise <= self.amplification:
                raise FormatError(f"client spec: max_noise of profile {name!r} is outside 0..{self.amplification}")
            for field, order in (("input_order", profile.input_order), ("output_order", profile.output_order)):
                if order.bits(self.amplification) > MAX_ORDER_BITS:
                    raise FormatError(f"client spec: {field} of profile {name!r} is beyond {MAX_ORDER_BITS} bits")

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def _profile(name: str, entry: Any) -> ProfileSpec:
    if name not in PROFILES or not isinstance(entry, dict) or set(entry) != _PROFILE_FIELDS:
        raise FormatError(f"client spec: profiles: {name[:40]!a} is unknown or not the fields {_PROFILE_NAMES}")
    return ProfileSpec(
        input_order=_order("input_order", entry["input_order"]),
        output_order=_order("output_order", entry["output_order"]),
        output_bound=_integer("output_bound", entry["output_bound"]),
        max_noise=whole("max_noise", entry["max_noise"]),
    )


def _order(field: str, pair: Any) -> Order:
    numbers = wholes(field, pair)
    if len(numbers) != 2 or min(numbers) < 0:
        raise FormatError(f"client spec: {field} is not [t, k] of 0 or more")
    return Order(*numbers)


def _integer(field: str, digits: object) -> int:
    """A non-negative integer from its decimal digits; FormatError for anything else, or for more than bounds can have.

    Through Decimal, which converts exactly and, unlike int and str, more than 4,300 digits: those of 476 limbs.
    """
    if not isinstance(digits, str) or not re.fullmatch(f"0|[1-9][0-9]{{0,{MAX_BOUND_DIGITS - 1}}}", digits, re.ASCII):
        raise FormatError(f"client spec: {field} is not made of 1 to {MAX_BOUND_DIGITS} decimal digits")
    return int(Decimal(digits))
