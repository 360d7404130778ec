"""Public-key encryption: others encrypt, the owner decrypts; files that lie are refused; no secret travels."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mcfhe
from mcfhe import container
from mcfhe.cli import run
from mcfhe.errors import FormatError, ImageError, MismatchError, ParameterError, WorkerError
from mcfhe.lattice.client import LatticeClient
from mcfhe.lattice.pixels import Parameters, public_key_bytes
from mcfhe.lattice.program import LatticeProgram
from mcfhe.lattice.public_key import PublicKey
from mcfhe.lattice.server import LatticeServer
from mcfhe.lattice.workers import Workers
from mcfhe.wire import Request, Response
from tests.lattice.staged_support import PIXELS, two_stages
from tests.lattice.support import Square, small_program
from tests.lattice.test_workers import children, images, pixels_of
from tests.test_wire import repack


@pytest.fixture(scope="module")
def public(client: LatticeClient) -> PublicKey:
    return client.public_key()


@pytest.mark.parametrize("workers", [1, 3])
def test_the_owner_decrypts_what_others_encrypt(
    program: LatticeProgram, client: LatticeClient, public: PublicKey, workers: int
) -> None:
    spec, pixels, before = client.spec, images(program), children()
    finished: list[float] = []
    request = public.encrypt(pixels, finished.append, workers=workers)
    assert request.seeds is None
    assert (request.key_id, request.batch) == (client.evaluation_key.key_id, len(pixels))
    table = np.array(spec.table) / 2.0**spec.scale_bits
    expected = table[np.arange(len(table))[:, None, None], pixels].reshape(len(pixels), -1).T
    found = pixels_of(client, request)
    assert np.abs(found[:, : len(pixels)] - expected).max() < 0.02  # noise of 7e-4; a step between pixel values is 0.06
    assert np.abs(found[:, len(pixels) :]).max() < 0.02
    assert finished == sorted(finished)
    assert finished[-1] == 1.0
    assert children() <= before

    again = Request.from_bytes(request.to_bytes())
    response = Response.from_bytes(LatticeServer(program).evaluate(again).to_bytes())
    scores = client.decrypt(response, request_id=request.request_id)
    exact = program.evaluate_plain(pixels)
    predicted = program.predict_precision(pixels, public_key=True)[-1].noise
    # few images lie in the first slots, which have up to sqrt(0.3 n) times the average (docs/lattice.md)
    assert float((scores - exact).abs().max()) < 8 * np.sqrt(0.3 * program.plan.degree) * predicted


def test_noise_of_public_encryption_is_the_predicted_one(
    program: LatticeProgram, client: LatticeClient, public: PublicKey
) -> None:
    """And so larger than under the secret key, and within what the plan promises."""
    blank = np.zeros((1, *program.input_shape), np.uint8)
    table = np.array(client.spec.table)[:, 0] / 2.0**client.spec.scale_bits
    measured = []
    for request in (public.encrypt(blank), client.encrypt(blank)):
        found = pixels_of(client, request)
        found[:, 0] -= np.repeat(table, found.shape[0] // len(table))
        measured.append(float(found.std()))
    predicted = [program.predict_precision(blank, public_key=flag)[0].noise for flag in (True, False)]
    from mcfhe.lattice import noise

    scale = 2.0**client.spec.input_bits
    degree = client.spec.ring.degree
    assert measured[0] * scale == pytest.approx(noise.fresh(degree), rel=0.1)
    assert measured[1] * scale == pytest.approx(noise.fresh_symmetric(degree), rel=0.1)
    assert predicted[0] > predicted[1]  # of few draws, so no more than their order


def test_encryption_is_randomised_and_keys_are_fresh(
    program: LatticeProgram, client: LatticeClient, public: PublicKey
) -> None:
    pixels = images(program)
    first, second = public.encrypt(pixels), public.encrypt(pixels)
    assert first.request_id != second.request_id
    assert float((first.ciphertext == second.ciphertext).double().mean()) < 1e-3
    other = client.public_key()
    assert other.key_id == public.key_id
    assert other.fingerprint != public.fingerprint
    assert pixels_of(client, other.encrypt(pixels)).shape


def test_the_key_is_an_encryption_of_zero(client: LatticeClient, public: PublicKey) -> None:
    """b + a s is small in every limb, the special one included: 21 is the largest error that SEAL draws."""
    from mcfhe.lattice import seal as boundary
    from mcfhe.lattice.ring import ntt_tables
    from mcfhe.ops import ntt

    ring = client.spec.ring
    moduli = [*ring.moduli, ring.special]
    body = boundary._unwrapped(bytes(client._serialised))
    s = np.frombuffer(body[-8 * len(moduli) * ring.degree :], "<u8").astype(np.int64).reshape(len(moduli), -1)
    b, a = public.residues.numpy().astype(np.int64)
    q = np.array(moduli)[:, None]
    phases = torch.from_numpy((b + a * s) % q)
    errors = ntt(phases, ntt_tables(moduli, ring.degree), torch.tensor(moduli), inverse=True).numpy()
    errors = np.where(errors > q // 2, errors - q, errors)
    assert (errors == errors[0]).all()
    assert 0 < np.abs(errors).max() <= 21


def test_files_round_trip(client: LatticeClient, public: PublicKey, tmp_path: Path) -> None:
    public.save(tmp_path / "key.public")
    again = PublicKey.load(tmp_path / "key.public")
    assert again.fingerprint == public.fingerprint
    assert (again.spec, again.key_id) == (client.spec, public.key_id)
    assert torch.equal(again.residues, public.residues)
    assert again.to_bytes() == public.to_bytes()
    assert public.fingerprint[:16] in repr(again)


def test_no_part_of_the_secret_is_in_the_file(client: LatticeClient, public: PublicKey) -> None:
    """Neither as SEAL stores it nor as residues of any width that appear in the key's own body."""
    from mcfhe.lattice import seal as boundary

    data = public.to_bytes()
    body = boundary._unwrapped(bytes(client._serialised))
    limbs = np.frombuffer(body[-8 * (len(client.spec.ring.moduli) + 1) * client.spec.ring.degree :], "<u8")
    for start in range(0, len(limbs), client.spec.ring.degree):
        for dtype in ("<u8", "<u4"):
            piece = limbs[start : start + 16].astype(dtype).tobytes()
            assert piece not in data
            assert base64.b64encode(piece)[:24] not in data
    assert container.read_header(data).metadata["kind"] not in container.SECRET_KINDS


