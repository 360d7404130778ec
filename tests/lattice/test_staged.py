"""Staged programs of the lattice scheme: shared keys, messages of the wrong stage, files, the service, commands."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mcfhe
from mcfhe import container
from mcfhe.cards import ModelCard
from mcfhe.cli import run
from mcfhe.errors import FormatError, ImageError, MismatchError, ParameterError, SecretFieldError
from mcfhe.spec import ClientSpec
from mcfhe.staged.client import StagedClient
from mcfhe.staged.program import StagedProgram
from tests.lattice.staged_support import PIXELS, equal_stages, two_stages
from tests.service.support import PROGRAM, Live
from tests.test_wire import repack

Edit = Callable[[dict[str, np.ndarray], dict[str, str]], object]


@pytest.fixture(scope="module")
def staged() -> StagedProgram:
    return two_stages()


@pytest.fixture(scope="module")
def clients(staged: StagedProgram) -> StagedClient:
    return StagedClient.generate(staged.client_spec())


# Keys -----------------------------------------------------------------------------------------------------------------


def key_ids(client: StagedClient) -> list[str]:
    return [part.evaluation_key.key_id for part in client.clients]


def test_stages_of_one_ring_share_a_key(tmp_path: Path) -> None:
    program = equal_stages()
    rings = [stage.plan.ring for stage in program.stages]
    assert rings[1] == rings[2] == rings[3] != rings[0]
    client = StagedClient.generate(program.client_spec())
    first, *others = key_ids(client)
    assert len(set(others)) == 1
    assert first not in others
    with pytest.raises(MismatchError, match="ring"):
        client.clients[0].for_spec(client.spec.stages[1])

    client.save(tmp_path / "key")
    data = (tmp_path / "key").read_bytes()
    names = sorted(container.read_header(data).tensors)
    assert names == ["spec", *(f"stage.{i}.{part}" for i in (0, 1) for part in ("relinearisation_key", "secret_key"))]
    again = StagedClient.load(tmp_path / "key")
    assert key_ids(again) == [first, *others]
    server = mcfhe.Server(program)
    scores = [c.classify(PIXELS[:40], server) for c in (client, again)]
    assert torch.equal(scores[0].argmax(1), program.evaluate_plain(PIXELS[:40]).argmax(1))
    assert torch.equal(scores[0].argmax(1), scores[1].argmax(1))

    # keys of one's own: what is left out is only what loading puts back
    own = [client.clients[0], mcfhe.Client.generate(client.spec.stages[1]), *client.clients[2:]]
    mixed = StagedClient(client.spec, own)
    assert key_ids(mixed)[1] != key_ids(mixed)[2] == key_ids(mixed)[3]
    mixed.save(tmp_path / "mixed")
    assert key_ids(StagedClient.load(tmp_path / "mixed")) == key_ids(mixed)

    one = np.frombuffer(program.stages[0].client_spec().to_json().encode(), np.uint8)
    forgeries: list[tuple[Edit, str]] = [
        (lambda t, _: [t.pop(name) for name in names if name.startswith("stage.1.")], "no key of stage 1"),
        (lambda t, _: t.pop("stage.1.relinearisation_key"), "expected, not secret_key"),
        (lambda t, _: t.update({"stage.63.secret_key": one}), "belongs to no stage"),
        (lambda t, _: t.update(spec=one), "not that of a staged program"),
        (lambda _, metadata: metadata.update(program_id="0" * 64), "program_id"),
    ]
    for edit, match in forgeries:
        (tmp_path / "forged").write_bytes(repack(data, "staged-client", edit))
        with pytest.raises((FormatError, MismatchError), match=match):
            StagedClient.load(tmp_path / "forged")
    for at in (9, len(data) // 2, len(data) - 1):
        (tmp_path / "forged").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(FormatError):
            StagedClient.load(tmp_path / "forged")


def test_key_files_and_closing(clients: StagedClient, tmp_path: Path) -> None:
    path = tmp_path / "key"
    for passphrase, other in ((None, "one too many"), ("a passphrase", "another")):
        clients.save(path, passphrase)
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises((FormatError, ParameterError), match="passphrase"):
            StagedClient.load(path, other)
        with mcfhe.Client.load(path, passphrase) as again:
            assert isinstance(again, StagedClient)
            assert again.spec == clients.spec
            assert key_ids(again) == key_ids(clients)
            assert "secret" not in repr(again)
        for late in (lambda: again.encrypt(PIXELS[:1]), lambda: again.save(tmp_path / "late")):
            with pytest.raises(ParameterError, match="closed"):
                late()
        with pytest.raises(SecretFieldError):
            mcfhe.Request.from_bytes(path.read_bytes())
    assert not (tmp_path / "late").exists()
    assert clients.encrypt(PIXELS[:1]).batch == 1, "each is closed by itself"


def test_clients_of_one_key_are_closed_by_themselves(staged: StagedProgram, tmp_path: Path) -> None:
    """Secrets are overwritten in place: one that two shared would be saved as zeros by the other."""
    client = mcfhe.Client.generate(staged.client_spec().stages[0])
    client.for_spec(client.spec).close()
    client.save(tmp_path / "key")
    with mcfhe.Client.load(tmp_path / "key") as again:
        request = again.encrypt(PIXELS[:1])
    response = mcfhe.Server(staged.stages[0]).evaluate(request)
    assert torch.equal(client.decrypt(response).round(), staged.stages[0].evaluate_plain(PIXELS[:1]).round())


# Messages -------------------------------------------------------------------------------------------------------------


def test_messages_of_the_wrong_stage(staged: StagedProgram, clients: StagedClient) -> None:
    server = mcfhe.Server(staged)
    request = clients.encrypt(PIXELS[:5])
    response = server.evaluate(request)
    with pytest.raises(ParameterError, match="of a stage before the last"):
        clients.decrypt(response)
    with pytest.raises(MismatchError, match="request_id"):
        clients.refresh(response, request_id="0" * 32)
    last = server.evaluate(clients.refresh(response))
    with pytest.raises(ParameterError, match="scores are decrypted and not refreshed"):
        clients.refresh(last)
    # one stage's ciphertexts under the other's name
    with pytest.raises(MismatchError):
        clients.decrypt(replace(response, program_id=last.program_id))
    with pytest.raises(MismatchError):
        clients.refresh(replace(last, program_id=response.program_id))
    with pytest.raises(MismatchError, match="no stage of this client"):
        clients.refresh(replace(response, program_id="0" * 64))
    with pytest.raises(MismatchError, match="no stage of this one"):
        server.evaluate(replace(request, program_id="0" * 64))
    with pytest.raises(ImageError, match=f"has {clients.spec.slots} slots"):
        clients.encrypt(np.zeros(((clients.spec.slots or 0) + 1, 1, 2, 2), np.uint8))
    with pytest.raises(ParameterError, match="return_integers: belongs to the modular scheme"):
        clients.encrypt(PIXELS[:1], return_integers=True)
    with pytest.raises(ParameterError, match="no exact oracle"):
        staged.evaluate_integers([PIXELS, PIXELS], "hardened")
    server.check(request)
    server.close()


def test_requests_are_fresh_encryptions(staged: StagedProgram, clients: StagedClient) -> None:
    """The same response refreshed twice: no seed, no residue is used again."""
    response = mcfhe.Server(staged).evaluate(clients.encrypt(PIXELS[:5]))
    first, second = (clients.refresh(response) for _ in range(2))
    assert first.request_id != second.request_id
    assert not torch.equal(first.seeds, second.seeds)
    assert (first.ciphertext == second.ciphertext).double().mean() < 1e-3


# Files ----------------------------------------------------------------------------------------------------------------


def test_files_round_trip(staged: StagedProgram, tmp_path: Path) -> None:
    staged.save(tmp_path / "net")
    for again in (mcfhe.load_program(tmp_path / "net"), StagedProgram.load(tmp_path / "net")):
        assert again.program_id == staged.program_id
        assert again.stages == staged.stages
        assert again.cuts == staged.cuts
        assert again.to_bytes() == staged.to_bytes()
        assert torch.equal(again.evaluate_plain(PIXELS), staged.evaluate_plain(PIXELS))
    spec: Any = ClientSpec.from_json(staged.client_spec().to_json())
    assert spec == staged.client_spec()
    assert (spec.scheme, spec.input_shape, spec.labels) == ("lattice", (1, 2, 2), ("0", "1", "2"))
    assert spec.slots == min(stage.slots for stage in staged.stages)
    assert spec.program_id == staged.program_id
    text = staged.summary()
    assert "stage 2 of 2, after layer" in text
    assert "whose 4x1x1 values the client sees" in text
    assert "ring degree 8192" in text


# The service and the commands -----------------------------------------------------------------------------------------


def test_classify_over_a_socket(staged: StagedProgram, clients: StagedClient) -> None:
    servers = [mcfhe.Server(program) for program in (*staged.stages, PROGRAM)]
    shares: list[float] = []
    with Live(servers) as live, mcfhe.RemoteServer(live.url) as server:
        assert [entry["program_id"] for entry in server.programs()][:2] == [s.program_id for s in staged.stages]
        scores = clients.classify(PIXELS[:20], server, shares.append)
        keys = len(live.service._sessions)
    assert keys == len(set(key_ids(clients)))
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert float((scores - staged.evaluate_plain(PIXELS[:20])).abs().max()) < 0.1


def test_commands_over_files_and_a_socket(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    side, count = 4, 40
    torch.manual_seed(3)
    arguments: dict[str, Any] = {"in_channels": 1, "num_classes": 3, "image_size": side, "batch_norm": False}
    card = ModelCard("lenet", arguments, "none", (1, side, side), (0.25,), (0.5,), ("ant", "bee", "cat"))
    mcfhe.models.save(mcfhe.models.lenet(**arguments).eval(), tmp_path / "model", card)
    pixels = np.random.default_rng(1).integers(0, 256, (count, side, side), dtype=np.uint8)
    labels = np.arange(count)[:, None] % 3
    np.savez(tmp_path / "data.npz", **{f"{split}_{what}": value for split in ("train", "val", "test")
        for what, value in (("images", pixels), ("labels", labels))})  # fmt: skip

    def command(*words: object) -> Any:
        capsys.readouterr()
        assert run([*map(str, words), "--json"]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    program, spec, key = tmp_path / "net.mcfhe", tmp_path / "spec.json", tmp_path / "key"
    made = command("compile", tmp_path / "model", "-o", program, "--spec", spec, "--scheme", "lattice",
        "--refresh", tmp_path / "data.npz", "--max-degree", 8192)  # fmt: skip
    assert len(made["stages"]) == len(made["cuts"]) + 1 >= 2
    assert max(stage["degree"] for stage in made["stages"]) == 8192
    ids = command("keygen", spec, "-o", key)["key_ids"]
    assert len(ids) == len(made["stages"])
    staged = mcfhe.load_program(program)
    expected = staged.evaluate_plain(pixels[:5, None])
    images = ("--dataset", tmp_path / "data.npz", "--count", 5)
    command("encrypt", *images, "--key", key, "-o", tmp_path / "message", "--quiet")
    for index in range(len(ids)):
        command("evaluate", program, tmp_path / "message", "-o", tmp_path / "response")
        if index + 1 < len(ids):
            assert run(["decrypt", str(tmp_path / "response"), "--key", str(key)]) == 1
            assert "refresh" in capsys.readouterr().err
            command("refresh", tmp_path / "response", "--key", key, "-o", tmp_path / "message")
    decrypted = command("decrypt", tmp_path / "response", "--key", key)
    serve = [sys.executable, "-m", "mcfhe", "serve", str(program), "--port", "0", "--json"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            facts = json.loads(process.stdout.readline())
            remote = command("classify", *images, "--server", facts["url"], "--key", key)
        finally:
            process.terminate()
    assert facts["programs"] == [stage["program_id"] for stage in made["stages"]]
    for found in (decrypted, remote):
        np.testing.assert_allclose(found["scores"], expected.numpy(), atol=0.05)
