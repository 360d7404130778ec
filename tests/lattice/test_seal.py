"""The boundary to SEAL: streams both ways, what is refused, and that nothing reaches a disk."""

from __future__ import annotations

import builtins
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from mcfhe.errors import FormatError, ParameterError
from mcfhe.graph.steps import Ring
from mcfhe.lattice import seal as boundary
from mcfhe.lattice.plan import make_ring
from mcfhe.lattice.seal import Seal
from tests.lattice.support import AnySeal, Oracle

RING = make_ring(64, 4)
SCALE = 2.0**20


@pytest.fixture(scope="module")
def small() -> AnySeal:
    return AnySeal(RING)


@pytest.fixture(scope="module")
def secret(small: AnySeal) -> Any:
    return small.secret(small.generate_secret())


def slots() -> np.ndarray:
    return np.random.default_rng(3).uniform(-1, 1, RING.degree // 2)


def test_fresh_ciphertexts_round_trip_and_decrypt(small: AnySeal, secret: Any) -> None:
    values = slots()
    residues = small.encrypt(small.encryptor(secret), values, SCALE)
    assert residues.shape == (4, 2 * RING.degree)
    assert (residues < np.array(RING.moduli, np.uint32)[:, None]).all()
    assert np.array_equal(small.residues(small.ciphertext(residues, SCALE)), residues)
    assert np.abs(small.decrypt(secret, residues, SCALE) - values).max() < 1e-3


def test_every_level_and_both_sizes_round_trip(small: AnySeal) -> None:
    rng = np.random.default_rng(4)
    for limbs in range(1, 5):
        for components in (2, 3):
            rows = [rng.integers(0, q, components * RING.degree, np.uint32) for q in RING.moduli[:limbs]]
            residues = np.stack(rows)
            ciphertext = small.ciphertext(residues, SCALE)
            assert (ciphertext.size(), ciphertext.coeff_modulus_size()) == (components, limbs)
            assert ciphertext.scale == SCALE
            assert tuple(ciphertext.parms_id()) == small.levels[limbs]
            assert np.array_equal(small.residues(ciphertext), residues)


def test_three_components_decrypt_as_the_square(small: AnySeal, secret: Any) -> None:
    import tenseal.sealapi as sealapi

    values = slots()
    first = small.ciphertext(small.encrypt(small.encryptor(secret), values, SCALE), SCALE)
    squared = sealapi.Ciphertext()
    sealapi.Evaluator(small.context).square(first, squared)
    residues = small.residues(squared)
    assert residues.shape == (4, 3 * RING.degree)
    assert np.abs(small.decrypt(secret, residues, SCALE**2) - values**2).max() < 1e-3


def test_secret_keys_round_trip(small: AnySeal) -> None:
    data = small.generate_secret()
    again = boundary._saved(small.secret(data))
    assert boundary._unwrapped(again) == boundary._unwrapped(data)
    assert small.generate_secret() != data
    residues = small.encrypt(small.encryptor(small.secret(data)), slots(), SCALE)
    assert np.abs(small.decrypt(small.secret(data), residues, SCALE) - slots()).max() < 1e-3


def test_relinearisation_keys_are_encryptions_of_the_squared_secret() -> None:
    """key[i] decrypts to p s^2 in limb i and to 0 in the others, up to the error of a fresh encryption."""
    from mcfhe.lattice.ring import ntt_tables
    from mcfhe.ops import ntt

    oracle = Oracle(RING)  # keys of one generator; its secret is not ours to see, so draw both here
    secret = oracle.seal.secret(data := oracle.seal.generate_secret())
    keys = oracle.seal.relinearisation_keys(secret)
    moduli = np.array([*RING.moduli, RING.special])
    assert keys.shape == (4, 2, 5, RING.degree)
    assert ((keys >= 0) & (keys < moduli[:, None])).all()
    body = boundary._unwrapped(data)
    s = np.frombuffer(body[-8 * 5 * RING.degree :], "<u8").astype(np.int64).reshape(5, RING.degree)
    import torch

    for digit in range(4):
        phase = (keys[digit, 0] + keys[digit, 1] * s) % moduli[:, None]
        phase[digit] = (phase[digit] - RING.special * (s[digit] * s[digit] % moduli[digit])) % moduli[digit]
        tables = ntt_tables(moduli.tolist(), RING.degree)
        error = ntt(torch.from_numpy(phase), tables, torch.from_numpy(moduli), inverse=True).numpy()
        error = np.where(error > moduli[:, None] // 2, error - moduli[:, None], error)
        assert np.abs(error).max() <= 21  # SEAL's bound: 6 sigma
        assert (error == error[0]).all()
        assert error.any()


def test_refuses_rings() -> None:
    good = make_ring(4096, 2)
    assert Seal(good).levels.keys() == {1, 2}
    with pytest.raises(ParameterError, match=r"121 bits at ring degree 4096: less than 128 bits .* allows 109"):
        Seal(make_ring(4096, 3))
    with pytest.raises(ParameterError, match="SEAL refuses n = 4096"):
        Seal(Ring(4096, (good.moduli[0], good.moduli[0]), good.special))
    with pytest.raises(ParameterError, match="SEAL refuses n = 4096"):
        Seal(Ring(4096, (1073741827, good.moduli[0]), good.special))  # a prime, but no 8192nd root of unity


def test_refuses_residues_and_shapes(small: AnySeal) -> None:
    good = np.zeros((3, 2 * RING.degree), np.uint32)
    good[:, -1] = 1
    small.ciphertext(good, SCALE)
    large = good.copy()
    large[1, 5] = RING.moduli[1]
    for residues in (large, good[:, :-1], good[:0], np.zeros((6, 2 * RING.degree), np.uint32)):
        with pytest.raises(FormatError, match=r"SEAL refuses|no level of this ring"):
            small.ciphertext(residues, SCALE)


def test_refuses_streams_of_another_ring_or_kind(small: AnySeal, secret: Any) -> None:
    other = AnySeal(make_ring(64, 3))
    with pytest.raises(FormatError, match="secret key: SEAL refuses it"):
        other.secret(boundary._saved(secret))
    ciphertext = boundary._saved(small.ciphertext(np.ones((2, 128), np.uint32), SCALE))
    with pytest.raises(FormatError, match="secret key: SEAL refuses it"):
        small.secret(ciphertext)
    with pytest.raises(FormatError, match="degree 128 expected"):
        AnySeal(make_ring(128, 2))._polynomials(boundary._Reader(boundary._unwrapped(ciphertext)))


def test_refuses_damaged_streams(small: AnySeal) -> None:
    """Whatever happens to a stream: FormatError, or residues of the same shape (SEAL's streams have no digest)."""
    saved = boundary._saved(small.ciphertext(np.arange(256, dtype=np.uint32).reshape(2, 128), SCALE))
    plain = boundary._wrapped(boundary._unwrapped(saved))

    def read(data: bytes) -> Any:
        return small._polynomials(boundary._Reader(boundary._unwrapped(data)))

    assert np.array_equal(read(plain)[0], read(saved)[0])
    random = Random(7)
    for data in (saved, plain):
        for end in [*range(60), *(random.randrange(len(data)) for _ in range(40))]:
            with pytest.raises(FormatError):
                read(data[:end])
        for _ in range(200):
            changed = bytearray(data)
            for _ in range(random.randint(1, 4)):
                changed[random.randrange(min(len(data), 120))] ^= 1 << random.randrange(8)
            with suppress(FormatError):
                assert read(bytes(changed))[0].ndim == 3
    array = boundary._wrapped(struct.pack("<Q", 3) + bytes(24))
    short = boundary._wrapped(boundary._unwrapped(plain)[: boundary._CIPHERTEXT.size] + array)
    with pytest.raises(FormatError, match="is it seeded"):
        read(short)


@pytest.mark.parametrize("size", [0, 1, 5])
def test_refuses_truncated_secret_keys(small: AnySeal, size: int) -> None:
    data = small.generate_secret()
    with pytest.raises(FormatError, match="secret key: SEAL refuses it"):
        small.secret(data[: len(data) * size // 6])


def test_nothing_is_written_to_a_disk(
    small: AnySeal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every path that SEAL or we open is one of an anonymous file in memory; the directory stays empty."""
    opened: list[str] = []
    original: Callable[..., Any] = builtins.open

    def watching(file: Any, *arguments: Any, **keywords: Any) -> Any:
        opened.append(str(file))
        return original(file, *arguments, **keywords)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(builtins, "open", watching)
    secret = small.secret(small.generate_secret())
    residues = small.encrypt(small.encryptor(secret), slots(), SCALE)
    small.decrypt(secret, residues, SCALE)
    small.relinearisation_keys(secret)
    monkeypatch.undo()
    paths = [path for path in opened if not path.isdigit()]
    assert paths
    assert all(path.startswith("/proc/self/fd/") for path in paths)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_missing_wheel_and_missing_memory_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.memfd_create")
    with pytest.raises(ParameterError, match="needs Linux"):
        AnySeal(RING).generate_secret()
    monkeypatch.undo()
    monkeypatch.setitem(__import__("sys").modules, "tenseal.sealapi", None)
    assert not boundary.available()
    with pytest.raises(ParameterError, match=r"pip install 'mcfhe\[lattice\]'"):
        Seal(make_ring(4096, 2))
