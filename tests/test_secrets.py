"""Canaries: no lane positions, pass-phrase or user key in what the command line writes; randomness from the CSPRNG."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import logging
import os
import random
import secrets
import stat
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

import mcfhe
from mcfhe.modular.keys import SecretKey
from mcfhe.wire import Request, Response
from tests.canaries import Canaries, Numbers, Watch
from tests.modular_support import LinearServer, random_images
from tests.test_cli import save_model

ROOT = Path(__file__).parent.parent
SAMPLE = mcfhe.datasets.SAMPLE
LANES = 100
# Modules that make keys or ciphertexts, or write them.
SECRET_MODULES = ("client.py", "keyfile.py", "wiping.py", "container.py", "wire.py", *(f"modular/{n}.py" for n in (
    "csprng", "decrypt", "encrypt", "evaluation_key", "keys", "params"
)))  # fmt: skip


def test_nothing_secret_is_written_but_in_the_key_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    inputs, work = tmp_path / "inputs", tmp_path / "work"
    inputs.mkdir()
    work.mkdir()
    monkeypatch.chdir(work)
    for name in ("TMPDIR", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(work))
    monkeypatch.setenv("MCFHE_TRACEBACK", "1")
    caplog.set_level(logging.DEBUG)
    previous = os.umask(0)
    try:
        phrase, user_key = "canary " + secrets.token_hex(12), secrets.token_bytes(32)
        (inputs / "phrase").write_text(phrase + "\n")
        (inputs / "user.key").write_bytes(user_key)
        save_model(inputs / "model")
        watch = Watch(capfd, caplog)
        protected = ("--passphrase-file", inputs / "phrase")

        watch.run("compile", inputs / "model", "--out", "net", "--spec", "spec.json", "--json")
        watch.run(
            "keygen", "spec.json", "--out", "key", "--lanes", LANES, "--redundancy", 2, "--profile", "patent", "--json",
            "--user-key-file", inputs / "user.key", *protected,
        )  # fmt: skip
        monkeypatch.setenv("MCFHE_PASSPHRASE", phrase)
        watch.run("keygen", "spec.json", "--out", "other", "--lanes", LANES)
        monkeypatch.delenv("MCFHE_PASSPHRASE")
        images = ("--dataset", SAMPLE, "--count", 1)
        watch.run("encrypt", "--key", "key", "--out", "request", *images, *protected, "--json")
        watch.run("encrypt", "--key", "other", "--out", "request2", *images, *protected)
        watch.run("evaluate", "net", "request", "--out", "response", "--json")
        watch.run("evaluate", "net", "request2", "--out", "response2")
        watch.run("decrypt", "response", "--key", "key", *protected, "--json")
        watch.run("decrypt", "response2", "--key", "other", *protected, "--top", 3)
        watch.run("info", "--json")

        # Errors: no and wrong pass-phrase, damaged key, wrong key, secrets where none belong, damage in a response.
        (inputs / "wrong").write_text("not it\n")
        watch.run("decrypt", "response", "--key", "key", code=1)
        watch.run("decrypt", "response", "--key", "key", "--passphrase-file", inputs / "wrong", "--json", code=1)
        data = bytearray(Path("key").read_bytes())
        data[-5] ^= 1
        Path("damaged").write_bytes(data)
        watch.run("decrypt", "response", "--key", "damaged", *protected, code=1)
        watch.run("decrypt", "response", "--key", "other", *protected, code=1)
        watch.run("evaluate", "net", "key", "--out", "never", "--json", code=1)
        watch.run("audit", "key", "--spec", "spec.json", code=1)
        watch.run("keygen", "spec.json", "--out", "key", *protected, code=1)
        watch.run("keygen", "spec.json", "--out", "key", "--bogus", code=2)
        watch.run("encrypt", "--key", "key", "--out", "never", "--dataset", "nothing", *protected, code=1)
        damage(Path("response"), 1)
        watch.run("decrypt", "response", "--key", "key", *protected, "--json")
        damage(Path("response"), 9)
        watch.run("decrypt", "response", "--key", "key", *protected, code=1)

        keys = [mcfhe.Client.load(name, phrase).secret_key for name in ("key", "other")]
        canaries = Canaries.of(
            {f"positions {i}": key.positions for i, key in enumerate(keys)},
            {"pass-phrase": phrase.encode(), "user key": user_key},
        )
        written = [path for path in work.rglob("*") if path.is_file()]
        assert {"net", "spec.json", "key", "other", "request", "request2", "response", "response2", "damaged"} == {
            str(path.relative_to(work)) for path in written
        }
        assert "corrected" in watch.text  # the log was seen
        assert not canaries.found_in(watch.text.encode())
        for path in written:
            data = path.read_bytes()
            found = canaries.found_in(data, text=len(data) < 1 << 19)
            assert not found, f"{found} in {path.name}"
        assert stat.S_IMODE(Path("key").stat().st_mode) == 0o600

        # The net has no holes: without a pass-phrase the key file, and only it, shows the positions.
        watch.run("keygen", "spec.json", "--out", "open", "--lanes", LANES)
        key = mcfhe.Client.load("open").secret_key
        assert Numbers(key.positions).in_bytes(Path("open").read_bytes())
        assert stat.S_IMODE(Path("open").stat().st_mode) == 0o600
    finally:
        os.umask(previous)


def damage(path: Path, limbs: int) -> None:
    response = Response.load(path)
    residues = response.residues.clone()
    residues[:limbs] ^= 1
    dataclasses.replace(response, residues=residues).save(path)


def test_representations_and_copies_show_nothing() -> None:
    client = mcfhe.Client.generate(LinearServer(growth=1 << 200).spec, lanes=LANES, user_key="canary phrase of mine")
    key = client.secret_key
    request = client.encrypt(random_images(1, (1, 4, 5)))
    canaries = Canaries.of({"positions": key.positions}, {"user key": b"canary phrase"})
    shown: list[Any] = [client, key, client.evaluation_key, request, request.evaluation_key, [key], {"key": key}]
    for thing in shown:
        for text in (repr(thing), str(thing), f"{thing}"):
            assert not canaries.found_in(text.encode())
    with pytest.raises(mcfhe.McfheError) as caught:
        SecretKey(key.evaluation_key, (*key.positions[:-1], LANES), LANES, "patent", 0)
    assert not canaries.found_in(str(caught.value).encode())


def test_key_id_is_a_function_of_public_values_alone() -> None:
    """Worked out here from what any server is sent, for keys that share nothing else."""
    spec = LinearServer(growth=1 << 200).spec
    moduli = mcfhe.Client.generate(spec).evaluation_key.moduli
    ids = set()
    for lanes, noise, redundancy, user_key in ((2, 0, 0, None), (LANES, 8, 1, b"k" * 32), (7, 3, 2, "a phrase")):
        client = mcfhe.Client.generate(spec, lanes, "patent", noise, 0, user_key, moduli=moduli)
        key = dataclasses.replace(client.secret_key, redundancy=redundancy)
        received = Request.from_bytes(client.encrypt(random_images(1, (1, 4, 5))).to_bytes())
        public = received.evaluation_key
        numbers = (public.amplification, public.scale, *public.moduli)
        text = b"mcfhe/evaluation-key/1\0" + b"".join(number.to_bytes(8, "little") for number in numbers)
        assert key.key_id == received.key_id == hashlib.sha256(text).hexdigest()
        ids.add(key.key_id)
    assert len(ids) == 1


def test_key_id_does_not_depend_on_the_positions() -> None:
    key = mcfhe.Client.generate(LinearServer(growth=1 << 200).spec, lanes=LANES).secret_key
    moved = dataclasses.replace(key, positions=tuple((w + 1) % LANES for w in key.positions))
    assert moved.key_id == key.key_id
    assert moved.evaluation_key == key.evaluation_key
    first, second = (mcfhe.Client(LinearServer(growth=1 << 200).spec, k) for k in (key, moved))
    assert first.evaluation_key.metadata() == second.evaluation_key.metadata()


def refuse(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("a predictable generator was used")


@pytest.mark.parametrize("profile", ["patent", "hardened"])
def test_randomness_is_the_operating_systems_alone(
    profile: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = LinearServer().spec
    images = random_images(2, (1, 4, 5))
    for module, names in (
        (random, ("random", "randrange", "randint", "getrandbits", "choice", "shuffle", "uniform", "seed")),
        (np.random, ("default_rng", "rand", "randint", "random", "bytes", "integers", "RandomState", "seed")),
        (torch, ("rand", "randint", "randn", "randperm", "rand_like", "randint_like", "Generator", "manual_seed")),
    ):
        for name in names:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, refuse)
    asked: list[int] = []
    real = os.urandom

    def counted(size: int) -> bytes:
        asked.append(size)
        return real(size)

    monkeypatch.setattr(os, "urandom", counted)
    client = mcfhe.Client.generate(spec, profile=profile, noise=8)
    assert asked
    asked.clear()
    one, two = client.encrypt(images), client.encrypt(images)
    assert asked.count(32) == 2  # a new seed for every call
    assert not torch.equal(one.ciphertext, two.ciphertext)
    client.save(tmp_path / "key", "phrase")
    mcfhe.Client.load(tmp_path / "key", "phrase")


def test_a_seed_of_any_generator_changes_nothing() -> None:
    server = LinearServer()
    seen = []
    for _ in range(2):
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
        client = mcfhe.Client.generate(server.spec)
        seen.append((client.evaluation_key.moduli, client.encrypt(random_images(1, (1, 4, 5))).request_id))
    assert seen[0][0] != seen[1][0]
    assert seen[0][1] != seen[1][1]


def test_no_predictable_generator_in_the_source() -> None:
    for name in SECRET_MODULES:
        tree = ast.parse((ROOT / "mcfhe" / name).read_text("utf-8"))
        for node in ast.walk(tree):
            imported = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {"random", "numpy.random", "torch.random"} & set(imported), name
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                used = f"{node.value.id}.{node.attr}"
                assert not used.startswith(("np.random", "numpy.random", "torch.rand", "torch.Generator")), name


def test_a_request_holds_nothing_but_its_fields() -> None:
    client = mcfhe.Client.generate(LinearServer().spec, user_key=b"k" * 32)
    data = client.encrypt(random_images(1, (1, 4, 5))).to_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert set(header) == {"ciphertext", "moduli", "__metadata__"}
    assert set(header["__metadata__"]) == {
        *("format", "kind", "version", "digest", "amplification", "scale", "key_id"),
        *("program_id", "request_id", "lanes", "profile"),
    }
    assert Request.from_bytes(data).key_id == client.secret_key.key_id
