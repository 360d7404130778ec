"""Client and server run, and are made to fail: nothing either writes or sends shows a position, user key or phrase."""

from __future__ import annotations

import base64
import json
import logging
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

import mcfhe
from mcfhe.modular import decrypt
from mcfhe.server import Server
from tests.canaries import Canaries, Numbers, Watch
from tests.service.network import Proxy
from tests.service.support import BINARY, EVALUATE, PROGRAM, Live, encrypt, images, new_client

PROGRAM_FILE = Path(__file__).parent.parent / "vectors" / "program.mcfhe"
LANES = 251
TOKEN = "token-" + secrets.token_hex(16)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A server process with every message logged; its URL and the folder of what it prints."""
    folder = tmp_path / "server"
    folder.mkdir()
    (tmp_path / "tokens").write_text(TOKEN + "\n")
    command = (
        "serve",
        PROGRAM_FILE,
        "--port",
        0,
        "--json",
        "--log-level",
        "debug",
        "--token-file",
        tmp_path / "tokens",
    )
    with (folder / "stderr").open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "mcfhe", *map(str, command)], cwd=folder, stdout=subprocess.PIPE, stderr=errors
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        (folder / "stdout").write_bytes(line)
        yield json.loads(line)["url"], folder
        process.terminate()
        with (folder / "stdout").open("ab") as rest:
            rest.write(process.communicate(timeout=20)[0])


def test_nothing_secret_is_written_or_sent(
    served: tuple[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    url, folder = served
    inputs, work = tmp_path / "inputs", tmp_path / "work"
    inputs.mkdir()
    work.mkdir()
    monkeypatch.chdir(work)
    for name in ("TMPDIR", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(work))
    monkeypatch.setenv("MCFHE_TRACEBACK", "1")
    monkeypatch.setenv("MCFHE_TOKEN", TOKEN)
    caplog.set_level(logging.DEBUG)
    phrase, user_key = "canary " + secrets.token_hex(12), secrets.token_bytes(32)
    (inputs / "phrase").write_text(phrase + "\n")
    (inputs / "wrong").write_text("not the phrase\n")
    (inputs / "user.key").write_bytes(user_key)
    (inputs / "spec.json").write_text(PROGRAM.client_spec().to_json())
    Image.fromarray(images(1)[0, 0]).save(inputs / "image.png")
    protected = ("--passphrase-file", inputs / "phrase")
    watch = Watch(capfd, caplog)
    answers = b""
    with Proxy(int(url.rpartition(":")[2])) as proxy:
        for name, profile in (("key", "hardened"), ("letter", "patent")):
            watch.run(
                *("keygen", inputs / "spec.json", "--out", name, "--lanes", LANES, "--redundancy", 12, "--json"),
                *("--profile", profile, "--user-key-file", inputs / "user.key", *protected),
            )
        asked = ("classify", inputs / "image.png", "--server", proxy.url, "--retries", 0)
        for name in ("key", "letter"):
            watch.run(*asked, "--key", name, *protected, "--json")
            watch.run(*asked, "--key", name, *protected)

        # Failures of the client: phrase, token, an answer that does not decrypt, a bug in the middle of the key's use.
        watch.run(*asked, "--key", "key", "--passphrase-file", inputs / "wrong", code=1)
        with monkeypatch.context() as patch:
            patch.setenv("MCFHE_TOKEN", "wrong" * 8)
            assert "no valid token" in watch.run(*asked, "--key", "key", *protected, code=1)
        with monkeypatch.context() as patch:
            patch.setattr(decrypt, "correct", fails)
            assert "Traceback" in watch.run(*asked, "--key", "key", *protected, code=1)
        keys = {name: mcfhe.Client.load(name, phrase) for name in ("key", "letter")}
        with httpx.Client(base_url=proxy.url, headers={**BINARY, "authorization": f"Bearer {TOKEN}"}) as http:
            # Failures of the server: damaged messages, wrong routes.
            body = keys["key"].encrypt(images(1)).to_bytes()
            for sent in (b"", body[: len(body) // 2], body[:-1] + bytes([body[-1] ^ 1]), b"{}"):
                assert http.post(EVALUATE, content=sent).status_code >= 400
            for path in ("/metrics", "/openapi.json", "/healthz", "/readyz", "/v1/programs", "/v1/nothing"):
                answers += http.get(path).content
    nobody = ("--server", "http://127.0.0.1:9", "--retries", 0)  # the discard port
    watch.run("classify", inputs / "image.png", *nobody, "--key", "key", *protected, code=1)
    assert {path.name for path in work.iterdir()} == {"key", "letter"}

    positions = {name: client.secret_key.positions for name, client in keys.items()}
    canaries = Canaries.of(positions, {"user key": user_key, "pass-phrase": phrase.encode()})
    assert b"mcfhe_requests" in answers
    assert b'"event": "request"' in (folder / "stderr").read_bytes()
    written = {path.name: path.read_bytes() for parent in (folder, work) for path in parent.iterdir()}
    for name, data in (
        written | {"client": watch.text.encode(), "network": bytes(proxy.sent + proxy.answered)}
    ).items():
        assert not canaries.found_in(data), name
    assert TOKEN.encode() not in b"".join(written.values()) + watch.text.encode()
    # The net has no holes: a key file without a phrase, and a message that should never be, are found.
    keys["key"].save(tmp_path / "open")
    assert "key" in canaries.found_in((tmp_path / "open").read_bytes())
    assert canaries.found_in(f"lanes {keys['letter'].secret_key.positions}".encode()) == {"letter"}


def fails(*_: Any, **__: Any) -> None:
    raise RuntimeError("a bug in the middle of decryption")


def test_secret_files_sent_to_the_server_are_refused_without_an_echo(capfd: pytest.CaptureFixture[str]) -> None:
    client = new_client(lanes=LANES, redundancy=12)
    key = client.secret_key
    with Live() as live:
        for path in (EVALUATE, "/v1/keys"):
            answer = live.post(key.to_bytes(), path)
            assert answer.status_code >= 400
            assert answer.json()["error"]
            assert not Numbers(key.positions).in_bytes(answer.content)
            assert not Numbers(key.positions).in_text(answer.content)
    assert not Numbers(key.positions).in_text(capfd.readouterr().err.encode())


class Broken(Server):
    """Fails where nobody expects it, with the request at hand."""

    def evaluate(self, request: Any, progress: Any = None) -> Any:
        raise RuntimeError("a bug on the server")


def test_a_traceback_of_the_server_shows_no_payload(capfd: pytest.CaptureFixture[str]) -> None:
    request, _ = encrypt(new_client(lanes=LANES))
    capfd.readouterr()
    with Live([Broken(PROGRAM)]) as live:
        answer = live.post(request.to_bytes())
    log = capfd.readouterr().err
    assert answer.status_code == 500
    assert answer.json() == {"error": "internal error"}
    assert "a bug on the server" in log
    row = request.ciphertext[0, 0, 0, 0].numpy()
    assert not Numbers(tuple(int(v) for v in row[:40])).in_text(log.encode())
    assert len(log) < 20_000


POSITIONS = tuple(int(v) for v in np.random.default_rng(4).integers(0, 1000, 20))
KEY = bytes(range(100, 132))
ARRAY = np.array(POSITIONS)


@pytest.mark.parametrize(
    "text",
    [
        str(POSITIONS),
        json.dumps(POSITIONS, indent=1),
        repr(ARRAY),
        str(ARRAY.reshape(4, 5)),
        "\n".join(f"limb {i}: lane {w}" for i, w in enumerate(POSITIONS)),
        "\n".join(f"limb {i} of {len(POSITIONS)}: lane {w}" for i, w in enumerate(POSITIONS)),
        ", ".join(f"np.int64({w})" for w in POSITIONS),
        repr(ARRAY.astype("<i4").tobytes()),
        ARRAY.astype(">i2").tobytes().hex(),
        "ff" + ARRAY.astype("<f4").tobytes().hex(),
    ],
)
def test_the_scan_sees_positions(text: str) -> None:
    canaries = Canaries.of({"positions": POSITIONS}, {"key": KEY})
    assert canaries.found_in(text.encode()) == {"positions"}
    assert canaries.found_in(text[: len(text) // 30].encode()) == set()


def test_the_scan_sees_keys() -> None:

    canaries = Canaries.of({"positions": POSITIONS}, {"key": KEY})
    for data in (KEY, repr(KEY).encode(), KEY.hex(":").encode(), str(list(KEY)).encode(), KEY[::-1]):
        assert canaries.found_in(b"before " + data + b" after") == {"key"}
    for before in range(3):
        assert canaries.found_in(base64.b64encode(b"x" * before + KEY + b"y")) == {"key"}
        assert canaries.found_in(base64.b64encode(b"x" * before + ARRAY.astype("<i4").tobytes())) == {"positions"}
    assert canaries.found_in(os.urandom(1 << 15)) == set()
