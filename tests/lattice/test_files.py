"""Program and client files of the lattice scheme, forged ones among them; secrets stay where they belong."""

from __future__ import annotations

import json
import logging
import stat
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mcfhe
from mcfhe import container
from mcfhe.errors import (
    DecryptionError,
    FormatError,
    ImageError,
    McfheError,
    MismatchError,
    ParameterError,
    SecretFieldError,
)
from mcfhe.lattice import seal as boundary
from mcfhe.lattice.client import LatticeClient
from mcfhe.lattice.program import LatticeProgram
from mcfhe.lattice.server import LatticeServer
from mcfhe.lattice.wire import LatticeResponse
from mcfhe.program import Program
from mcfhe.wire import Request
from tests.lattice.support import Square, small_program
from tests.test_wire import repack

IMAGES = torch.randint(0, 256, (3, 2, 3, 3), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)


def parts_of(program: LatticeProgram) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    body = json.loads(container.read_header(program.to_bytes()).metadata["program"])
    return body, program._tensors  # in the order that the id is computed in


def forged(program: LatticeProgram, **plan: Any) -> bytes:
    """A program file whose plan lies, with an id and a digest that fit."""
    from mcfhe.graph.storage import identity

    body, tensors = parts_of(program)
    body["plan"] |= plan
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return container.pack("program", tensors, {"program": text, "program_id": identity(text, tensors)})


def test_program_files_round_trip(program: LatticeProgram, tmp_path: Path) -> None:
    program.save(tmp_path / "net")
    for again in (Program.from_bytes((tmp_path / "net").read_bytes()), Program.from_bytes(program.to_bytes())):
        assert isinstance(again, LatticeProgram)
        assert again == program
        assert hash(again) == hash(program)
        assert again.plan == program.plan
        assert again.client_spec() == program.client_spec()
        assert again.to_bytes() == program.to_bytes()
        assert torch.equal(again.evaluate_plain(IMAGES), program.evaluate_plain(IMAGES))
    assert small_program() == program
    assert small_program(scale_bits=5) != program
    assert "n = 4096" in repr(program)
    assert "tensor_square" in program.summary()


@pytest.mark.parametrize("plan", [
    {"limbs": 1}, {"limbs": 0}, {"limbs": 61}, {"limbs": 1 << 19}, {"limbs": -1}, {"limbs": True}, {"limbs": "2"},
    {"limbs": 3}, {"degree": 0}, {"degree": 1}, {"degree": 4095}, {"degree": 8}, {"degree": 1 << 16}, {"degree": None},
    {"input_bits": 0}, {"input_bits": 58}, {"input_bits": 61}, {"input_bits": 1 << 40}, {"placements": []},
    {"placements": None}, {"placements": [[4, 0, 1]]}, {"placements": [[4, (1 << 20) - 1, 1, 1]]},
    {"placements": [[4, 1 << 20, 1, 1]]}, {"placements": [[4, 2, 1, 1]]}, {"placements": [[4, 0, 0, 1]]},
    {"placements": [[4, 0, 9, 1]]}, {"placements": [[4, 0, 2, 2]]}, {"placements": [[40, 0, 2, 1]]},
    {"placements": [[0, 0, 2, 1]]}, {"placements": [[1, 0, 2, 1]]}, {"placements": [[-1, 0, 2, 1]]},
    {"placements": [[4, 0, 2, 1], [4, 0, 2, 0]]}, {"placements": [[4, 0, 2, 0], [2, 0, 2, 1]]}, {"more": 1},
    {"first_bits": 0}, {"first_bits": 2}, {"first_bits": 14}, {"first_bits": 32}, {"first_bits": True},
    {"first_bits": "30"}, {"first_bits": None}, {"first_bits": 31, "limbs": 3},
])  # fmt: skip
def test_forged_plans_are_refused_at_once(program: LatticeProgram, plan: dict[str, Any]) -> None:
    assert Program.from_bytes(forged(program)) == program
    started = time.process_time()
    with pytest.raises(FormatError, match="program: "):
        Program.from_bytes(forged(program, **plan))
    assert time.process_time() - started < 2


@pytest.mark.parametrize(("input_bits", "rescales", "bits"), [(60, (0,) * 5, "1108"), (1, (26, 0, 0, 0, 0), "-1..")])
def test_forged_plans_whose_scales_fit_no_float_are_refused(
    input_bits: int, rescales: tuple[int, ...], bits: str
) -> None:
    torch.manual_seed(1)
    layers = [layer for _ in rescales for layer in (nn.Linear(2, 2), Square())]
    model = nn.Sequential(nn.Flatten(), *layers, nn.Linear(2, 2)).eval()
    deep = mcfhe.compile(model, (1, 1, 2), scheme="lattice", scale_bits=4, precision_bits=5, degree=32768)
    assert isinstance(deep, LatticeProgram)
    squares = [index for index, _ in deep.plan.placements]
    left = [28 - sum(rescales[: i + 1]) for i in range(len(rescales))]
    placements = [[i, count, limbs, 1] for i, count, limbs in zip(squares, rescales, left, strict=True)]
    data = forged(deep, degree=32768, limbs=28, input_bits=input_bits, placements=placements)
    with pytest.raises(FormatError, match=rf"a scale of 2\^{bits} is outside 2\^-100 to 2\^900"):
        Program.from_bytes(data)


