"""Messages of the lattice scheme. Residues travel as int32, as in :mod:`mcfhe.wire`, and may stay so in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from mcfhe.container import (
    Stored,
    TensorField,
    as_bytes,
    pack,
    parse_hex,
    parse_int,
    read_header,
    unpack,
)
from mcfhe.errors import FormatError, MismatchError, UnknownKeyError
from mcfhe.lattice.evaluation_key import KEY_FIELDS, KEY_METADATA, MAX_DEGREE, MAX_LIMBS, LatticeEvaluationKey
from mcfhe.lattice.security import SEED_BYTES
from mcfhe.wire import MAX_AXIS, MAX_LABELS, check_hex, check_match, new_request_id

REQUEST_KIND = "lattice-request"
KEYED_KIND = "keyed-lattice-request"
RESPONSE_KIND = "lattice-response"
_STREAM = (1, 3 * MAX_DEGREE)
_CIPHERTEXT = TensorField("I32", ((1, MAX_LIMBS), (1, MAX_AXIS), (1, MAX_AXIS), (1, MAX_AXIS), _STREAM))
_SEEDS = TensorField("U8", ((1, MAX_AXIS), (1, MAX_AXIS), (1, MAX_AXIS), (SEED_BYTES, SEED_BYTES)), optional=True)
_REQUEST_FIELDS = {"ciphertext": _CIPHERTEXT, "seeds": _SEEDS}
_COMMON = ("program_id", "request_id", "batch")
_RESPONSE_FIELDS = {"residues": TensorField("I32", ((1, MAX_LIMBS), (1, MAX_LABELS), _STREAM))}


@dataclass(frozen=True, eq=False)
class LatticeRequest(Stored):
    """Encrypted images, one a slot: one ciphertext a pixel.

    ciphertext: int32 ``[L, C, H, W, 2 * n]``, NTT form, canonical: 0 <= r < q_l. With ``seeds`` uint8
    ``[C, H, W, 64]`` only the first components, ``[L, C, H, W, n]``: the second ones are uniform, and the server
    expands them from the seeds, which are public.
    """

    ciphertext: torch.Tensor
    evaluation_key: LatticeEvaluationKey
    program_id: str
    batch: int
    request_id: str = field(default_factory=new_request_id)
    seeds: torch.Tensor | None = None

    def __post_init__(self) -> None:
        _check_ids("request", self.program_id, self.request_id)
        ring = self.evaluation_key.ring
        x = self.ciphertext
        stream = (1 if self.seeds is not None else 2) * ring.degree
        if x.dtype != torch.int32 or x.dim() != 5 or x.shape[-1] != stream:
            raise FormatError(
                f"request: ciphertext is {x.dtype} {list(x.shape)}; int32 [L, C, H, W, {stream}] expected"
            )
        seeds, places = self.seeds, (*x.shape[1:4], SEED_BYTES)
        if seeds is not None and (seeds.dtype != torch.uint8 or tuple(seeds.shape) != places):
            raise FormatError(f"request: seeds are {seeds.dtype} {list(seeds.shape)}; uint8 {list(places)} expected")
        if x.shape[0] != len(ring.moduli):
            raise FormatError(f"request: ciphertext has {x.shape[0]} limbs, the key {len(ring.moduli)}")
        _check_batch("request", self.batch, ring.degree // 2)

    def __repr__(self) -> str:
        return (
            f"LatticeRequest(batch={self.batch}, ciphertext={list(self.ciphertext.shape)}, "
            f"key_id={self.key_id[:12]}, program_id={self.program_id[:12]})"
        )

    @property
    def key_id(self) -> str:
        return self.evaluation_key.key_id

    @property
    def group(self) -> tuple[object, ...]:
        """Of its own: a ciphertext's slots are full or wasted, they are not joined with others."""
        return self.program_id, self.key_id, self.request_id

    @property
    def held_bytes(self) -> int:
        """Bytes of its residues while it is evaluated: as sent and, of a seeded one, both components beside them."""
        sent = 4 * self.ciphertext.numel()
        return sent if self.seeds is None else 3 * sent

    def check_ranges(self) -> None:
        """FormatError unless every residue is canonical."""
        check_canonical(self.ciphertext, self.evaluation_key.ring.moduli)

    def to_bytes(self, *, embed_key: bool = True) -> bytes:
        """Serialise; FormatError if a residue is out of range.

        Without ``embed_key`` the key is named by its id only: for a server that has it.
        """
        self.check_ranges()
        tensors = {"ciphertext": self.ciphertext.cpu().numpy()}
        if self.seeds is not None:
            tensors["seeds"] = self.seeds.cpu().numpy()
        common = {"program_id": self.program_id, "request_id": self.request_id, "batch": str(self.batch)}
        if not embed_key:
            return pack(KEYED_KIND, tensors, common | {"key_id": self.key_id})
        return pack(REQUEST_KIND, tensors | self.evaluation_key.tensors(), common | self.evaluation_key.metadata())

    @staticmethod
    def from_bytes(
        data: bytes | bytearray | memoryview, keys: Callable[[str], LatticeEvaluationKey | None] | None = None
    ) -> LatticeRequest:
        """Parse and validate every field.

        ``keys`` finds the evaluation key of a keyed request by its id; UnknownKeyError if it finds none.
        """
        data = as_bytes(data)
        if keys is not None and read_header(data).metadata.get("kind") == KEYED_KIND:
            content = unpack(data, KEYED_KIND, _REQUEST_FIELDS, (*_COMMON, "key_id"))
            key_id = parse_hex(content, "key_id", 64)
            found = keys(key_id)
            if found is None:
                raise UnknownKeyError(
                    f"evaluation key {key_id[:12]} is not registered here or its session has expired; register it again"
                )
            check_match("evaluation key", "key_id", found.key_id, key_id)
            if not isinstance(found, LatticeEvaluationKey):
                raise MismatchError(f"evaluation key {key_id[:12]}: registered for another scheme than this request's")
            key = found
        else:
            content = unpack(data, REQUEST_KIND, _REQUEST_FIELDS | KEY_FIELDS, (*_COMMON, *KEY_METADATA))
            key = LatticeEvaluationKey.from_container(content)
        seeds = content.tensors.get("seeds")
        request = LatticeRequest(
            torch.from_numpy(content.tensors["ciphertext"].copy()),
            key,
            parse_hex(content, "program_id", 64),
            parse_int(content, "batch", 1, MAX_DEGREE),
            parse_hex(content, "request_id", 32),
            None if seeds is None else torch.from_numpy(seeds.copy()),
        )
        request.check_ranges()
        return request


