"""Messages between client and server. Residues travel as int32 (b_p < 2**31) and are int64 in memory."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mcfhe.container import (
    Stored,
    TensorField,
    as_bytes,
    pack,
    parse_choice,
    parse_hex,
    parse_int,
    read_header,
    unpack,
)
from mcfhe.errors import FormatError, MismatchError, UnknownKeyError
from mcfhe.modular.evaluation_key import KEY_METADATA, MODULI_FIELD, EvaluationKey
from mcfhe.modular.params import MAX_LANES, MAX_LIMBS
from mcfhe.spec import PROFILES

MAX_AXIS = 1 << 16
MAX_STREAMS = 1 << 31
MAX_LABELS = 1 << 20

_REQUEST_KIND = "request"
_REQUEST_FIELDS = {
    "ciphertext": TensorField("I32", ((1, MAX_LIMBS), (1, MAX_AXIS), (1, MAX_AXIS), (1, MAX_AXIS), (1, MAX_STREAMS))),
    "public_key": TensorField("I32", ((1, MAX_LIMBS), (1, MAX_STREAMS)), optional=True),
    "moduli": MODULI_FIELD,
}
_REQUEST_METADATA = (*KEY_METADATA, "program_id", "request_id", "lanes", "profile")
# A request whose evaluation key the server already has: the same, with the key's id in place of its values.
_KEYED_KIND = "keyed-request"
_KEYED_FIELDS = {name: field for name, field in _REQUEST_FIELDS.items() if name != "moduli"}
_KEYED_METADATA = ("program_id", "key_id", "request_id", "lanes", "profile")
_RESPONSE_KIND = "response"
_RESPONSE_FIELDS = {
    "residues": TensorField("I32", ((0, MAX_LIMBS), (1, MAX_LABELS), (1, MAX_STREAMS))),
    "limbs": TensorField("I32", ((0, MAX_LIMBS),), optional=True),
}
_RESPONSE_METADATA = ("program_id", "key_id", "request_id", "lanes", "profile")


def new_request_id() -> str:
    """128 random bits, 32 hex digits."""
    return secrets.token_hex(16)


@dataclass(frozen=True, eq=False)
class Request(Stored):
    """What the client sends: encrypted images and the evaluation key.

    ciphertext: int64 ``[N, C, H, W, batch * M]``, stream index image * M + lane, 0 <= r < b_p.
    public_key: int64 ``[N, batch * M]`` in the patent profile (one public key an image), None in the hardened.
    Shapes, dtypes and ids are checked on construction, ranges by :meth:`check_ranges` and by both ways to bytes.
    """

    ciphertext: torch.Tensor
    public_key: torch.Tensor | None
    evaluation_key: EvaluationKey
    program_id: str
    lanes: int
    profile: str
    request_id: str = field(default_factory=new_request_id)

    def __post_init__(self) -> None:
        _check_common("request", self.program_id, self.request_id, self.lanes, self.profile)
        _check_tensor("request", "ciphertext", self.ciphertext, 5)
        check_kind("evaluation key", self.evaluation_key, EvaluationKey)
        limbs, streams = self.ciphertext.shape[0], self.ciphertext.shape[-1]
        if limbs != len(self.evaluation_key.moduli):
            raise FormatError(f"request: ciphertext has {limbs} limbs, the key {len(self.evaluation_key.moduli)}")
        _check_streams("request", streams, self.lanes)
        if (self.public_key is not None) != (self.profile == "patent"):
            raise FormatError(f"request: public_key belongs to the patent profile only; profile is {self.profile!r}")
        if self.public_key is not None:
            _check_tensor("request", "public_key", self.public_key, 2)
            if tuple(self.public_key.shape) != (limbs, streams):
                raise FormatError(
                    f"request: public_key is {list(self.public_key.shape)}, [{limbs}, {streams}] expected"
                )

    def __repr__(self) -> str:
        return (
            f"Request(batch={self.batch}, lanes={self.lanes}, profile={self.profile!r}, "
            f"ciphertext={list(self.ciphertext.shape)}, key_id={self.key_id[:12]}, program_id={self.program_id[:12]})"
        )

    @property
    def key_id(self) -> str:
        return self.evaluation_key.key_id

    @property
    def group(self) -> tuple[object, ...]:
        """Requests of one group may be evaluated as one: their streams lie side by side."""
        return self.program_id, self.key_id, self.profile, self.lanes

    @property
    def batch(self) -> int:
        """Images in the request."""
        return self.ciphertext.shape[-1] // self.lanes

    @property
    def held_bytes(self) -> int:
        """Bytes of its residues as they were sent: what admission counts."""
        return 4 * self.ciphertext.numel()

    def check_ranges(self) -> None:
        """FormatError unless every residue is canonical, 0 <= r < b_p."""
        for name, tensor in (("ciphertext", self.ciphertext), ("public_key", self.public_key)):
            if tensor is not None:
                _check_residues("request", name, tensor.detach().cpu().numpy(), self.evaluation_key)

    def to_bytes(self, *, embed_key: bool = True) -> bytes:
        """Serialise; FormatError if a residue is out of range.

        Without ``embed_key`` the evaluation key is named by its id only: a keyed request, for a server that has it.
        """
        self.check_ranges()
        tensors = {"ciphertext": _narrow(self.ciphertext)}
        if self.public_key is not None:
            tensors["public_key"] = _narrow(self.public_key)
        if not embed_key:
            return pack(_KEYED_KIND, tensors, _common_metadata(self) | {"key_id": self.key_id})
        tensors["moduli"] = self.evaluation_key.moduli.as_array().astype("<i4")
        return pack(_REQUEST_KIND, tensors, self.evaluation_key.metadata() | _common_metadata(self))

    @staticmethod
    def from_bytes(data: bytes | bytearray | memoryview, keys: Callable[[str], Any] | None = None) -> Any:
        """Parse and validate every field; FormatError, SecretFieldError or MismatchError otherwise.

        ``keys`` finds the evaluation key of a keyed request by its id; without it only requests that carry their key
        are read. UnknownKeyError if it finds none. A lattice request comes back as one
        (:class:`mcfhe.lattice.wire.LatticeRequest`).
        """
        data = as_bytes(data)
        if (lattice := _lattice(data)) is not None:
            return lattice.LatticeRequest.from_bytes(data, keys)
        if keys is not None and read_header(data).metadata.get("kind") == _KEYED_KIND:
            content = unpack(data, _KEYED_KIND, _KEYED_FIELDS, _KEYED_METADATA)
            key_id = parse_hex(content, "key_id", 64)
            found = keys(key_id)
            if found is None:
                raise UnknownKeyError(
                    f"evaluation key {key_id[:12]} is not registered here or its session has expired; register it again"
                )
            check_match("evaluation key", "key_id", found.key_id, key_id)
            if not isinstance(found, EvaluationKey):
                raise MismatchError(f"evaluation key {key_id[:12]}: registered for another scheme than this request's")
            key = found
        else:
            content = unpack(data, _REQUEST_KIND, _REQUEST_FIELDS, _REQUEST_METADATA)
            key = EvaluationKey.from_container(content)
        for name in ("ciphertext", "public_key"):
            if name in content.tensors and len(content.tensors[name]) == len(key.moduli):
                _check_residues("request", name, content.tensors[name], key)
        public_key = content.tensors.get("public_key")
        return Request(
            ciphertext=_widen(content.tensors["ciphertext"]),
            public_key=None if public_key is None else _widen(public_key),
            evaluation_key=key,
            program_id=parse_hex(content, "program_id", 64),
            lanes=parse_int(content, "lanes", 1, MAX_LANES),
            profile=parse_choice(content, "profile", PROFILES),
            request_id=parse_hex(content, "request_id", 32),
        )


@dataclass(frozen=True, eq=False)
class Response(Stored):
    """What the server sends back: encrypted scores.

    residues: int64 ``[n, labels, batch * M]``; row i belongs to limb ``limbs[i]``, or to limb i when ``limbs`` is
    None (then n = N). Residues of a limb that got lost are left out, with ``limbs`` naming those that are there.
    """

    residues: torch.Tensor
    program_id: str
    key_id: str
    request_id: str
    lanes: int
    profile: str
    limbs: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _check_common("response", self.program_id, self.request_id, self.lanes, self.profile)
        check_hex("response", "key_id", self.key_id, 64)
        _check_tensor("response", "residues", self.residues, 3)
        _check_streams("response", self.residues.shape[-1], self.lanes)
        if self.limbs is not None:
            if len(self.limbs) != self.residues.shape[0]:
                raise FormatError(
                    f"response: {len(self.limbs)} limbs named for {self.residues.shape[0]} rows of residues"
                )
            ordered = all(a < b for a, b in zip(self.limbs, self.limbs[1:], strict=False))
            if not ordered or any(not 0 <= p < MAX_LIMBS for p in self.limbs):
                raise FormatError(f"response: limbs must be strictly ascending numbers in 0..{MAX_LIMBS - 1}")

    def __repr__(self) -> str:
        return (
            f"Response(batch={self.batch}, lanes={self.lanes}, profile={self.profile!r}, "
            f"residues={list(self.residues.shape)}, key_id={self.key_id[:12]}, program_id={self.program_id[:12]})"
        )

    @staticmethod
    def for_request(request: Request, residues: torch.Tensor, limbs: tuple[int, ...] | None = None) -> Response:
        """The response to ``request``, with its ids."""
        return Response(
            residues, request.program_id, request.key_id, request.request_id, request.lanes, request.profile, limbs
        )

    @property
    def batch(self) -> int:
        """Images in the response."""
        return self.residues.shape[-1] // self.lanes

    def to_bytes(self) -> bytes:
        """Serialise; FormatError if a residue does not fit 31 bits."""
        array = self.residues.detach().cpu().numpy()
        if array.size and (int(array.min()) < 0 or int(array.max()) >= 1 << 31):
            raise FormatError("response: residues outside 0 <= r < 2**31")
        tensors = {"residues": _narrow(self.residues)}
        if self.limbs is not None:
            tensors["limbs"] = np.array(self.limbs, "<i4")
        return pack(_RESPONSE_KIND, tensors, _common_metadata(self) | {"key_id": self.key_id})

    @staticmethod
    def from_bytes(data: bytes | bytearray | memoryview) -> Any:
        """Parse and validate every field; FormatError otherwise. The client's decrypt checks r < b_p.

        A lattice response comes back as a :class:`mcfhe.lattice.wire.LatticeResponse`.
        """
        data = as_bytes(data)
        if (lattice := _lattice(data)) is not None:
            return lattice.LatticeResponse.from_bytes(data)
        content = unpack(data, _RESPONSE_KIND, _RESPONSE_FIELDS, _RESPONSE_METADATA)
        residues = content.tensors["residues"]
        if residues.size and int(residues.min()) < 0:
            raise FormatError("response: residues holds a negative value; canonical residues are 0 <= r < b_p")
        limbs = content.tensors.get("limbs")
        return Response(
            residues=_widen(residues),
            program_id=parse_hex(content, "program_id", 64),
            key_id=parse_hex(content, "key_id", 64),
            request_id=parse_hex(content, "request_id", 32),
            lanes=parse_int(content, "lanes", 1, MAX_LANES),
            profile=parse_choice(content, "profile", PROFILES),
            limbs=None if limbs is None else tuple(limbs.tolist()),
        )


def read_evaluation_key(data: bytes) -> Any:
    """The evaluation key, of whichever scheme, in a container; FormatError for anything else."""
    if (lattice := _lattice(data)) is not None:
        return lattice.LatticeEvaluationKey.from_bytes(data)
    return EvaluationKey.from_bytes(data)


def _lattice(data: bytes) -> Any:
    """The lattice scheme's messages, if ``data`` is one of them."""
    if "lattice" not in read_header(data).metadata.get("kind", ""):
        return None
    from mcfhe.lattice import wire

    return wire