def test_forged_bodies_are_refused(program: LatticeProgram) -> None:
    from mcfhe.graph.storage import identity

    body, tensors = parts_of(program)
    for changes in ({"version": 1}, {"plan": []}, {"plan": None}, {"scheme": "modular"}, {"settings": {}}, {"more": 0},
                    {"nodes": []}, {"settings": body["settings"] | {"weight_bits": None}}):  # fmt: skip
        text = json.dumps(body | changes, sort_keys=True, separators=(",", ":"))
        data = container.pack("program", tensors, {"program": text, "program_id": identity(text, tensors)})
        with pytest.raises(FormatError):
            Program.from_bytes(data)
    with pytest.raises(FormatError, match="program_id"):
        Program.from_bytes(repack_metadata(program, program_id="0" * 64))


def repack_metadata(program: LatticeProgram, **changes: str) -> bytes:
    return repack(program.to_bytes(), "program", lambda _, metadata: metadata.update(changes))


@pytest.mark.parametrize("passphrase", [None, "a passphrase"])
def test_client_files_round_trip(client: LatticeClient, tmp_path: Path, passphrase: str | None) -> None:
    path = tmp_path / "key"
    client.save(path, passphrase)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (client._serialised in path.read_bytes()) == (passphrase is None)
    for load in (LatticeClient.load, mcfhe.Client.load):
        again = load(path, passphrase)
        assert isinstance(again, LatticeClient)
        assert again.spec == client.spec
        assert again.evaluation_key.key_id == client.evaluation_key.key_id
        with pytest.raises(McfheError):
            load(path, "another" if passphrase else "one too many")
    with pytest.raises(SecretFieldError):
        Request.from_bytes(path.read_bytes())
    if passphrase:
        with pytest.raises(ParameterError, match="protected by a passphrase"):
            LatticeClient.load(path)
        data = bytearray(path.read_bytes())
        data[-40] ^= 1
        path.write_bytes(bytes(data))
        with pytest.raises(FormatError, match="digest"):
            LatticeClient.load(path, passphrase)


def test_altered_client_files_are_refused(client: LatticeClient, tmp_path: Path) -> None:
    path = tmp_path / "key"
    client.save(path)
    data = path.read_bytes()
    edits: list[Any] = [
        lambda t, m: t.update(secret_key=t["secret_key"][:-9]),
        lambda t, m: t.update(spec=np.frombuffer(b"\xff\xfe", np.uint8)),
        lambda t, m: t.update(spec=np.frombuffer(b"{}", np.uint8)),
        lambda t, m: t.update(relinearisation_key=t["relinearisation_key"][:1]),
        lambda t, m: m.update(program_id="0" * 64),
    ]
    for edit in edits:
        path.write_bytes(repack(data, "lattice-client", edit))
        with pytest.raises((FormatError, MismatchError)):
            LatticeClient.load(path)


def test_nothing_secret_leaves_the_client(
    program: LatticeProgram, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """No run of the secret polynomial, in any form it is kept in, in what is sent, shown or logged."""
    caplog.set_level(logging.DEBUG)
    client = LatticeClient.generate(program.client_spec())
    request = client.encrypt(IMAGES)
    response = LatticeServer(program).evaluate(request)
    client.decrypt(response)
    secret = bytes(client._serialised)
    residues = np.frombuffer(boundary._unwrapped(secret)[-8 * 3 * 4096 :], "<u8")
    canaries = {secret[100:164], secret[-64:], secret[100:132].hex().encode()}
    for start in range(0, len(residues), 512):
        part = residues[start : start + 8]
        canaries |= {part.tobytes(), part.astype("<u4").tobytes(), ", ".join(map(str, part)).encode()}
    shown = [repr(client), str(vars(client.evaluation_key)), repr(request), repr(response), caplog.text]
    sent = [request.to_bytes(), response.to_bytes(), client.evaluation_key.to_bytes(), program.to_bytes()]
    for text in [*sent, *(s.encode() for s in shown), *(s.encode() for s in capfd.readouterr())]:
        assert not any(canary in text for canary in canaries)
    client.save(tmp_path / "key")
    assert any(canary in (tmp_path / "key").read_bytes() for canary in canaries), "the canaries are what they seem"


def test_requests_of_other_shapes_programs_and_keys(program: LatticeProgram, client: LatticeClient) -> None:
    server = LatticeServer(program)
    request = client.encrypt(IMAGES)
    other = LatticeClient.generate(program.client_spec())
    response = server.evaluate(request)
    with pytest.raises(ImageError, match=r"2049 in one request, the ring has 2048 slots; split the batch"):
        client.encrypt(IMAGES[:1].expand(2049, -1, -1, -1))
    with pytest.raises(ImageError):
        client.encrypt(IMAGES.float())
    with pytest.raises(MismatchError, match="key_id"):
        other.decrypt(response)
    relabelled = LatticeResponse.for_request(other.encrypt(IMAGES), response.residues)
    with pytest.raises(DecryptionError, match=r"beyond the proved bound .* another key"):
        other.decrypt(relabelled)
    with pytest.raises(MismatchError, match="request_id"):
        client.decrypt(response, request_id="0" * 32)
    for residues in (response.residues.repeat(2, 1, 1), response.residues[:, :1], response.residues[..., :-2]):
        with pytest.raises(MismatchError, match="another level, ring or number of labels"):
            client.decrypt(LatticeResponse.for_request(request, residues))
    large = response.residues.clone()
    large[0, 0, 0] = program.plan.ring.moduli[0]
    with pytest.raises(FormatError, match="SEAL refuses"):
        client.decrypt(LatticeResponse.for_request(request, large))
    wide = small_program(degree=8192)
    with pytest.raises(MismatchError, match="evaluation key: its ring is not the client spec's"):
        LatticeClient(wide.client_spec(), b"", client.evaluation_key)
    with pytest.raises(MismatchError, match=r"request is for program .* encrypt with this program's client spec"):
        LatticeServer(wide).evaluate(request)
