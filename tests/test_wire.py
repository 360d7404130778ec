"""Messages: round trips, and bytes from an enemy."""

from __future__ import annotations

import dataclasses
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mcfhe
from mcfhe import container
from mcfhe.errors import FormatError, McfheError, MismatchError, SecretFieldError
from mcfhe.lattice.wire import LatticeResponse
from mcfhe.modular.csprng import RandomStream
from mcfhe.modular.evaluation_key import EvaluationKey
from mcfhe.modular.params import Moduli
from mcfhe.wire import Request, Response, check_kind
from tests.container_support import sample_header, with_digest

MODULI = Moduli([2**31 - 1, 2**30 - 35, 101])
KEY = EvaluationKey(MODULI, 16, 256)
PROGRAM_ID = "0123456789abcdef" * 4


def residues(*shape: int) -> torch.Tensor:
    drawn = RandomStream.from_os().uniform_residues(MODULI, shape)
    drawn.reshape(3, -1)[:, :1] = np.array(MODULI)[:, None] - 1
    return torch.from_numpy(drawn)


def make_request(profile: str = "patent", lanes: int = 2, batch: int = 3, **changes: Any) -> Request:
    values: dict[str, Any] = {
        "ciphertext": residues(1, 2, 3, batch * lanes),
        "public_key": residues(batch * lanes) if profile == "patent" else None,
        "evaluation_key": KEY,
        "program_id": PROGRAM_ID,
        "lanes": lanes,
        "profile": profile,
    }
    return Request(**(values | changes))


def make_response(limbs: tuple[int, ...] | None = None, **changes: Any) -> Response:
    rows = residues(4, 6)
    values: dict[str, Any] = {
        "residues": rows if limbs is None else rows[: len(limbs)],
        "program_id": PROGRAM_ID,
        "key_id": KEY.key_id,
        "request_id": "5" * 32,
        "lanes": 2,
        "profile": "patent",
        "limbs": limbs,
    }
    return Response(**(values | changes))


class TestRequest:
    @pytest.mark.parametrize("profile", ["patent", "hardened"])
    def test_round_trip(self, profile: str, tmp_path: Path) -> None:
        request = make_request(profile)
        request.save(tmp_path / "request")
        for again in (Request.from_bytes(request.to_bytes()), Request.load(tmp_path / "request")):
            assert torch.equal(again.ciphertext, request.ciphertext)
            assert again.ciphertext.dtype == torch.int64
            assert again.ciphertext.is_contiguous()
            if profile == "patent":
                assert request.public_key is not None
                assert again.public_key is not None
                assert torch.equal(again.public_key, request.public_key)
            else:
                assert again.public_key is None
            for name in ("evaluation_key", "program_id", "key_id", "request_id", "lanes", "profile", "batch"):
                assert getattr(again, name) == getattr(request, name)
        assert request.batch == 3

    def test_accepts_any_buffer(self) -> None:
        data = make_request().to_bytes()
        for buffer in (bytearray(data), memoryview(data)):
            assert Request.from_bytes(buffer).batch == 3

    def test_ids_are_fresh(self) -> None:
        assert make_request().request_id != make_request().request_id

    def test_residues_take_four_bytes(self) -> None:
        request = make_request(batch=500)
        assert request.public_key is not None
        assert len(request.to_bytes()) < 4 * (request.ciphertext.numel() + request.public_key.numel()) + 2000

    def test_repr_shows_no_residues(self) -> None:
        assert repr(make_request()) == (
            "Request(batch=3, lanes=2, profile='patent', ciphertext=[3, 1, 2, 3, 6], "
            f"key_id={KEY.key_id[:12]}, program_id=0123456789ab)"
        )

    @pytest.mark.parametrize(
        "changes",
        [
            {"ciphertext": residues(1, 2, 6)},
            {"ciphertext": residues(1, 2, 3, 6).int()},
            {"ciphertext": residues(1, 2, 3, 6).numpy()},
            {"ciphertext": residues(1, 2, 3, 5), "public_key": residues(5)},
            {"ciphertext": residues(1, 2, 3, 0), "public_key": residues(0)},
            {"ciphertext": residues(1, 2, 3, 6)[:2]},
            {"public_key": None},
            {"public_key": residues(4)},
            {"public_key": residues(6)[:1]},
            {"profile": "hardened"},
            {"profile": "plain"},
            {"lanes": 0},
            {"lanes": 4},
            {"lanes": 2.0},
            {"lanes": True},
            {"program_id": "x" * 64},
            {"program_id": "AB" * 32},
            {"program_id": "ab" * 31},
            {"program_id": "ab" * 32 + "\n"},
            {"request_id": "5" * 31},
            {"request_id": 5},
        ],
    )
    def test_refuses(self, changes: dict[str, Any]) -> None:
        with pytest.raises(FormatError):
            dataclasses.replace(make_request(), **changes)

    @pytest.mark.parametrize("value", [-1, 101, 2**31, 2**32, -(2**63)])
    @pytest.mark.parametrize("name", ["ciphertext", "public_key"])
    def test_to_bytes_refuses_residues_out_of_range(self, name: str, value: int) -> None:
        request = make_request()
        getattr(request, name)[2].view(-1)[-1] = value
        with pytest.raises(FormatError, match=f"{name} holds a value outside 0 <= r < 101 in limb 2"):
            request.to_bytes()


