"""The client end to end, against a linear server on plain integers."""

from __future__ import annotations

import dataclasses
import json
import stat
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcfhe.client import Client
from mcfhe.errors import CapacityError, DecryptionError, FormatError, ImageError, MismatchError, ParameterError
from mcfhe.graph.order import Order
from mcfhe.modular.keys import SecretKey
from mcfhe.modular.params import Moduli
from mcfhe.spec import DEFAULT_PROFILE, ClientSpec
from mcfhe.wire import Request, Response
from tests.modular_support import LinearServer, random_images

SERVER = LinearServer()
SHAPE = SERVER.spec.input_shape


def check_scores(client: Client, response: Response, expected: list[list[int]]) -> None:
    assert client.decrypt_integers(response) == expected
    denominator = client.profile.output_order.denominator(client.spec.amplification)
    scores = client.decrypt(response)
    assert scores.dtype == torch.float64
    assert scores.tolist() == [[float(Fraction(v, denominator)) for v in row] for row in expected]


@pytest.mark.parametrize("profile", ["patent", "hardened"])
@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("noise", [None, 0, 8])
def test_encrypted_scores_equal_the_oracle(profile: str, lanes: int, batch: int, noise: int | None) -> None:
    client = Client.generate(SERVER.spec, lanes=lanes, profile=profile, noise=noise)
    request, integers = client.encrypt(random_images(batch, SHAPE), return_integers=True)
    response = SERVER.evaluate(Request.from_bytes(request.to_bytes()))
    response = Response.from_bytes(response.to_bytes())
    check_scores(client, response, SERVER.evaluate_integers(integers))


@pytest.mark.parametrize("profile", ["patent", "hardened"])
def test_three_channels_and_many_limbs(profile: str) -> None:
    server = LinearServer((3, 3, 2), labels=4, growth=3**5600)
    client = Client.generate(server.spec, profile=profile, lanes=2, redundancy=3)
    assert len(client.evaluation_key.moduli) > 295
    request, integers = client.encrypt(random_images(2, (3, 3, 2)), return_integers=True)
    response = server.evaluate(request)
    response.residues[7] = 0
    kept = [p for p in range(len(client.evaluation_key.moduli)) if p != 250]
    partial = Response.for_request(request, response.residues[kept], tuple(kept))
    expected = server.evaluate_integers(integers)
    assert max(abs(v) for row in expected for v in row).bit_length() > 8800
    check_scores(client, Response.from_bytes(partial.to_bytes()), expected)


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(["patent", "hardened"]),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(0, 4),
    st.integers(12, 31),
)
def test_any_parameters(profile: str, lanes: int, batch: int, redundancy: int, bits: int) -> None:
    server = LinearServer((2, 2, 2), modulus_bits=bits, growth=12345)
    client = Client.generate(server.spec, lanes=lanes, profile=profile, redundancy=redundancy)
    request, integers = client.encrypt(random_images(batch, (2, 2, 2)), return_integers=True)
    check_scores(client, server.evaluate(request), server.evaluate_integers(integers))


def test_public_names_and_layout() -> None:
    client = Client.generate(SERVER.spec, lanes=3, profile="patent")
    moduli, positions = client.evaluation_key.moduli, client.secret_key.positions
    assert isinstance(moduli, Moduli)
    assert len(moduli) == len(positions)
    request, integers = client.encrypt(random_images(2, SHAPE), return_integers=True)
    assert request.ciphertext.shape == (len(moduli), *SHAPE, 6)
    assert request.public_key is not None
    assert request.public_key.shape == (len(moduli), 6)
    for p, (b, w) in enumerate(zip(moduli, positions, strict=True)):
        for image in range(2):
            true = request.ciphertext[p, ..., image * 3 + w].numpy()
            assert np.array_equal(true, (integers[image] % b).astype(np.int64))