def edited(public: PublicKey, **changes: Any) -> bytes:
    """A file with other tensors and a digest that fits."""

    def edit(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
        for name, value in changes.items():
            (metadata if isinstance(value, str) else tensors)[name] = value

    return repack(public.to_bytes(), "lattice-public-key", edit)


def test_files_that_lie(client: LatticeClient, public: PublicKey) -> None:
    residues = public.residues.numpy()
    q = client.spec.ring.moduli[0]
    large, negative, nothing = residues.copy(), residues.copy(), residues.copy()
    large[0, 0, 0], negative[1, 1, 3], nothing[1, 0] = q, -1, 0
    plain = residues.copy()
    plain[0, 1] = 0
    other = small_program(std=3.0).client_spec()
    assert other.ring == client.spec.ring
    spec = np.frombuffer(other.to_json().encode(), np.uint8)
    for changes, error, match in (
        ({"public_key": large}, FormatError, rf"0 <= r < {q} in limb 0"),
        ({"public_key": negative}, FormatError, "limb 1"),
        ({"public_key": plain}, FormatError, "its first component is 0 in limb 1; it would hide nothing"),
        ({"public_key": nothing}, FormatError, "its second component is 0 in limb 0; it would hide nothing"),
        ({"public_key": residues[:, :-1].copy()}, FormatError, "int32 .* expected"),
        ({"public_key": residues[:1].copy()}, FormatError, "public_key"),
        ({"public_key": np.roll(residues, 1, 2)}, MismatchError, "fingerprint is"),
        ({"fingerprint": "0" * 64}, MismatchError, "fingerprint is"),
        ({"fingerprint": "short"}, FormatError, "fingerprint"),
        ({"spec": spec}, MismatchError, "program_id is"),
        ({"spec": spec, "program_id": other.program_id}, MismatchError, "fingerprint is"),
        ({"spec": np.full(3, 255, np.uint8)}, FormatError, "not UTF-8"),
        ({"key_id": "1" * 64}, MismatchError, "key_id"),
        ({"degree": "4095"}, FormatError, "int32"),
    ):
        with pytest.raises(error, match=match):
            PublicKey.from_bytes(edited(public, **changes))
    for size in (0, 7, 100, len(public.to_bytes()) - 1):
        with pytest.raises(FormatError):
            PublicKey.from_bytes(public.to_bytes()[:size])
    deeper = small_program(degree=8192).client_spec()
    with pytest.raises(MismatchError, match="another ring"):
        PublicKey(deeper, client.evaluation_key, public.residues)


def test_what_it_refuses(program: LatticeProgram, client: LatticeClient, public: PublicKey) -> None:
    with pytest.raises(ImageError, match="slots; split the batch"):
        public.encrypt(np.zeros((client.spec.slots + 1, *program.input_shape), np.uint8))
    with pytest.raises(ImageError):
        public.encrypt(np.zeros((1, 1, 2, 2), np.uint8))
    with pytest.raises(ParameterError, match="workers = 0"):
        public.encrypt(images(program), workers=0)
    parameters = Parameters.of(client.spec, "public")
    for key in (b"no key", public_key_bytes(public.residues.numpy())[:-4], bytes(client._serialised)):
        with (
            pytest.raises(WorkerError, match=r"public key: .* bytes are no residues"),
            Workers(1, parameters, key) as w,
        ):
            list(w.encrypt([(0, np.zeros(1, np.uint8))]))
    closed = client.for_spec(client.spec)
    closed.close()
    with pytest.raises(ParameterError, match="closed"):
        closed.public_key()


def test_commands(
    program: LatticeProgram, client: LatticeClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*arguments: object) -> int:
        return run([str(argument) for argument in arguments])

    key, shared, request, response = (tmp_path / name for name in ("key", "public", "request", "response"))
    (tmp_path / "phrase").write_text("of the owner\n")
    client.save(key, "of the owner")
    owner = ("--key", key, "--passphrase-file", tmp_path / "phrase")
    program.save(tmp_path / "net")
    pixels = images(program)

    assert command("public-key", *owner, "-o", shared, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["fingerprint"] == PublicKey.load(shared).fingerprint
    assert printed["key_id"] == client.evaluation_key.key_id
    assert command("public-key", *owner, "-o", shared) == 0
    assert PublicKey.load(shared).fingerprint in capsys.readouterr().out.replace("\n", "")

    PublicKey.load(shared).encrypt(pixels).save(request)
    assert command("evaluate", tmp_path / "net", request, "-o", response) == 0
    assert command("decrypt", response, *owner, "--json") == 0
    assert len(json.loads(capsys.readouterr().out.splitlines()[-1])["labels"]) == len(pixels)

    for arguments, code, message in (
        (("encrypt", "a.png", "-o", request), 2, "give --key, or --public-key"),
        (("encrypt", "a.png", "--key", key, "--public-key", shared, "-o", request), 2, "give --key, or --public-key"),
        (("encrypt", "a.png", "--public-key", shared, *owner[2:], "-o", request), 2, "a public key has no passphrase"),
        (("encrypt", "a.png", "--public-key", key, "-o", request), 1, "secret"),
        (("encrypt", "a.png", "--public-key", tmp_path / "gone", "-o", request), 1, "gone"),
        (("decrypt", response, "--key", shared), 1, "lattice-public-key"),
        (("public-key", "--key", shared, "-o", tmp_path / "x"), 1, "lattice-public-key"),
    ):
        assert command(*arguments) == code
        error = capsys.readouterr().err.replace("\n", "")
        assert message in error, (arguments, error)
        assert "Traceback" not in error
    assert not (tmp_path / "x").exists()


def test_encrypting_for_somebody_else_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing but the images and the public file in the folder."""
    from PIL import Image

    torch.manual_seed(5)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 2), Square(), torch.nn.Flatten(), torch.nn.Linear(4, 2)).eval()
    program = mcfhe.compile(model, (1, 3, 3), scheme="lattice", scale_bits=4, precision_bits=5, std=2.0)
    owner = LatticeClient.generate(program.client_spec())
    owner.public_key().save(tmp_path / "public")
    pixels = np.random.default_rng(3).integers(0, 256, (2, *program.input_shape), dtype=np.uint8)
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image[0]).save(path)
    monkeypatch.chdir(tmp_path)
    arguments = ["encrypt", "0.png", "1.png", "--public-key", "public", "-o", "request"]
    assert run(arguments) == 0
    fingerprint = mcfhe.PublicKey.load(tmp_path / "public").fingerprint
    assert fingerprint in capsys.readouterr().out.replace("\n", "")
    assert run([*arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["images"], printed["fingerprint"]) == (["0.png", "1.png"], fingerprint)
    request = Request.load("request")
    scores = owner.decrypt(LatticeServer(program).evaluate(request), request_id=request.request_id)
    assert float((scores - program.evaluate_plain(pixels)).abs().max()) < 0.05
    assert sorted(os.listdir()) == ["0.png", "1.png", "public", "request"]


def test_the_modular_scheme_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layers = torch.nn.Flatten(), torch.nn.Linear(4, 4), Square(), torch.nn.Linear(4, 2)
    program = mcfhe.compile(torch.nn.Sequential(*layers).eval(), (1, 2, 2))
    mcfhe.Client.generate(program.client_spec()).save(tmp_path / "key")
    assert run(["public-key", "--key", str(tmp_path / "key"), "-o", str(tmp_path / "public")]) == 1
    assert "of the modular scheme, which has no public keys" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "public").exists()
    cut = mcfhe.refresh(program, PIXELS, ["2"])
    client = mcfhe.StagedClient.generate(cut.client_spec())
    with client, pytest.raises(ParameterError, match="only owners encrypt"):
        client.public_key()


def test_stages_take_requests_of_others() -> None:
    """Others encrypt for the first stage; the owner, who alone decrypts, refreshes."""
    staged = two_stages()
    server = mcfhe.StagedServer(staged)
    with mcfhe.StagedClient.generate(staged.client_spec()) as owner:
        request = owner.public_key().encrypt(PIXELS[:20])
        scores = owner.decrypt(server.evaluate(owner.refresh(server.evaluate(request))))
        own = owner.classify(PIXELS[:20], server)
    assert float((scores - own).abs().max()) < 0.1
