"""Messages of the lattice scheme: round trips, every field refused in words, hostile bytes, secrets."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch

from mcfhe import reference
from mcfhe.container import pack
from mcfhe.errors import FormatError, McfheError, MismatchError, SecretFieldError, UnknownKeyError
from mcfhe.graph.steps import Ring
from mcfhe.lattice.evaluation_key import LatticeEvaluationKey
from mcfhe.lattice.expansion import expanded
from mcfhe.lattice.wire import LatticeRequest, LatticeResponse
from mcfhe.wire import Request, Response
from tests.service.mutate import mutate
from tests.test_wire import repack

N = 8
RING = Ring(N, (97, 113), 193)
PROGRAM_ID = "ab" * 32


def draw(moduli: tuple[int, ...], *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.stack([torch.randint(0, q, shape, generator=generator, dtype=torch.int32) for q in moduli])


def make_key(ring: Ring = RING) -> LatticeEvaluationKey:
    moduli = (*ring.moduli, ring.special)
    keys = draw(moduli, len(ring.moduli), 2, ring.degree).permute(1, 2, 0, 3).contiguous()
    return LatticeEvaluationKey(ring, keys)


KEY = make_key()


def make_request(**changes: Any) -> LatticeRequest:
    fields = {
        "batch": 3,
        "program_id": PROGRAM_ID,
        "evaluation_key": KEY,
        "ciphertext": draw(RING.moduli, 1, 2, 3, 2 * N),
    }
    return LatticeRequest(**(fields | changes))


def make_response(**changes: Any) -> LatticeResponse:
    residues = draw(RING.moduli, 4, 2 * N).long()
    fields = {"residues": residues, "program_id": PROGRAM_ID, "key_id": KEY.key_id, "request_id": "c" * 32, "batch": 3}
    return LatticeResponse(**(fields | changes))


REQUEST, RESPONSE = make_request().to_bytes(), make_response().to_bytes()
SEEDS = torch.arange(6 * 64, dtype=torch.int64).remainder(256).to(torch.uint8).view(1, 2, 3, 64)
SEEDED = make_request(ciphertext=draw(RING.moduli, 1, 2, 3, N), seeds=SEEDS)
KEYED = make_request().to_bytes(embed_key=False)
READERS: dict[str, tuple[bytes, Callable[[bytes], Any]]] = {
    "lattice-request": (REQUEST, LatticeRequest.from_bytes),
    "keyed-lattice-request": (KEYED, lambda data: LatticeRequest.from_bytes(data, {KEY.key_id: KEY}.get)),
    "seeded-lattice-request": (SEEDED.to_bytes(), LatticeRequest.from_bytes),
    "lattice-response": (RESPONSE, LatticeResponse.from_bytes),
    "lattice-evaluation-key": (KEY.to_bytes(), LatticeEvaluationKey.from_bytes),
}


def test_round_trips(tmp_path: Any) -> None:
    request, response = make_request(), make_response()
    for read in (LatticeRequest.from_bytes, Request.from_bytes):
        again: Any = read(request.to_bytes())
        assert torch.equal(again.ciphertext, request.ciphertext)
        assert torch.equal(again.evaluation_key.keys, KEY.keys)
        assert (again.batch, again.program_id, again.request_id) == (3, PROGRAM_ID, request.request_id)
        assert again.evaluation_key.ring == RING
        assert again.to_bytes() == request.to_bytes()
    for reader in (LatticeResponse.from_bytes, Response.from_bytes):
        back: Any = reader(response.to_bytes())
        assert torch.equal(back.residues, response.residues)
        assert back.to_bytes() == response.to_bytes()
    for item, kind in ((request, LatticeRequest), (response, LatticeResponse), (KEY, LatticeEvaluationKey)):
        item.save(tmp_path / "file")
        assert kind.load(tmp_path / "file").to_bytes() == item.to_bytes()


def test_seeded_requests() -> None:
    again = LatticeRequest.from_bytes(SEEDED.to_bytes())
    assert again.seeds is not None
    assert torch.equal(again.seeds, SEEDS)
    assert torch.equal(again.ciphertext, SEEDED.ciphertext)
    assert again.to_bytes() == SEEDED.to_bytes()
    full = expanded(SEEDED)
    assert torch.equal(full[..., :N], SEEDED.ciphertext)
    want = reference.expand_uniform(SEEDS.view(-1, 64), torch.tensor(RING.moduli), N)
    assert torch.equal(full[..., N:].flatten(1, 3), want)
    assert expanded(request := make_request()) is request.ciphertext


def test_keyed_requests() -> None:
    assert len(KEYED) < len(REQUEST) - KEY.keys.numel() * 4
    for read in (LatticeRequest.from_bytes, Request.from_bytes):
        found: Any = read(KEYED, {KEY.key_id: KEY}.get)  # type: ignore[arg-type]
        assert found.evaluation_key is KEY
        with pytest.raises(UnknownKeyError, match="not registered"):
            read(KEYED, lambda _: None)
        with pytest.raises(FormatError, match="'lattice-request' is read"):
            read(KEYED)
        with pytest.raises(MismatchError, match="key_id"):
            read(KEYED, lambda _: make_key(Ring(N, (97, 193), 113)))  # type: ignore[arg-type,return-value]
    other = make_key(Ring(N, (97, 113, 241), 193))
    with pytest.raises(FormatError, match="ciphertext has 2 limbs, the key 3"):
        make_request(evaluation_key=other)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"batch": 5}, "batch = 5 is not in 1..4, the slots"),
        ({"batch": 0}, "batch = 0"),
        ({"seeds": SEEDS}, r"\[2, 1, 2, 3, 16\]; int32 \[L, C, H, W, 8\] expected"),
        ({"ciphertext": torch.zeros(2, 1, 2, 3, N, dtype=torch.int32)}, r"int32 \[L, C, H, W, 16\] expected"),
        ({"ciphertext": SEEDED.ciphertext, "seeds": SEEDS[:, :1]}, r"seeds are .* uint8 \[1, 2, 3, 64\] expected"),
        ({"ciphertext": SEEDED.ciphertext, "seeds": SEEDS.int()}, "seeds are torch.int32"),
        ({"batch": True}, "batch = True"),
        ({"program_id": "x"}, "program_id"),
        ({"request_id": "0"}, "request_id"),
        (
            {"ciphertext": torch.zeros(2, 1, 2, 3, 2 * N, dtype=torch.int64)},
            r"int64 .* int32 \[L, C, H, W, 16\] expected",
        ),
        ({"ciphertext": torch.zeros(2, 1, 2, 3, 3 * N, dtype=torch.int32)}, r"\[2, 1, 2, 3, 24\]"),
        ({"ciphertext": torch.zeros(2, 3, 2 * N, dtype=torch.int32)}, "expected"),
        ({"ciphertext": torch.zeros(1, 1, 2, 3, 2 * N, dtype=torch.int32)}, "ciphertext has 1 limbs, the key 2"),
    ],
)
def test_refuses_request_fields(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(FormatError, match=match):
        make_request(**changes)


@pytest.mark.parametrize(
    ("limb", "value", "match"),
    [
        (0, 97, "0 <= r < 97 in limb 0"),
        (1, 113, "0 <= r < 113 in limb 1"),
        (1, -1, "in limb 1"),
        (0, 2**31 - 1, "in limb 0"),
    ],
)
def test_refuses_residues_out_of_range(limb: int, value: int, match: str) -> None:
    def edit(tensors: dict[str, np.ndarray], _: dict[str, str]) -> None:
        tensors["ciphertext"][limb, 0, 1, 2, 3] = value

    for data, kind in ((REQUEST, "lattice-request"), (KEYED, "keyed-lattice-request")):
        with pytest.raises(FormatError, match=match):
            READERS[kind][1](repack(data, kind, edit))
    request = make_request()
    request.ciphertext[limb, 0, 1, 2, 3] = value
    with pytest.raises(FormatError, match=match):
        request.to_bytes()


@pytest.mark.parametrize(("edit", "match"), [
    (lambda t, m: t["relinearisation_key"].__setitem__((1, 0, 2, 0), 193), "relinearisation key: a residue outside"),
    (lambda t, m: t["relinearisation_key"].__setitem__((1, 0, 2, 0), -1), "relinearisation key: a residue outside"),
    (lambda t, m: t["moduli"].__setitem__(0, 1), "moduli must be 2 or more"),
    (lambda t, m: t["moduli"].__setitem__(2, 197), "key_id"),
    (lambda t, m: m.update(degree="16"), r"int32 \[2, 2, 3, 16\] expected"),
    (lambda t, m: m.update(degree="0"), "degree = '0' is not an integer in 1..32768"),
    (lambda t, m: m.update(key_id="0" * 64), "key_id 000000000000 but its values give"),
    (lambda t, m: t.update(moduli=np.array([97, 113, 193, 241], "<i4")), r"int32 \[3, 2, 4, 8\] expected"),
    (lambda t, m: t.pop("relinearisation_key"), "'relinearisation_key' is missing"),
    (lambda t, m: t.update(secret_key=np.zeros(4, "u1")), "secret_key"),
])  # fmt: skip
def test_refuses_key_fields(edit: Callable[..., Any], match: str) -> None:
    """A missing relinearisation key among them, embedded in a request or alone."""
    for kind in ("lattice-request", "lattice-evaluation-key"):
        with pytest.raises(McfheError, match=match):
            READERS[kind][1](repack(READERS[kind][0], kind, edit))


def test_refuses_secrets_and_other_kinds() -> None:
    for kind in ("lattice-client", "secret-key"):
        data = pack(kind, {"secret_key": np.zeros(4, "u1")}, {}, allow_secret=True)
        for _, reader in READERS.values():
            with pytest.raises(SecretFieldError):
                reader(data)
    for kind, (data, _) in READERS.items():
        for other, (_, reader) in READERS.items():
            if other.split("-")[-1] != kind.split("-")[-1]:
                with pytest.raises(FormatError, match="was given where"):
                    reader(data)


def test_refuses_response_fields() -> None:
    for edit in (
        lambda t, _: t["residues"].fill(-1),
        lambda _, m: m.update(batch="0"),
        lambda _, m: m.update(batch="1x"),
    ):
        with pytest.raises(FormatError, match=r"negative|batch"):
            LatticeResponse.from_bytes(repack(RESPONSE, "lattice-response", edit))
    with pytest.raises(FormatError, match="residues outside"):
        make_response(residues=torch.full((1, 1, 16), 1 << 31)).to_bytes()
    with pytest.raises(FormatError, match="int64 tensor of 3 axes"):
        make_response(residues=torch.zeros(1, 1))


@pytest.mark.parametrize("kind", READERS)
def test_hostile_bytes_never_crash(kind: str) -> None:
    valid, reader = READERS[kind]
    assert reader(valid)
    generator = random.Random(kind)
    for _ in range(400):
        data = mutate(valid, generator)
        if data != valid:
            with suppress(McfheError):
                assert reader(data).to_bytes(), "well formed after all"


def test_representations_are_short() -> None:
    for item in (make_request(), make_response(), KEY):
        assert len(repr(item)) < 250
        assert "tensor(" not in repr(item)
