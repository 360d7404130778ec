"""Secrets are overwritten in memory when they are done with, as far as Python holds them in memory of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcfhe import keyfile
from mcfhe.client import Client
from mcfhe.errors import FormatError, ParameterError
from mcfhe.modular import csprng, keys
from mcfhe.modular.csprng import RandomStream
from mcfhe.modular.keys import SecretKey
from mcfhe.wiping import wipe
from tests.modular_support import LinearServer, random_images

SERVER = LinearServer(growth=1 << 200)
SHAPE = (1, 4, 5)


class Seen:
    """Every buffer that passed through ``wipe``, and what was in it before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.contents: list[bytes] = []
        self.buffers: list[Any] = []
        for module in (keyfile, keys, csprng):
            monkeypatch.setattr(module, "wipe", self)

    def __call__(self, *buffers: Any) -> None:
        self.contents += [bytes(buffer) for buffer in buffers]
        self.buffers += buffers
        wipe(*buffers)

    def overwritten(self) -> bool:
        return all(not any(bytes(buffer)) for buffer in self.buffers)


def test_wipe() -> None:
    data, array = bytearray(b"secret"), np.arange(1, 5)
    part = array[1:3]
    wipe(data, part)
    assert data == bytes(6)
    assert array.tolist() == [1, 0, 0, 4]


def test_close_overwrites_the_positions_and_ends_the_key() -> None:
    client = Client.generate(SERVER.spec, lanes=1000)
    request = client.encrypt(random_images(1, SHAPE))
    response = SERVER.evaluate(request)
    held = client.secret_key.lane_positions
    assert held.any()
    assert not held.base
    with client as inside:
        assert inside is client
        assert not client.secret_key.closed
    assert not held.any()
    assert client.secret_key.closed
    client.close()
    for use in (
        lambda: client.secret_key.positions,
        lambda: client.encrypt(random_images(1, SHAPE)),
        lambda: client.decrypt(response),
        client.secret_key.to_bytes,
    ):
        with pytest.raises(ParameterError, match="closed; load or generate it again"):
            use()
    assert request.key_id == client.secret_key.key_id  # what is public stays
    assert "closed" not in repr(client)


def test_a_key_has_positions_of_its_own() -> None:
    key = SecretKey.generate(amplification=16, scale=64, required_product=1 << 100)
    given = np.array(key.positions)
    own = SecretKey(key.evaluation_key, given, key.lanes, key.profile, key.noise)  # type: ignore[arg-type]
    given[:] = 0
    assert own.positions == key.positions
    with key:
        pass
    assert any(own.positions) or own.lanes == 1 or len(own.positions) < 8


@pytest.mark.parametrize("wrong", [(0.5, 1.0, 2.0, 1.0), "0123", ((0, 1),), None, ()])
def test_positions_that_are_no_lane_numbers(wrong: Any) -> None:
    key = SecretKey.generate(amplification=16, scale=64, required_product=1 << 100)
    with pytest.raises(ParameterError, match=r"positions: 4 lane numbers in 0\.\.3 expected"):
        SecretKey(key.evaluation_key, wrong, 4, key.profile, key.noise)


@pytest.mark.parametrize("passphrase", [None, "correct horse"])
def test_what_a_file_was_read_into_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passphrase: str | None
) -> None:
    key = SecretKey.generate(amplification=16, scale=64, required_product=1 << 300, lanes=1000)
    seen = Seen(monkeypatch)
    key.save(tmp_path / "key", passphrase)
    positions = np.array(key.positions, "<i4").tobytes()
    assert positions in seen.contents  # the copy made for writing
    seen.contents.clear()
    assert SecretKey.load(tmp_path / "key", passphrase) == key
    assert any(positions in content for content in seen.contents)  # the file, or what the passphrase opened
    if passphrase:
        derived = bytes(keyfile.scrypt(b"correct horse", bytes(16)))
        assert len(derived) == 32
        assert sum(len(content) == 32 for content in seen.contents) == 1  # the key from the passphrase
    assert seen.overwritten()


def test_refused_files_are_overwritten_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client.generate(SERVER.spec)
    client.save(tmp_path / "open")
    client.save(tmp_path / "closed", "right")
    seen = Seen(monkeypatch)
    with pytest.raises(ParameterError, match="not protected"):
        Client.load(tmp_path / "open", "right")
    with pytest.raises(FormatError, match="wrong passphrase"):
        Client.load(tmp_path / "closed", "wrong")
    sizes = {path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes <= {len(content) for content in seen.contents}
    assert seen.overwritten()


def test_seeds_and_user_keys_are_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen(monkeypatch)
    user_key = bytes(range(1, 33))
    key = SecretKey.generate(amplification=16, scale=64, required_product=1 << 100, lanes=200, user_key=user_key)
    assert user_key in seen.contents
    assert np.array(key.positions, np.int64).tobytes() in seen.contents
    held = zip(seen.buffers, seen.contents, strict=True)
    seeds = [content for buffer, content in held if isinstance(buffer, bytearray) and content != user_key]
    assert len(seeds) == 2  # of the moduli and of the positions
    assert seen.overwritten()
    again = SecretKey.generate(
        amplification=16, scale=64, required_product=1 << 100, lanes=200, user_key=bytearray(user_key), salt=key.salt
    )
    assert again == key


def test_a_stream_outlives_its_seed() -> None:
    seed = bytearray(range(32))
    stream, other = RandomStream(seed), RandomStream(bytes(range(32)))
    wipe(seed)
    for size in (10, 1 << 17):
        assert (stream.random_bytes(size) == other.random_bytes(size)).all()