_NAMES = {
    f"{scheme}{name}": f"{words} of the {scheme.lower() or 'modular'} scheme"
    for scheme in ("", "Lattice")
    for name, words in (("Request", "request"), ("Response", "response"), ("EvaluationKey", "evaluation key"))
} | {"PublicKey": "public key of the lattice scheme"}


def in_words(kind: type) -> str:
    """What a class is called in messages: for example "response of the lattice scheme"."""
    return _NAMES.get(kind.__name__, kind.__name__)


def check_kind(what: str, message: object, *kinds: type) -> None:
    """MismatchError unless ``message`` is of one of the kinds: of the right scheme, and a request or a response."""
    if not isinstance(message, kinds):
        expected = " or ".join(in_words(kind) for kind in kinds)
        raise MismatchError(f"{what}: {in_words(type(message))} given, {expected} expected")


def check_match(what: str, name: str, found: str, expected: str) -> None:
    """MismatchError naming both ids, shortened, unless they are equal."""
    if found != expected:
        raise MismatchError(
            f"{what}: {name} is {str(found)[:12]}, {str(expected)[:12]} expected; it belongs to another {name[:-3]}"
        )


def _common_metadata(message: Request | Response) -> dict[str, str]:
    return {
        "program_id": message.program_id,
        "request_id": message.request_id,
        "lanes": str(message.lanes),
        "profile": message.profile,
    }