class TestResponse:
    @pytest.mark.parametrize("limbs", [None, (0, 1, 2), (1,), ()])
    def test_round_trip(self, limbs: tuple[int, ...] | None, tmp_path: Path) -> None:
        response = make_response(limbs)
        response.save(tmp_path / "response")
        for again in (Response.from_bytes(response.to_bytes()), Response.load(tmp_path / "response")):
            assert torch.equal(again.residues, response.residues)
            assert again.residues.dtype == torch.int64
            for name in ("program_id", "key_id", "request_id", "lanes", "profile", "limbs", "batch"):
                assert getattr(again, name) == getattr(response, name)
        assert response.batch == 3
        assert "residues=[" in repr(response)

    def test_for_request(self) -> None:
        request = make_request()
        response = Response.for_request(request, residues(4, 6))
        assert (response.program_id, response.key_id) == (request.program_id, request.key_id)
        assert (response.request_id, response.lanes, response.profile) == (request.request_id, 2, "patent")

    @pytest.mark.parametrize(
        "changes",
        [
            {"residues": residues(6)},
            {"residues": residues(4, 6).double()},
            {"residues": residues(4, 7)},
            {"residues": residues(4, 0)},
            {"key_id": "0"},
            {"program_id": "0"},
            {"limbs": (0, 1)},
            {"limbs": (0, 2, 1)},
            {"limbs": (0, 1, 1)},
            {"limbs": (-1, 0, 1)},
            {"limbs": (0, 1, 4096)},
            {"lanes": 4},
            {"profile": ""},
        ],
    )
    def test_refuses(self, changes: dict[str, Any]) -> None:
        with pytest.raises(FormatError):
            dataclasses.replace(make_response(), **changes)

    @pytest.mark.parametrize("value", [-1, 2**31])
    def test_to_bytes_refuses_what_does_not_fit(self, value: int) -> None:
        response = make_response()
        response.residues[0, 0, 0] = value
        with pytest.raises(FormatError, match="outside 0 <= r"):
            response.to_bytes()


def repack(data: bytes, kind: str, edit: Callable[[dict[str, np.ndarray], dict[str, str]], None]) -> bytes:
    """The same container with edited content and a digest that fits it."""
    header = container.read_header(data)
    tensors = {
        name: np.frombuffer(
            data, {"I32": "<i4", "U8": "u1"}[info.dtype], offset=info.begin, count=int(np.prod(info.shape))
        )
        .reshape(info.shape)
        .copy()
        for name, info in header.tensors.items()
    }
    metadata = {k: v for k, v in header.metadata.items() if k not in ("format", "kind", "version", "digest")}
    edit(tensors, metadata)
    return container.pack(kind, tensors, metadata, allow_secret=True)


REQUEST = make_request().to_bytes()
RESPONSE = make_response((0, 2)).to_bytes()
READERS: dict[str, tuple[bytes, Callable[[bytes], Any]]] = {
    "request": (REQUEST, Request.from_bytes),
    "response": (RESPONSE, Response.from_bytes),
    "evaluation-key": (KEY.to_bytes(), EvaluationKey.from_bytes),
}


