"""Key generation, derivation from a user key, key files."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sympy
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from hypothesis import given, settings
from hypothesis import strategies as st

from mcfhe import container
from mcfhe.errors import CapacityError, FormatError, McfheError, MismatchError, ParameterError, SecretFieldError
from mcfhe.modular.keys import EvaluationKey, SecretKey
from mcfhe.modular.params import Moduli

MODULI = Moduli([101, 103, 107])
CANARY_USER_KEY = "canary passphrase 7141"


def generate(**changes: Any) -> SecretKey:
    return SecretKey.generate(**({"amplification": 16, "scale": 256, "required_product": 1 << 200} | changes))


def small_key(**changes: Any) -> SecretKey:
    values: dict[str, Any] = {
        "evaluation_key": EvaluationKey(MODULI, 16, 256),
        "positions": (3, 0, 2),
        "lanes": 4,
        "profile": "hardened",
        "noise": 8,
        "redundancy": 1,
    }
    return SecretKey(**(values | changes))


class TestGenerate:
    @pytest.mark.parametrize("redundancy", [0, 1, 5])
    @pytest.mark.parametrize("bits", [12, 20, 30, 31])
    def test_smallest_limbs_hold_the_required_product(self, bits: int, redundancy: int) -> None:
        required = (1 << 400) + 12345
        key = generate(required_product=required, modulus_bits=bits, redundancy=redundancy)
        ascending = sorted(key.moduli)
        assert math.prod(ascending[: len(ascending) - redundancy]) > required
        assert all(b.bit_length() == bits for b in key.moduli)
        # One limb less would not do: the basis stops growing as soon as it may.
        fewer = sorted(key.moduli[:-1])
        assert math.prod(fewer[: max(0, len(fewer) - redundancy)]) <= required

    def test_thirty_bit_limbs_waste_little(self) -> None:
        assert len(generate(required_product=1 << (16 * 30 - 4)).moduli) == 16

    def test_positions_are_uniform_over_lanes(self) -> None:
        key = generate(required_product=1 << 30_000, lanes=5)
        counts = Counter(key.positions)
        assert set(counts) == set(range(5))
        assert all(abs(n - len(key.moduli) / 5) < 100 for n in counts.values())  # over 7 standard deviations

    def test_keys_differ(self) -> None:
        assert generate().moduli != generate().moduli

    def test_one_lane(self) -> None:
        assert set(generate(lanes=1).positions) == {0}

    @pytest.mark.parametrize(
        "changes",
        [
            {"lanes": 0},
            {"lanes": -1},
            {"lanes": 1025},
            {"lanes": 2.0},
            {"lanes": True},
            {"profile": "plain"},
            {"noise": -1},
            {"noise": 9},
            {"redundancy": -1},
            {"redundancy": 5000},
            {"modulus_bits": 1},
            {"modulus_bits": 32},
            {"amplification": 0},
            {"scale": 0},
            {"scale": 2**31},
            {"salt": b"salt"},
            {"moduli": (6, 35), "required_product": 1},
            {"user_key": ""},
            {"user_key": b""},
            {"user_key": 5},
            {"user_key": b"x" * 32, "salt": b""},
            {"user_key": b"x" * 32, "salt": b"x" * 65},
        ],
    )
    def test_refuses(self, changes: dict[str, Any]) -> None:
        with pytest.raises(ParameterError):
            generate(**changes)

    def test_narrow_primes_run_out(self) -> None:
        with pytest.raises(CapacityError, match=r"modulus_bits = 8.* bits, the program needs 201 bits"):
            generate(modulus_bits=8)

    def test_custom_moduli(self) -> None:
        assert generate(moduli=(101, 103), required_product=101 * 103 - 1).moduli == (101, 103)
        assert generate(moduli=(2, 9), required_product=17, amplification=5, scale=7).moduli == (2, 9)
        with pytest.raises(CapacityError, match=r"hold 14 bits.*needs 14 bits"):
            generate(moduli=(101, 103), required_product=101 * 103)


class TestUserKey:
    @pytest.mark.parametrize(
        ("user_key", "derivation"),
        [(bytes(range(32)), "hkdf"), (b"short", "scrypt+hkdf"), (CANARY_USER_KEY, "scrypt+hkdf")],
    )
    def test_same_key_and_salt_reproduce_everything(self, user_key: bytes | str, derivation: str) -> None:
        first = generate(user_key=user_key)
        again = generate(user_key=user_key, salt=first.salt)
        assert first == again
        assert first.derivation == derivation
        assert first.salt is not None
        assert len(first.salt) == 16
        other = generate(user_key=user_key, salt=bytes(16))
        assert other.moduli != first.moduli

    def test_parameters_separate_keys(self) -> None:
        common: dict[str, Any] = {"user_key": bytes(32), "salt": b"salt"}
        bases = [generate(**common, **c).moduli for c in ({}, {"lanes": 5}, {"scale": 2}, {"modulus_bits": 31})]
        assert len({b for basis in bases for b in basis}) == sum(len(basis) for basis in bases)

    def test_known_answer(self) -> None:
        """Pins the derivation: a change here locks every holder of a user key out of their data."""
        key = generate(user_key=bytes(range(32)), salt=b"0123456789abcdef", lanes=7)
        digest = hashlib.sha256(repr((tuple(key.moduli), key.positions)).encode()).hexdigest()
        assert digest == "f5d214389c355ddf21b530a3c1c7067477f6c255c447e31d0bb91de889761a0b"

    def test_derivation_written_down_a_second_time(self) -> None:
        """What another language's client has to do, on plain Python integers."""
        user_key, salt, lanes, scale = bytes(range(1, 33)), b"salt", 5, 256
        info = f"lanes={lanes},bits=30,a=16,scale={scale},redundancy=0".encode()

        def words(label: bytes) -> Iterator[int]:
            seed = HKDF(algorithm=hashes.SHA256(), length=32, salt=salt, info=label + info).derive(user_key)
            encryptor = Cipher(algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor()
            while True:
                yield int.from_bytes(encryptor.update(bytes(4)), "little")

        low, basis, product = (1 << 30) - (1 << 27), [], 1
        for word in words(b"mcfhe/keygen/1/moduli/"):
            candidate = low + 1 + 2 * (word & ((1 << 26) - 1))
            if product > 1 << 200:
                break
            if candidate not in basis and sympy.isprime(candidate):
                basis.append(candidate)
                product *= candidate
        stream = words(b"mcfhe/keygen/1/positions/")
        positions = [next(stream) & 7 for _ in basis]
        while bad := [i for i, w in enumerate(positions) if w >= lanes]:
            for i in bad:
                positions[i] = next(stream) & 7

        key = generate(user_key=user_key, salt=salt, lanes=lanes, scale=scale)
        assert key.moduli == tuple(basis)
        assert key.positions == tuple(positions)

    def test_unicode_forms_agree(self) -> None:
        assert generate(user_key="caf\u00e9", salt=b"s") == generate(user_key="cafe\u0301", salt=b"s")

    def test_scrypt_cost(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[dict[str, int]] = []

        def spy(**arguments: Any) -> Scrypt:
            seen.append(arguments)
            return Scrypt(**arguments)

        monkeypatch.setattr("mcfhe.keyfile.Scrypt", spy)
        generate(user_key="pass")
        assert [(c["n"] >= 1 << 15, c["r"] >= 8, c["p"] >= 1) for c in seen] == [(True, True, True)]


class TestEvaluationKey:
    def test_bytes_round_trip(self, tmp_path: Path) -> None:
        key = generate().evaluation_key
        assert EvaluationKey.from_bytes(key.to_bytes()) == key
        key.save(tmp_path / "ek")
        assert EvaluationKey.load(tmp_path / "ek") == key

    def test_key_id_is_public(self) -> None:
        key = EvaluationKey(MODULI, 16, 256)
        numbers = np.array([16, 256, 101, 103, 107], "<u8").tobytes()
        assert key.key_id == hashlib.sha256(b"mcfhe/evaluation-key/1\0" + numbers).hexdigest()
        assert small_key().key_id == small_key(positions=(0, 0, 0)).key_id == key.key_id
        assert len({EvaluationKey(MODULI, a, s).key_id for a, s in ((16, 256), (256, 16), (1, 4096))}) == 3

    @pytest.mark.parametrize(("moduli", "a", "scale"), [((6,), 1, 4), ((9, 2), 3, 1), ((7,), 2**21, 1), ((7,), 1, 0)])
    def test_refuses(self, moduli: tuple[int, ...], a: int, scale: int) -> None:
        with pytest.raises(ParameterError):
            EvaluationKey(Moduli(moduli), a, scale)

    def test_accepts_two_with_odd_factors(self) -> None:
        assert EvaluationKey(Moduli((2, 9)), 5, 7).moduli == (2, 9)

    @pytest.mark.parametrize(
        ("changes", "error"),
        [
            ({"amplification": "3"}, MismatchError),
            ({"amplification": "03"}, FormatError),
            ({"amplification": "-3"}, FormatError),
            ({"amplification": "9" * 5000}, FormatError),
            ({"scale": "\u0663"}, FormatError),
            ({"scale": "101"}, FormatError),
            ({"key_id": "0" * 64}, MismatchError),
            ({"key_id": "A" * 64}, FormatError),
            ({"positions": "0"}, SecretFieldError),
            ({"note": "x"}, FormatError),
        ],
    )
    def test_hostile_metadata(self, changes: dict[str, str], error: type[McfheError]) -> None:
        key = EvaluationKey(MODULI, 16, 256)
        tensors = {"moduli": np.array(MODULI, "<i4")}
        data = container.pack("evaluation-key", tensors, key.metadata() | changes, allow_secret=True)
        with pytest.raises(error):
            EvaluationKey.from_bytes(data)

    @pytest.mark.parametrize("moduli", [[6, 3], [1], [0], [-5], [101, 101]])
    def test_hostile_moduli(self, moduli: list[int]) -> None:
        metadata = EvaluationKey(MODULI, 1, 1).metadata()
        data = container.pack("evaluation-key", {"moduli": np.array(moduli, "<i4")}, metadata)
        with pytest.raises(FormatError, match="moduli"):
            EvaluationKey.from_bytes(data)


class TestSecretKeyFiles:
    @pytest.mark.parametrize("passphrase", [None, "open sesame", b"\x00\xff"])
    @pytest.mark.parametrize("user_key", [None, bytes(32)])
    def test_round_trip(self, tmp_path: Path, passphrase: str | bytes | None, user_key: bytes | None) -> None:
        key = generate(user_key=user_key, noise=3, redundancy=2, profile="hardened")
        key.save(tmp_path / "sk", passphrase)
        assert SecretKey.load(tmp_path / "sk", passphrase) == key

    @pytest.mark.parametrize("passphrase", [None, "open sesame"])
    def test_mode_is_0600_whatever_was_there(self, tmp_path: Path, passphrase: str | None) -> None:
        path = tmp_path / "sk"
        path.write_text("old")
        path.chmod(0o666)
        previous = os.umask(0)
        try:
            small_key().save(path, passphrase)
        finally:
            os.umask(previous)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_mode_is_0600_from_creation(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        modes: list[int] = []
        real = os.fsync

        def spy(handle: int) -> None:
            modes.append(stat.S_IMODE(os.fstat(handle).st_mode))
            real(handle)

        monkeypatch.setattr(os, "fsync", spy)
        monkeypatch.setattr(os, "chmod", lambda *_: pytest.fail("a file that needs chmod was open to others before it"))
        small_key().save(tmp_path / "sk")
        assert modes[0] == 0o600

    def test_sealed_file_shows_neither_key_nor_basis(self, tmp_path: Path) -> None:
        key = generate(user_key=CANARY_USER_KEY)
        key.save(tmp_path / "sk", "open sesame")
        data = (tmp_path / "sk").read_bytes()
        assert key.salt is not None
        for secret in (np.array(key.moduli, "<i4").tobytes(), np.array(key.positions, "<i4").tobytes(), key.salt):
            assert secret not in data
        assert set(container.read_header(data).tensors) == {"sealed", "kdf_salt", "nonce"}

    def test_wrong_or_missing_or_superfluous_passphrase(self, tmp_path: Path) -> None:
        small_key().save(tmp_path / "sealed", "right")
        small_key().save(tmp_path / "plain")
        with pytest.raises(FormatError, match="wrong passphrase"):
            SecretKey.load(tmp_path / "sealed", "wrong")
        with pytest.raises(ParameterError, match="protected by a passphrase"):
            SecretKey.load(tmp_path / "sealed")
        with pytest.raises(ParameterError, match="not protected"):
            SecretKey.load(tmp_path / "plain", "right")
        with pytest.raises(ParameterError, match="empty"):
            small_key().save(tmp_path / "other", "")
        assert not (tmp_path / "other").exists()

    def test_every_byte_of_a_sealed_file_is_authenticated(self, tmp_path: Path) -> None:
        """Also when the digest is computed anew: AES-GCM and its associated data notice."""
        small_key().save(tmp_path / "sk", "right")
        content = container.unpack(
            (tmp_path / "sk").read_bytes(),
            "secret-key",
            {name: container.TensorField("U8", ((1, 1 << 20),)) for name in ("sealed", "kdf_salt", "nonce")},
            ("protection",),
            allow_secret=True,
        )
        for name in content.tensors:
            tensors = {key: value.copy() for key, value in content.tensors.items()}
            tensors[name][-1] ^= 1
            data = container.pack("secret-key", tensors, content.metadata, allow_secret=True)
            (tmp_path / "sk").write_bytes(data)
            with pytest.raises(FormatError, match="wrong passphrase, or the file was altered"):
                SecretKey.load(tmp_path / "sk", "right")

    def test_is_refused_where_secrets_have_no_place(self, tmp_path: Path) -> None:
        for passphrase in (None, "right"):
            small_key().save(tmp_path / "sk", passphrase)
            with pytest.raises(SecretFieldError):
                EvaluationKey.load(tmp_path / "sk")

    @pytest.mark.parametrize(
        "changes",
        [
            {"positions": np.array([4, 0, 0], "<i4")},
            {"positions": np.array([-1, 0, 0], "<i4")},
            {"positions": np.array([0, 0], "<i4")},
            {"moduli": np.array([101, 103, 101], "<i4")},
            {"salt": np.zeros(8, "u1")},
            {"salt": np.zeros(65, "u1")},
            {"other": np.zeros(8, "u1")},
        ],
    )
    def test_hostile_tensors(self, tmp_path: Path, changes: dict[str, np.ndarray]) -> None:
        tensors, metadata = small_key().to_parts()
        metadata["protection"] = "none"
        (tmp_path / "sk").write_bytes(container.pack("secret-key", tensors | changes, metadata, allow_secret=True))
        with pytest.raises(FormatError):
            SecretKey.load(tmp_path / "sk")

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("lanes", "0"),
            ("lanes", "2"),
            ("noise", "9"),
            ("redundancy", "3"),
            ("profile", "plain"),
            ("derivation", "hkdf"),
            ("protection", "rot13"),
        ],
    )
    def test_hostile_metadata(self, tmp_path: Path, name: str, value: str) -> None:
        tensors, metadata = small_key().to_parts()
        data = container.pack("secret-key", tensors, metadata | {"protection": "none", name: value}, allow_secret=True)
        (tmp_path / "sk").write_bytes(data)
        with pytest.raises(FormatError):
            SecretKey.load(tmp_path / "sk")


class TestNothingSecretShows:
    def test_repr(self) -> None:
        # Lanes and positions that could not occur in the text by chance.
        positions = (919, 929, 937)
        key = small_key(lanes=1000, positions=positions, derivation="hkdf", salt=b"canary-salt")
        for text in (repr(key), str(key), f"{key}", repr([key]), repr(key.evaluation_key), str(key.evaluation_key)):
            assert not any(str(secret) in text for secret in (*positions, *MODULI))
            assert "canary" not in text

    @settings(deadline=None)
    @given(st.lists(st.integers(900, 1100), min_size=3, max_size=3))
    def test_exceptions(self, positions: list[int]) -> None:
        try:
            small_key(lanes=1000, positions=tuple(positions))
        except ParameterError as error:
            text = str(error).replace("999", "")  # the highest lane number, which is public
            assert not any(str(w) in text for w in positions if w != 999)

    def test_errors_from_user_keys(self) -> None:
        for changes in ({"lanes": 0}, {"required_product": 1 << 200, "modulus_bits": 8}, {"salt": b""}):
            with pytest.raises(ParameterError) as caught:
                generate(**({"user_key": CANARY_USER_KEY, "salt": b"salt"} | changes))
            assert "canary" not in str(caught.value)
            assert caught.value.__cause__ is None

    def test_key_is_frozen(self) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            small_key().lanes = 9  # type: ignore[misc]


def test_wire_loads_no_secret_key_code() -> None:
    code = "import sys, mcfhe.wire; print([m for m in sys.modules if m in ('mcfhe.modular.keys', 'mcfhe.keyfile')])"
    root = str(Path(__file__).parent.parent)
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": root}
    )
    assert result.stdout.strip() == "[]"