def _check_common(kind: str, program_id: object, request_id: object, lanes: object, profile: object) -> None:
    check_hex(kind, "program_id", program_id, 64)
    check_hex(kind, "request_id", request_id, 32)
    if type(lanes) is not int or not 1 <= lanes <= MAX_LANES:
        raise FormatError(f"{kind}: lanes = {lanes!r} is not an integer in 1..{MAX_LANES}")
    if profile not in PROFILES:
        raise FormatError(f"{kind}: profile {profile!r} is not one of {', '.join(PROFILES)}")


def check_hex(kind: str, name: str, value: object, digits: int) -> None:
    if not isinstance(value, str) or not re.fullmatch(f"[0-9a-f]{{{digits}}}", value):
        raise FormatError(f"{kind}: {name} is not {digits} lower-case hex digits")


def _check_tensor(kind: str, name: str, value: object, axes: int) -> None:
    if not isinstance(value, torch.Tensor) or value.dtype != torch.int64 or value.dim() != axes:
        raise FormatError(f"{kind}: {name} must be an int64 tensor of {axes} axes")


def _check_streams(kind: str, streams: int, lanes: int) -> None:
    if streams < lanes or streams % lanes:
        raise FormatError(f"{kind}: {streams} streams are not a whole number of images of {lanes} lanes")


def _check_residues(kind: str, name: str, array: np.ndarray, key: EvaluationKey) -> None:
    for limb, (row, b) in enumerate(zip(array, key.moduli, strict=True)):
        # Minimum and maximum need no temporary of the array's size.
        if row.size and (int(row.min()) < 0 or int(row.max()) >= b):
            raise FormatError(f"{kind}: {name} holds a value outside 0 <= r < {b} in limb {limb}")


def _narrow(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().astype("<i4")


def _widen(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int64))