class TestHostileContent:
    """The digest fits: what remains is the validation of every field."""

    @pytest.mark.parametrize("value", [-1, 101, 2**31 - 1])
    @pytest.mark.parametrize("name", ["ciphertext", "public_key"])
    def test_residue_out_of_range(self, name: str, value: int) -> None:
        def edit(tensors: dict[str, np.ndarray], _: dict[str, str]) -> None:
            tensors[name][2, ..., 0] = value

        with pytest.raises(FormatError, match=f"{name} holds a value outside"):
            Request.from_bytes(repack(REQUEST, "request", edit))

    def test_negative_response(self) -> None:
        with pytest.raises(FormatError, match="negative"):
            Response.from_bytes(repack(RESPONSE, "response", lambda t, _: t["residues"].fill(-1)))

    def test_secrets_in_a_request(self) -> None:
        def edit(tensors: dict[str, np.ndarray], _: dict[str, str]) -> None:
            tensors["positions"] = np.zeros(3, "<i4")

        with pytest.raises(SecretFieldError, match="positions"):
            Request.from_bytes(repack(REQUEST, "request", edit))

    def test_moduli_of_another_key(self) -> None:
        def edit(tensors: dict[str, np.ndarray], _: dict[str, str]) -> None:
            tensors["moduli"][2] = 103

        with pytest.raises(MismatchError, match="key_id"):
            Request.from_bytes(repack(REQUEST, "request", edit))

    @pytest.mark.parametrize("count", [1, 2, 4])
    def test_other_number_of_moduli(self, count: int) -> None:
        def edit(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
            key = EvaluationKey(Moduli((*MODULI, 103)[:count]), 16, 256)
            tensors["moduli"] = np.array(key.moduli, "<i4")
            metadata.update(key.metadata())

        with pytest.raises(FormatError, match="ciphertext has 3 limbs"):
            Request.from_bytes(repack(REQUEST, "request", edit))

    @pytest.mark.parametrize("kind", READERS)
    @settings(max_examples=150, deadline=None)
    @given(data=st.data())
    def test_random_bytes_never_crash(self, kind: str, data: st.DataObject) -> None:
        valid, reader = READERS[kind]
        mutated = bytearray(valid)
        for _ in range(data.draw(st.integers(0, 4))):
            at = data.draw(st.integers(0, len(mutated)))
            cut = data.draw(st.integers(0, 12))
            mutated[at : at + cut] = data.draw(st.binary(max_size=12))
        if bytes(mutated) == valid:
            reader(bytes(mutated))
        else:
            with pytest.raises(McfheError):
                reader(bytes(mutated))

    @pytest.mark.parametrize("kind", READERS)
    @settings(max_examples=150, deadline=None)
    @given(data=st.data())
    def test_random_content_with_a_fitting_digest_never_crashes(self, kind: str, data: st.DataObject) -> None:
        valid, reader = READERS[kind]

        def edit(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
            if data.draw(st.booleans()):
                name = data.draw(st.sampled_from(sorted(metadata)))
                metadata[name] = data.draw(st.text(max_size=70) | st.integers().map(str) | st.just("0" * 64))
            name = data.draw(st.sampled_from(sorted(tensors)))
            action = data.draw(st.sampled_from(["value", "shape", "dtype", "drop", "keep"]))
            if action == "value" and tensors[name].size:
                at = data.draw(st.integers(0, tensors[name].size - 1))
                tensors[name].reshape(-1)[at] = data.draw(st.integers(-(2**31), 2**31 - 1))
            elif action == "shape":
                shape = data.draw(st.lists(st.integers(0, 4), max_size=6))
                tensors[name] = np.ones(shape, "<i4")
            elif action == "dtype":
                tensors[name] = tensors[name].astype(data.draw(st.sampled_from(["<i8", "u1", "<f4", "<f8"])))
            elif action == "drop":
                del tensors[name]

        try:
            mutated = repack(valid, kind, edit)
        except UnicodeEncodeError:  # a lone surrogate is not for any writer
            return
        try:
            message = reader(mutated)
        except McfheError:
            return
        assert reader(message.to_bytes()).key_id == message.key_id

    @pytest.mark.parametrize("kind", ["request", "response"])
    def test_memory_is_bounded_by_the_input(self, kind: str) -> None:
        """Valid, damaged and lying containers of 1 MB: never more than 8 times that, beyond a constant."""
        if kind == "request":
            valid = make_request(lanes=2, batch=20_000).to_bytes()
        else:
            valid = make_response(residues=residues(2, 40_000)).to_bytes()
        reader = READERS[kind][1]
        lying = [valid, valid[:-1], valid[:-8] + bytes(8), (2**40).to_bytes(8, "little") + valid[8:]]
        for shape in ([2**31, 2**31], [2**20] * 5, [0, 2**62]):
            header = sample_header(shape=shape, data_offsets=[0, len(valid)])
            header["__metadata__"]["kind"] = kind
            lying.append(with_digest(header, valid))
        for data in lying:
            tracemalloc.start()
            try:
                reader(data)
            except McfheError:
                pass
            finally:
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
            assert peak < 8 * len(valid) + (1 << 20)


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b'{"format":"mcfhe/client-spec"', "JSON text, such as a client spec"),
        (b"PK\x03\x04" + bytes(30), "a zip file, such as a checkpoint of torch.save"),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), "a PNG image"),
        (b"\xff\xd8\xff\xe0" + bytes(range(30)), "a JPEG image"),
    ],
)
def test_a_file_that_is_not_ours_is_called_what_it_is(tmp_path: Path, start: bytes, what: str) -> None:
    path = tmp_path / "mistaken"
    path.write_bytes(start)
    for read in (Request.load, Response.load, mcfhe.Client.load, mcfhe.load_program, mcfhe.models.load):
        with pytest.raises(FormatError, match=f"mistaken: this is {what}.*not a file or message of mcfhe"):
            read(path)


def test_a_message_of_the_other_scheme_is_called_what_it_is() -> None:
    with pytest.raises(MismatchError, match="response: response of the lattice scheme given, response of the modular"):
        check_kind("response", object.__new__(LatticeResponse), Response)