@dataclass(frozen=True, eq=False)
class LatticeResponse(Stored):
    """Encrypted scores: int64 ``[limbs, labels, components * n]``, one ciphertext a label."""

    residues: torch.Tensor
    program_id: str
    key_id: str
    request_id: str
    batch: int

    def __post_init__(self) -> None:
        _check_ids("response", self.program_id, self.request_id)
        check_hex("response", "key_id", self.key_id, 64)
        if self.residues.dtype != torch.int64 or self.residues.dim() != 3:
            raise FormatError("response: residues must be an int64 tensor of 3 axes")
        _check_batch("response", self.batch, MAX_DEGREE // 2)

    def __repr__(self) -> str:
        return (
            f"LatticeResponse(batch={self.batch}, residues={list(self.residues.shape)}, "
            f"key_id={self.key_id[:12]}, program_id={self.program_id[:12]})"
        )

    @staticmethod
    def for_request(request: LatticeRequest, residues: torch.Tensor) -> LatticeResponse:
        """The response to ``request``, with its ids."""
        return LatticeResponse(residues, request.program_id, request.key_id, request.request_id, request.batch)

    def to_bytes(self) -> bytes:
        """Serialise; FormatError if a residue does not fit 31 bits."""
        array = self.residues.cpu().numpy()
        if array.size and (int(array.min()) < 0 or int(array.max()) >= 1 << 31):
            raise FormatError("response: residues outside 0 <= r < 2**31")
        metadata = {
            "program_id": self.program_id,
            "request_id": self.request_id,
            "key_id": self.key_id,
            "batch": str(self.batch),
        }
        return pack(RESPONSE_KIND, {"residues": array.astype("<i4")}, metadata)

    @staticmethod
    def from_bytes(data: bytes | bytearray | memoryview) -> LatticeResponse:
        """Parse and validate every field; FormatError otherwise. The client's decrypt checks r < q."""
        content = unpack(as_bytes(data), RESPONSE_KIND, _RESPONSE_FIELDS, (*_COMMON, "key_id"))
        residues = content.tensors["residues"]
        if residues.size and int(residues.min()) < 0:
            raise FormatError("response: residues holds a negative value; canonical residues are 0 <= r < q")
        return LatticeResponse(
            torch.from_numpy(residues.astype(np.int64)),
            parse_hex(content, "program_id", 64),
            parse_hex(content, "key_id", 64),
            parse_hex(content, "request_id", 32),
            parse_int(content, "batch", 1, MAX_DEGREE),
        )


def check_canonical(ciphertext: torch.Tensor, moduli: Sequence[int]) -> None:
    """FormatError unless residues ``[L, ...]``, on any device, are 0 <= r < q_l."""
    for limb, (row, q) in enumerate(zip(ciphertext, moduli, strict=True)):
        if row.numel() and not 0 <= (ends := [int(end) for end in torch.aminmax(row)])[0] <= ends[1] < q:
            raise FormatError(f"request: ciphertext holds a value outside 0 <= r < {q} in limb {limb}")


def _check_ids(kind: str, program_id: object, request_id: object) -> None:
    check_hex(kind, "program_id", program_id, 64)
    check_hex(kind, "request_id", request_id, 32)


def _check_batch(kind: str, batch: object, slots: int) -> None:
    if type(batch) is not int or not 1 <= batch <= slots:
        raise FormatError(f"{kind}: batch = {batch!r} is not in 1..{slots}, the slots of this ring")