def test_the_profile_without_a_name_is_the_hardened_one() -> None:
    client = Client.generate(SERVER.spec)
    assert client.secret_key.profile == client.encrypt(random_images(1, SHAPE)).profile == DEFAULT_PROFILE == "hardened"
    assert SecretKey.generate(amplification=16, scale=64, required_product=1 << 60).profile == "hardened"


def test_default_noise() -> None:
    assert Client.generate(SERVER.spec, profile="patent").secret_key.noise == 0
    assert Client.generate(SERVER.spec).secret_key.noise == 8
    less = dataclasses.replace(SERVER.spec.profiles["hardened"], max_noise=3)
    spec = dataclasses.replace(SERVER.spec, profiles=SERVER.spec.profiles | {"hardened": less})
    assert Client.generate(spec, profile="hardened").secret_key.noise == 3
    with pytest.raises(ParameterError, match=r"noise = 4 is outside 0\.\.3"):
        Client.generate(spec, profile="hardened", noise=4)


@pytest.mark.parametrize(
    "arguments",
    [
        {"lanes": 0},
        {"lanes": -4},
        {"lanes": 10**9},
        {"lanes": 4.0},
        {"profile": "secret"},
        {"noise": 9},
        {"noise": -1},
        {"noise": 0.5},
        {"redundancy": -1},
        {"redundancy": 10**9},
        {"moduli": (6, 35)},
        {"moduli": (101, 101)},
        {"salt": b"x"},
    ],
)
def test_refuses_parameters(arguments: dict[str, Any]) -> None:
    with pytest.raises(ParameterError):
        Client.generate(SERVER.spec, **arguments)


def test_small_basis_names_both_bit_counts() -> None:
    needed = SERVER.spec.profile(DEFAULT_PROFILE).required_bits(32)
    with pytest.raises(CapacityError, match=f"hold 14 bits, the program needs {needed} bits"):
        Client.generate(SERVER.spec, moduli=(101, 103))
    key = Client.generate(SERVER.spec).secret_key
    larger = LinearServer(growth=2**60).spec
    with pytest.raises(CapacityError):
        Client(larger, key)


def test_key_of_another_amplification_or_scale() -> None:
    key = Client.generate(SERVER.spec).secret_key
    with pytest.raises(ParameterError, match="amplification: the program prescribes 32, the key has 16"):
        Client(LinearServer(amplification=32).spec, key)
    with pytest.raises(ParameterError, match="scale: the program prescribes 128, the key has 64"):
        Client(LinearServer(scale_bits=7).spec, key)


def test_input_order_that_the_client_does_not_produce() -> None:
    profile = dataclasses.replace(SERVER.spec.profiles["patent"], input_order=Order(2, 12))
    spec = dataclasses.replace(SERVER.spec, profiles={"patent": profile})
    with pytest.raises(ParameterError, match="input order"):
        Client.generate(spec, profile="patent")
    with pytest.raises(ParameterError, match="profile 'hardened': choose one of patent"):
        Client.generate(spec)


@pytest.mark.parametrize(
    "images", [random_images(2, SHAPE).float(), random_images(2, (1, 5, 4)), random_images(2, SHAPE)[0]]
)
def test_refuses_images(images: torch.Tensor) -> None:
    with pytest.raises(ImageError, match=r"uint8 \[batch, 1, 4, 5\] expected"):
        Client.generate(SERVER.spec).encrypt(images)


def test_empty_batch_is_refused() -> None:
    with pytest.raises(ImageError, match="empty batch"):
        Client.generate(SERVER.spec).encrypt(random_images(0, SHAPE))


def test_byte_budget() -> None:
    with pytest.raises(ImageError, match="byte_budget"):
        Client.generate(SERVER.spec).encrypt(random_images(2, SHAPE), byte_budget=100)


