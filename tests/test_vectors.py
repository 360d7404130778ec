"""The test vectors, read by a second reader written from docs/wire.md alone, and by the package."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mcfhe
from mcfhe.errors import FormatError, McfheError, UnknownKeyError
from tests.vectors import make_vectors

FOLDER = Path(__file__).parent / "vectors"
VECTORS = json.loads((FOLDER / "vectors.json").read_text())
PROFILES = ("patent", "hardened")
KINDS = ("evaluation-key", "request", "keyed-request", "response")


def read(data: bytes) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Metadata and tensors of a container, by the letter of docs/wire.md."""
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    metadata = header.pop("__metadata__")
    assert data.count(metadata["digest"].encode()) == 1
    zeroed = data.replace(metadata["digest"].encode(), b"0" * 64)
    assert hashlib.sha256(zeroed).hexdigest() == metadata["digest"]
    tensors = {}
    for name, entry in header.items():
        assert entry["dtype"] == "I32"
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        tensors[name] = np.frombuffer(data[begin:end], "<i4").reshape(entry["shape"])
    return metadata, tensors


def message(profile: str, kind: str) -> bytes:
    return (FOLDER / f"{profile}.{kind}").read_bytes()


@pytest.mark.parametrize("profile", PROFILES)
def test_by_the_letter_of_the_page(profile: str) -> None:
    case = VECTORS["profiles"][profile]
    moduli, lanes = case["moduli"], case["lanes"]
    numbers = [case["amplification"], case["scale"], *moduli]
    text = b"mcfhe/evaluation-key/1\0" + struct.pack(f"<{len(numbers)}Q", *numbers)
    assert hashlib.sha256(text).hexdigest() == case["key_id"]
    for kind in KINDS:
        metadata, tensors = read(message(profile, kind))
        assert hashlib.sha256(message(profile, kind)).hexdigest() == case["sha256"][kind]
        assert (metadata["format"], metadata["kind"], metadata["version"]) == ("mcfhe", kind, "1")
        assert metadata["key_id"] == case["key_id"]
        assert ("moduli" in tensors) == (kind in ("evaluation-key", "request"))
        if "moduli" in tensors:
            assert tensors["moduli"].tolist() == moduli
        if kind != "evaluation-key":
            assert metadata["program_id"] == VECTORS["program_id"]
            assert metadata["request_id"] == case["request_id"]
            assert metadata["lanes"] == str(lanes)
    ciphertext = read(message(profile, "request"))[1]["ciphertext"]
    residues = read(message(profile, "response"))[1]["residues"]
    product = math.prod(moduli)
    for image, (integers, scores) in enumerate(zip(case["input_integers"], case["score_integers"], strict=True)):
        for limb, (b, position) in enumerate(zip(moduli, case["positions"], strict=True)):
            true = ciphertext[limb, ..., image * lanes + position].ravel().tolist()
            assert true == [int(v) % b for v in integers]
        for label, score in enumerate(scores):
            value = 0
            for limb, (b, position) in enumerate(zip(moduli, case["positions"], strict=True)):
                rest = product // b
                value += int(residues[limb, label, image * lanes + position]) * rest * pow(rest, -1, b)
            value %= product
            assert (value if 2 * value <= product else value - product) == int(score)


@pytest.mark.parametrize("profile", PROFILES)
def test_by_the_package(profile: str) -> None:
    case = VECTORS["profiles"][profile]
    program = mcfhe.load_program(FOLDER / "program.mcfhe")
    spec = mcfhe.ClientSpec.from_json((FOLDER / "spec.json").read_text())
    assert spec == program.client_spec()
    assert spec.digest() == VECTORS["spec_sha256"] == hashlib.sha256((FOLDER / "spec.json").read_bytes()).hexdigest()
    client = mcfhe.Client.generate(
        spec,
        case["lanes"],
        profile,
        redundancy=case["redundancy"],
        user_key=bytes.fromhex(VECTORS["user_key_hex"]),
        salt=bytes.fromhex(VECTORS["salt_hex"]),
    )
    assert list(client.secret_key.positions) == case["positions"]
    key = mcfhe.EvaluationKey.from_bytes(message(profile, "evaluation-key"))
    assert key == client.evaluation_key
    request = mcfhe.Request.from_bytes(message(profile, "request"))
    keyed = mcfhe.Request.from_bytes(message(profile, "keyed-request"), {key.key_id: key}.get)
    assert request.to_bytes() == keyed.to_bytes() == message(profile, "request")
    assert request.to_bytes(embed_key=False) == message(profile, "keyed-request")
    response = mcfhe.Server(program).evaluate(keyed)
    assert response.to_bytes() == message(profile, "response")
    expected = [[int(v) for v in row] for row in case["score_integers"]]
    assert client.decrypt_integers(response, request_id=case["request_id"]) == expected
    assert client.decrypt(response).tolist() == case["scores"]
    values = np.array([[int(v) for v in row] for row in case["input_integers"]], object).reshape(-1, 1, 4, 4)
    assert program.evaluate_integers(values, profile) == expected


def test_keyed_request_needs_its_key() -> None:
    data = message("patent", "keyed-request")
    with pytest.raises(FormatError, match="'keyed-request' was given where 'request' is read"):
        mcfhe.Request.from_bytes(data)
    with pytest.raises(UnknownKeyError, match="register it again"):
        mcfhe.Request.from_bytes(data, {}.get)
    other = mcfhe.EvaluationKey.from_bytes(message("patent", "evaluation-key"))
    other = mcfhe.EvaluationKey(other.moduli[:-1], other.amplification, other.scale)  # type: ignore[arg-type]
    with pytest.raises(McfheError, match="key_id"):
        mcfhe.Request.from_bytes(data, lambda _: other)


@pytest.mark.parametrize("kind", KINDS)
def test_any_changed_bit_is_refused(kind: str) -> None:
    data = message("hardened", kind)
    key = mcfhe.EvaluationKey.from_bytes(message("hardened", "evaluation-key"))
    readers: dict[str, Any] = {
        "evaluation-key": mcfhe.EvaluationKey.from_bytes,
        "response": mcfhe.Response.from_bytes,
    }
    reader = readers.get(kind, lambda bytes_: mcfhe.Request.from_bytes(bytes_, lambda _: key))
    for bit in range(0, 8 * len(data), 7):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(McfheError):
            reader(bytes(changed))


def test_script_makes_the_same_bytes(tmp_path: Path) -> None:
    make_vectors.make(tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (FOLDER / path.name).read_bytes(), path.name
