"""Encryption against the definition on Python integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcfhe.errors import ImageError, ParameterError
from mcfhe.images import check_images
from mcfhe.modular import encrypt as module
from mcfhe.modular.crt import crt
from mcfhe.modular.csprng import RandomStream
from mcfhe.modular.encrypt import Encrypted, check_table, ciphertext_bytes, encrypt, encrypt_integers
from mcfhe.modular.keys import SecretKey
from mcfhe.modular.params import Moduli
from tests.modular_support import pixel_table, random_images


def make_key(profile: str = "patent", **changes: Any) -> SecretKey:
    values: dict[str, Any] = {"amplification": 16, "scale": 64, "required_product": 1 << 80, "profile": profile}
    return SecretKey.generate(**(values | changes))


def random_array(*shape: int) -> np.ndarray:
    return random_images(shape[0], (shape[1], shape[2], shape[3])).numpy()


def check(result: Encrypted, images: np.ndarray, table: tuple[tuple[int, ...], ...], key: SecretKey) -> None:
    """Every true lane is V mod b_p; in the patent profile every lane, decoy or true, is PK * PT mod b_p."""
    batch, channels, height, width = images.shape
    limbs, lanes = len(key.moduli), key.lanes
    assert result.ciphertext.dtype == np.int64
    assert result.ciphertext.flags.c_contiguous
    assert result.ciphertext.shape == (limbs, channels, height, width, batch * lanes)
    assert result.integers is not None
    assert result.integers.shape == images.shape
    amplification = key.amplification
    for image, channel, row, column in np.ndindex(images.shape):
        value = result.integers[image, channel, row, column]
        assert type(value) is int
        plain = table[channel][images[image, channel, row, column]]
        if key.profile == "hardened":
            assert 0 <= value - amplification * plain < max(1, key.noise)
        for limb, b in enumerate(key.moduli):
            lane = result.ciphertext[limb, channel, row, column, image * lanes : (image + 1) * lanes]
            assert lane[key.positions[limb]] == value % b
            if key.profile == "patent":
                assert result.public_key is not None
                public = result.public_key[limb, image * lanes : (image + 1) * lanes]
                assert lane.tolist() == [int(k) * plain % b for k in public]
    for limb, b in enumerate(key.moduli):
        assert ((result.ciphertext[limb] >= 0) & (result.ciphertext[limb] < b)).all()
    if key.profile == "patent":
        assert result.public_key is not None
        assert result.public_key.shape == (limbs, batch * lanes)
        true = np.stack([result.public_key[p].reshape(batch, lanes)[:, w] for p, w in enumerate(key.positions)])
        for image, value in enumerate(crt(true, key.moduli)):
            assert 0 <= value - amplification * key.scale < max(1, key.noise)
            expected = [table[c][u] * value for c in range(channels) for u in images[image, c].reshape(-1)]
            assert result.integers[image].reshape(-1).tolist() == expected
    else:
        assert result.public_key is None


@pytest.mark.parametrize("profile", ["patent", "hardened"])
@pytest.mark.parametrize("lanes", [1, 2, 5])
@pytest.mark.parametrize("noise", [0, 1, 8])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 1, 5, 4), (3, 2, 3, 2)])
def test_matches_the_definition(profile: str, lanes: int, noise: int, shape: tuple[int, int, int, int]) -> None:
    key = make_key(profile, lanes=lanes, noise=noise)
    images, table = random_array(*shape), pixel_table(shape[1], 64)
    check(encrypt(images, table, key, return_integers=True), images, table, key)


@pytest.mark.parametrize("profile", ["patent", "hardened"])
@pytest.mark.parametrize("moduli", [(3, 5, 7), (2, 9, 25), (2**31 - 1, 2**31 - 2)])
def test_edge_moduli(profile: str, moduli: tuple[int, ...]) -> None:
    """Moduli smaller than the noise, composite ones, 2 with odd factors, and the largest."""
    key = make_key(profile, moduli=moduli, required_product=1, amplification=67, scale=29, noise=33)
    images, table = random_array(2, 1, 4, 3), pixel_table(1, 29)
    result = encrypt(images, table, key, return_integers=True)
    assert result.integers is not None
    true = np.stack([result.ciphertext[p].reshape(1, 4, 3, 2, key.lanes)[..., w] for p, w in enumerate(key.positions)])
    for p, b in enumerate(Moduli(moduli)):
        assert np.array_equal(true[p].transpose(3, 0, 1, 2), (result.integers % b).astype(np.int64))


@pytest.mark.parametrize("profile", ["patent", "hardened"])
def test_chunks_change_nothing(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK_BYTES", 1)
    key = make_key(profile, noise=5)
    images, table = random_array(5, 2, 3, 3), pixel_table(2, 64)
    check(encrypt(images, table, key, return_integers=True), images, table, key)


def test_table_entries_beyond_int64() -> None:
    key = make_key("patent", noise=5)
    table = (tuple((u - 128) * 2**100 + u for u in range(256)),)
    images = random_array(1, 1, 3, 3)
    check(encrypt(images, table, key, return_integers=True), images, table, key)


@pytest.mark.parametrize("profile", ["patent", "hardened"])
def test_input_layouts(profile: str) -> None:
    """Views that are not contiguous are encrypted as what they show."""
    key, table = make_key(profile), pixel_table(2, 64)
    images = random_array(3, 4, 3, 2).transpose(0, 1, 3, 2)[:, ::-2]
    check(encrypt(images, table, key, return_integers=True), images, table, key)


@pytest.mark.parametrize("profile", ["patent", "hardened"])
def test_fresh_randomness_every_time(profile: str) -> None:
    key, table, images = make_key(profile), pixel_table(1, 64), random_array(1, 1, 4, 4)
    first, second = (encrypt(images, table, key).ciphertext for _ in range(2))
    true = [first[p, ..., w] == second[p, ..., w] for p, w in enumerate(key.positions)]
    assert np.all(true)  # no noise: the true lanes carry the same integers
    assert (first == second).mean() < 0.5  # a decoy repeats with probability about 2^-30, save where PT = 0


def test_patent_profile_has_one_public_key_an_image() -> None:
    key = make_key(noise=8, lanes=2)
    result = encrypt(random_array(200, 1, 1, 1), pixel_table(1, 64), key)
    assert result.public_key is not None
    assert result.integers is None
    true = np.stack([result.public_key[p].reshape(200, 2)[:, w] for p, w in enumerate(key.positions)])
    assert {value - 16 * 64 for value in crt(true, key.moduli)} == set(range(8))


def test_hardened_noise_is_drawn_per_pixel() -> None:
    key = make_key("hardened", noise=8)
    images = np.full((1, 1, 20, 20), 77, np.uint8)
    result = encrypt(images, pixel_table(1, 64), key, return_integers=True)
    assert result.integers is not None
    plain = pixel_table(1, 64)[0][77]
    assert {value - 16 * plain for value in result.integers.reshape(-1)} == set(range(8))


def test_byte_budget() -> None:
    key, images = make_key(lanes=4), random_array(10, 1, 3, 3)
    size = ciphertext_bytes(key, images.shape)
    assert size == encrypt(images, pixel_table(1, 64), key, byte_budget=size).ciphertext.nbytes
    with pytest.raises(ImageError, match="at most 9 at a time"):
        encrypt(images, pixel_table(1, 64), key, byte_budget=size - 1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-(2**200), 2**200), max_size=6), st.integers(1, 5))
def test_encrypt_integers(values: list[int], lanes: int) -> None:
    key = make_key(lanes=lanes, required_product=1 << 210)
    array = np.empty(len(values), object)
    array[:] = values
    residues = encrypt_integers(array, key, RandomStream.from_os())
    assert residues.shape == (len(key.moduli), len(values) * lanes)
    true = np.stack([residues[p].reshape(-1, lanes)[:, w] for p, w in enumerate(key.positions)])
    assert crt(true, key.moduli).tolist() == values


class TestImages:
    @pytest.mark.parametrize("images", [random_array(2, 1, 3, 4), torch.from_numpy(random_array(2, 1, 3, 4))])
    def test_accepts(self, images: np.ndarray | torch.Tensor) -> None:
        assert np.array_equal(check_images(images, (1, 3, 4)), np.asarray(images))

    @pytest.mark.parametrize(
        "images",
        [
            np.zeros((1, 3, 4), np.uint8),
            np.zeros((2, 3, 4), np.uint8),
            np.zeros((2, 1, 4, 3), np.uint8),
            np.zeros((2, 3, 3, 4), np.uint8),
            np.zeros((1, 2, 1, 3, 4), np.uint8),
            np.zeros((0, 1, 3, 4), np.uint8),
            np.zeros((2, 1, 3, 4), np.int64),
            np.zeros((2, 1, 3, 4), np.float32),
            np.zeros((2, 1, 3, 4), bool),
            torch.zeros(2, 1, 3, 4),
            torch.zeros(2, 1, 3, 4, dtype=torch.int8),
            torch.zeros(2, 1, 3, 4, dtype=torch.bfloat16),
            np.uint8(3),
            [[[[0]]]],
            None,
            "image",
        ],
    )
    def test_refuses(self, images: object) -> None:
        with pytest.raises(ImageError, match=r"uint8 \[batch, 1, 3, 4\] expected"):
            check_images(images, (1, 3, 4))


def test_table_shape() -> None:
    check_table(pixel_table(2, 64), (2, 1, 1))
    for table in (pixel_table(1, 64), ((0,) * 255, (0,) * 256)):
        with pytest.raises(ParameterError, match="2 rows of 256"):
            check_table(table, (2, 1, 1))
    with pytest.raises(ImageError, match="1 channels, the table has 2"):
        encrypt(random_array(1, 1, 2, 2), pixel_table(2, 64), make_key())