class TestResponses:
    def setup_method(self) -> None:
        self.client = Client.generate(SERVER.spec, lanes=4, redundancy=2)
        self.request, self.integers = self.client.encrypt(random_images(2, SHAPE), return_integers=True)
        self.response = SERVER.evaluate(self.request)
        self.expected = SERVER.evaluate_integers(self.integers)

    def changed(self, **changes: Any) -> Response:
        return dataclasses.replace(self.response, **changes)

    def test_of_another_program(self) -> None:
        with pytest.raises(MismatchError, match="program_id is abababababab, c0ffee42c0ff expected") as caught:
            self.client.decrypt(self.changed(program_id="ab" * 32))
        assert "another program" in str(caught.value)

    def test_of_another_key(self) -> None:
        other = Client.generate(SERVER.spec, redundancy=2)
        with pytest.raises(MismatchError) as caught:
            other.decrypt(self.response)
        assert self.client.secret_key.key_id[:12] in str(caught.value)
        assert other.secret_key.key_id[:12] in str(caught.value)

    def test_of_another_request(self) -> None:
        assert self.client.decrypt_integers(self.response, request_id=self.request.request_id) == self.expected
        with pytest.raises(MismatchError, match="another request"):
            self.client.decrypt(self.response, request_id="0" * 32)

    @pytest.mark.parametrize(
        ("name", "value"),
        [("lanes", 2), ("profile", "patent"), ("limbs", (0, 1, 2, 3, 4)), ("limbs", (0, 1, 2, 3, 99))],
    )
    def test_of_another_form(self, name: str, value: object) -> None:
        if name == "limbs":
            assert isinstance(value, tuple)
            response = self.changed(limbs=value, residues=self.response.residues[:1].expand(len(value), -1, -1))
            with pytest.raises((MismatchError, DecryptionError)):
                self.client.decrypt(response)
            return
        with pytest.raises(MismatchError, match=name):
            self.client.decrypt(self.changed(**{name: value}))

    def test_with_other_labels_or_limbs(self) -> None:
        with pytest.raises(MismatchError, match="labels is 2, 3 expected"):
            self.client.decrypt(self.changed(residues=self.response.residues[:, :2]))
        with pytest.raises(MismatchError, match="'limbs' must name"):
            self.client.decrypt(self.changed(residues=self.response.residues[:-1]))

    def test_of_a_request_never_decrypted_by_luck(self) -> None:
        """A key with the same moduli, and so the same key id, but other lane positions finds only noise."""
        key = self.client.secret_key
        other = dataclasses.replace(key, positions=tuple((w + 1) % 4 for w in key.positions))
        with pytest.raises(DecryptionError):
            Client(SERVER.spec, other).decrypt(self.response)

    def test_damaged_limb_is_corrected_and_two_are_refused(self) -> None:
        self.response.residues[1] = 0
        check_scores(self.client, self.response, self.expected)
        self.response.residues[2] = 1
        with pytest.raises(DecryptionError):
            self.client.decrypt(self.response)

    @pytest.mark.parametrize("missing", [(0,), (0, 3), (1, 2)])
    def test_missing_limbs(self, missing: tuple[int, ...]) -> None:
        kept = tuple(p for p in range(self.response.residues.shape[0]) if p not in missing)
        response = self.changed(residues=self.response.residues[list(kept)], limbs=kept)
        check_scores(self.client, response, self.expected)

    def test_too_many_missing_limbs(self) -> None:
        kept = tuple(range(3, self.response.residues.shape[0]))
        response = self.changed(residues=self.response.residues[list(kept)], limbs=kept)
        with pytest.raises(DecryptionError, match="usable limbs arrived"):
            self.client.decrypt(response)
        with pytest.raises(DecryptionError, match="only 0 usable"):
            self.client.decrypt(self.changed(residues=self.response.residues[:0], limbs=()))

    def test_without_redundancy_every_single_residue_is_guarded(self) -> None:
        client = Client.generate(SERVER.spec, lanes=2)
        clean = SERVER.evaluate(client.encrypt(random_images(1, SHAPE)))
        for p, (b, w) in enumerate(zip(client.evaluation_key.moduli, client.secret_key.positions, strict=True)):
            for label in range(3):
                for shift in (1, b - 1, 12345):
                    residues = clean.residues.clone()
                    residues[p, label, w] = (residues[p, label, w] + shift) % b
                    with pytest.raises(DecryptionError, match="no label is returned"):
                        client.decrypt(dataclasses.replace(clean, residues=residues))


class TestFiles:
    @pytest.mark.parametrize("passphrase", [None, "open sesame"])
    def test_round_trip(self, tmp_path: Path, passphrase: str | None) -> None:
        client = Client.generate(SERVER.spec, profile="hardened", redundancy=1, user_key=bytes(32))
        client.save(tmp_path / "client", passphrase)
        assert stat.S_IMODE((tmp_path / "client").stat().st_mode) == 0o600
        again = Client.load(tmp_path / "client", passphrase)
        assert again.secret_key == client.secret_key
        assert again.spec.digest() == client.spec.digest()
        request, integers = client.encrypt(random_images(1, SHAPE), return_integers=True)
        check_scores(again, SERVER.evaluate(request), SERVER.evaluate_integers(integers))

    def test_key_file_and_spec_apart(self, tmp_path: Path) -> None:
        client = Client.generate(SERVER.spec)
        client.secret_key.save(tmp_path / "sk")
        spec = ClientSpec.from_json(client.spec.to_json())
        assert Client(spec, SecretKey.load(tmp_path / "sk")).secret_key == client.secret_key

    def test_refuses(self, tmp_path: Path) -> None:
        client = Client.generate(SERVER.spec)
        client.save(tmp_path / "client", "right")
        with pytest.raises(FormatError, match="wrong passphrase"):
            Client.load(tmp_path / "client", "wrong")
        client.secret_key.save(tmp_path / "sk")
        with pytest.raises(FormatError, match="kind 'secret-key' was given where 'client'"):
            Client.load(tmp_path / "sk")
        data = (tmp_path / "client").read_bytes()
        (tmp_path / "client").write_bytes(data[:-1])
        with pytest.raises(FormatError):
            Client.load(tmp_path / "client", "right")

    def test_user_key_rebuilds_the_client(self) -> None:
        client = Client.generate(SERVER.spec, user_key="correct horse", redundancy=2)
        again = Client.generate(SERVER.spec, user_key="correct horse", redundancy=2, salt=client.secret_key.salt)
        assert again.secret_key == client.secret_key
        assert again.evaluation_key.key_id == client.evaluation_key.key_id


def test_nothing_secret_shows() -> None:
    client = Client.generate(SERVER.spec, lanes=1024, user_key="canary passphrase")
    text = f"{client!r} {client} {client.secret_key!r} {client.evaluation_key!r}"
    text = text.replace(client.secret_key.key_id[:12], "").replace("1024", "")
    assert "canary" not in text
    assert client.secret_key.salt is not None
    assert client.secret_key.salt.hex() not in text
    assert str(list(client.secret_key.positions)) not in text
    assert str(client.secret_key.positions) not in text
    assert not any(str(b) in text for b in client.evaluation_key.moduli)


def test_messages_carry_nothing_secret() -> None:
    """The bytes of a request name the public values and nothing else."""
    client = Client.generate(SERVER.spec, user_key="canary passphrase", lanes=7, profile="patent")
    request = client.encrypt(random_images(1, SHAPE))
    data = request.to_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert set(header) == {"__metadata__", "ciphertext", "public_key", "moduli"}
    assert set(header["__metadata__"]) == {
        *("format", "kind", "version", "digest", "program_id", "key_id"),
        *("request_id", "lanes", "profile", "amplification", "scale"),
    }
    assert client.secret_key.salt is not None
    assert client.secret_key.salt not in data
    assert np.array(client.secret_key.positions, "<i4").tobytes() not in data
