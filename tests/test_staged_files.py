"""Staged programs as files: programs, client specs, keys and commands of the modular scheme; hostile ones of any."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mcfhe
from mcfhe import container
from mcfhe.cards import ModelCard
from mcfhe.cli import run
from mcfhe.errors import FormatError, MismatchError, ParameterError, SecretFieldError
from mcfhe.program import Program
from mcfhe.spec import ClientSpec
from mcfhe.staged.client import StagedClient
from mcfhe.staged.program import StagedProgram, StagedServer
from mcfhe.staged.spec import Levels, StagedSpec
from tests.test_wire import repack

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 1, 4, 4), dtype=np.uint8)
Edit = Callable[[dict[str, np.ndarray], dict[str, str]], object]


def make_staged(seed: int = 0, cuts: tuple[str, ...] = ("0", "2")) -> StagedProgram:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(1, 2, 2), mcfhe.PolyActivation(), nn.Conv2d(2, 2, 2), nn.Flatten(), nn.Linear(8, 3))
    return mcfhe.refresh(mcfhe.compile(net.eval(), (1, 4, 4), 0.5, 0.5, scale_bits=6), PIXELS, cuts)


@pytest.fixture(scope="module")
def staged() -> StagedProgram:
    return make_staged()


# Programs -------------------------------------------------------------------------------------------------------------


def test_programs_round_trip(staged: StagedProgram, tmp_path: Path) -> None:
    path = tmp_path / "net"
    staged.save(path)
    for again in (mcfhe.load_program(path), StagedProgram.load(path), StagedProgram.from_bytes(path.read_bytes())):
        assert again.stages == staged.stages
        assert again.cuts == staged.cuts == ("0", "2")
        assert again.levels == staged.levels
        assert again.program_id == staged.program_id
        assert again.to_bytes() == staged.to_bytes()
        assert torch.equal(again.evaluate_plain(PIXELS), staged.evaluate_plain(PIXELS))
    assert make_staged(1).program_id != staged.program_id
    assert isinstance(mcfhe.Server(staged), StagedServer)
    staged.stages[0].save(tmp_path / "one")
    with pytest.raises(FormatError, match="not cut"):
        StagedProgram.load(tmp_path / "one")
    with pytest.raises(FormatError, match="'staged-program' was given where 'program' is read"):
        Program.from_bytes(staged.to_bytes())
    with pytest.raises(ParameterError, match="the modular scheme's levels are exact"):
        staged.predict_levels(PIXELS)


def forged(staged: StagedProgram, edit: Edit) -> bytes:
    return repack(staged.to_bytes(), "staged-program", edit)


def as_tensor(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def test_forged_programs_are_refused(staged: StagedProgram) -> None:
    other, nested = as_tensor(make_staged(1, ("2",)).stages[1].to_bytes()), as_tensor(staged.to_bytes())
    first, second = (as_tensor(stage.to_bytes()) for stage in staged.stages[:2])
    damaged = first.copy()
    damaged[len(damaged) // 2] ^= 1
    edits: list[tuple[Edit, str]] = [
        (lambda t, _: t.pop("stage.1"), r"stage.0, stage.1, .. expected"),
        (lambda t, _: [t.pop("stage.1"), t.pop("stage.2")], "2..64 of them"),
        (lambda t, _: t.update({f"stage.{i}": first for i in range(3, 70)}), "2..64 of them"),
        (lambda t, _: t.update({"stage.01": first}), "expected"),
        (lambda t, _: t.update({"other": first}), "unexpected tensor 'other'"),
        (lambda t, _: t.update({"stage.0": damaged}), "stage 0: .*digest"),
        (lambda t, _: t.update({"stage.0": first[:-1]}), "stage 0: "),
        (lambda t, _: t.update({"stage.0": nested}), "stage 0: .*'staged-program' was given"),
        (lambda t, _: t.update({"stage.1": other}), "stage 0 gives 18 values, stage 1 takes images of shape"),
        (lambda t, _: t.update({"stage.1": first, "stage.0": second}), "stage 0 gives|twice"),
        (
            lambda t, _: t.update({"stage.0": first.view("<i4") if len(first) % 4 == 0 else first[:4].view("<i4")}),
            "I32",
        ),
        (lambda _, m: m.update(cuts='["0"]'), "2 names of layers are needed"),
        (lambda _, m: m.update(cuts='["0", 2]'), "'cuts' is not a list of names"),
        (lambda _, m: m.update(cuts='["0", ""]'), "2 names of layers are needed"),
        (lambda _, m: m.update(cuts="[" * 100000), "'cuts' is not a list of names"),
        (lambda _, m: m.update(cuts="{}"), "'cuts' is not a list of names"),
        (lambda _, m: m.update(program_id="0" * 64), "'program_id' is not that of the stages"),
        (lambda _, m: m.pop("cuts"), "metadata fields missing"),
    ]
    assert StagedProgram.from_bytes(forged(staged, lambda tensors, metadata: None)).stages == staged.stages
    for edit, match in edits:
        with pytest.raises(FormatError, match=match):
            StagedProgram.from_bytes(forged(staged, edit))


def test_any_changed_byte_is_found(staged: StagedProgram, tmp_path: Path) -> None:
    data = staged.to_bytes()
    for at in np.random.default_rng(5).integers(0, len(data), 60).tolist():
        (tmp_path / "net").write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
        with pytest.raises(FormatError, match=str(tmp_path)):
            mcfhe.load_program(tmp_path / "net")
    for length in (0, 7, 100, len(data) - 1):
        with pytest.raises(FormatError):
            StagedProgram.from_bytes(data[:length])


def test_stages_must_follow_each_other(staged: StagedProgram) -> None:
    first, second, third = staged.stages
    for stages, cuts, match in (
        ((first,), (), "1, 2..64 expected"),
        ((first, third), ("0",), "stage 0 gives 18 values"),
        ((first, second, first), ("0", "2"), "twice"),
        ((first, second, third), ("0",), "2 names of layers"),
    ):
        with pytest.raises(ParameterError, match=match):
            StagedProgram(stages, cuts)


# Client specs ---------------------------------------------------------------------------------------------------------


def test_specs_round_trip(staged: StagedProgram) -> None:
    spec = staged.client_spec()
    again: Any = ClientSpec.from_json(spec.to_json())
    assert isinstance(again, StagedSpec)
    assert again == spec
    assert again.to_json() == spec.to_json()
    assert again.digest() == spec.digest()
    assert again.program_id == staged.program_id
    assert again.slots is None
    assert "weight" not in spec.to_json()


def test_forged_specs_are_refused(staged: StagedProgram) -> None:
    text = staged.client_spec().to_json()

    def edited(edit: Callable[[dict[str, Any]], object]) -> str:
        body = json.loads(text)
        edit(body)
        return json.dumps(body)

    def level(**changes: Any) -> Callable[[dict[str, Any]], object]:
        return lambda body: body["levels"][0].update(changes)

    mean, std = staged.levels[0].mean, staged.levels[0].std
    edits: list[tuple[Callable[[dict[str, Any]], object], str]] = [
        (lambda b: b.update(version=2), "version 2"),
        (lambda b: b.update(version=True), "version True"),
        (lambda b: b.update(more=1), "not the fields"),
        (lambda b: b.pop("levels"), "not the fields"),
        (lambda b: b.update(stages={}), "must be lists"),
        (lambda b: b.update(stages=b["stages"] * 30), "at most 64"),
        (lambda b: b.update(stages=[]), "0, 2..64 expected"),
        (lambda b: b["stages"].pop(), "stage|levels"),
        (lambda b: b["levels"].pop(), "of 1 cuts between 3 stages"),
        (lambda b: b["stages"].__setitem__(1, 5), "'format'"),
        (lambda b: b["stages"].__setitem__(1, b["stages"][0]), "twice"),
        (lambda b: b["stages"].__setitem__(1, json.loads(text)), "itself a staged program"),
        (lambda b: b["stages"][0].update(program_id="\ud800"), "64 lower-case hex digits"),
        (lambda b: b["stages"][0].update(labels=["one"]), "stage 0 gives 1 values"),
        (level(more=1), "shape, mean and std"),
        (level(shape=[2, 3]), "'shape'"),
        (level(shape=[2, 3, True]), "'shape'"),
        (level(shape=[2, 3, 4]), "of shape"),
        (level(mean=[1.0]), "'mean' is not made of 2"),
        (level(mean=[0.5, float("nan")]), "'mean'"),
        (level(std=[std[0], -std[1]]), "positive"),
        (level(std=[std[0], 1e-320]), "table|below"),
        (level(mean=[mean[0] + 1e-2, mean[1]]), "not those of the stage's pixel table"),
    ]
    assert StagedSpec.from_json(edited(lambda body: None)) == staged.client_spec()
    for edit, match in edits:
        with pytest.raises(FormatError, match=match):
            ClientSpec.from_json(edited(edit))
    for broken in ("[" * 100000, '{"format": "mcfhe/staged-client-spec"}', text[:-1]):
        with pytest.raises(FormatError):
            ClientSpec.from_json(broken)


def test_noisy_values_get_the_nearest_level() -> None:
    levels = Levels((1, 1, 4), (0.0,), (1 / 255,))  # level u stands for about u
    assert levels.of_noisy(np.array([[1.4, 1.6, -3.0, 1e9]])).reshape(-1).tolist() == [1, 2, 0, 255]
    assert levels.steps().tolist() == pytest.approx([1.0] * 4)
    values = np.random.default_rng(1).uniform(0, 255, (50, 4))
    certain = levels.of_floats(values, np.zeros_like(values))
    assert certain[1].all()
    np.testing.assert_array_equal(levels.of_noisy(values), certain[0])
    noisy = levels.of_noisy(values + np.random.default_rng(2).uniform(-0.4, 0.4, values.shape))
    assert np.abs(noisy.astype(int) - certain[0]).max() == 1


# Keys -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("passphrase", [None, "a passphrase"])
def test_keys_round_trip(staged: StagedProgram, tmp_path: Path, passphrase: str | None) -> None:
    client, path = StagedClient.generate(staged.client_spec(), lanes=2, noise=0), tmp_path / "key"
    client.save(path, passphrase)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with mcfhe.Client.load(path, passphrase) as again:
        assert isinstance(again, StagedClient)
        ids = [part.evaluation_key.key_id for part in client.clients]
        assert [part.evaluation_key.key_id for part in again.clients] == ids
        assert len(set(ids)) == 3, "a key for each stage"
        assert torch.equal(again.classify(PIXELS[:3], mcfhe.Server(staged)), staged.evaluate_plain(PIXELS[:3]))
    with pytest.raises((FormatError, ParameterError), match="passphrase"):
        StagedClient.load(path, "another" if passphrase else "one too many")
    with pytest.raises(SecretFieldError):
        mcfhe.Request.from_bytes(path.read_bytes())
    with pytest.raises(ParameterError):
        again.encrypt(PIXELS[:1])


def test_forged_keys_are_refused(staged: StagedProgram, tmp_path: Path) -> None:
    client = StagedClient.generate(staged.client_spec(), lanes=2)
    client.save(tmp_path / "key")
    data = (tmp_path / "key").read_bytes()
    other = as_tensor(make_staged(1).client_spec().to_json().encode())
    edits: list[tuple[Edit, str]] = [
        (lambda t, _: t.pop("stage.1.secret_key"), "no key of stage 1"),
        (lambda t, _: t.update({"stage.1.secret_key": t["stage.1.secret_key"][:-1]}), "container"),
        (lambda t, _: t.update({"stage.1.other": t["spec"]}), "a secret_key and nothing else expected"),
        (lambda t, _: t.update({"stage.9.secret_key": t["spec"]}), "belongs to no stage"),
        (lambda t, _: t.update(spec=as_tensor(b"\xff\xfe")), "not UTF-8"),
        (lambda t, _: t.update(spec=other), "program_id"),
    ]
    for edit, match in edits:
        (tmp_path / "forged").write_bytes(repack(data, "staged-client", edit))
        with pytest.raises((FormatError, MismatchError), match=match):
            StagedClient.load(tmp_path / "forged")
    with pytest.raises(SecretFieldError):
        container.unpack(data, "request", {})


# Commands -------------------------------------------------------------------------------------------------------------


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Compile into stages, draw keys from the spec, and classify by files: what evaluate_plain says."""
    torch.manual_seed(1)
    card = ModelCard(
        "lenet", {"in_channels": 1, "num_classes": 10, "image_size": 28, "batch_norm": False, "activation": "poly"},
        "none", (1, 28, 28), (0.25,), (0.5,), tuple(f"label {i}" for i in range(10)),
    )  # fmt: skip
    mcfhe.models.save(mcfhe.models.lenet().eval(), tmp_path / "model", card)
    sample = mcfhe.datasets.SAMPLE

    def command(*words: object, code: int = 0) -> Any:
        capsys.readouterr()
        assert run([*map(str, words), "--json"]) == code
        return json.loads(capsys.readouterr().out)

    program, spec, key, message = (tmp_path / name for name in ("net", "spec.json", "key", "message"))
    made = command("compile", tmp_path / "model", "-o", program, "--spec", spec, "--scale-bits", 6, "--refresh", sample,
        "--split", "test", "--calibration-images", 50, "--cut", "pool1", "--cut", "fc1")  # fmt: skip
    assert made["cuts"] == ["pool1", "fc1"]
    assert made["scheme"] == "modular"
    assert len(made["stages"]) == 3
    assert command("keygen", spec, "-o", key, "--lanes", 2)["key_ids"]
    command("encrypt", "--key", key, "--dataset", sample, "--count", 3, "-o", message)
    for index in range(3):
        command("evaluate", program, message, "-o", tmp_path / "response")
        if index < 2:
            error = command("decrypt", tmp_path / "response", "--key", key, code=1)["error"]
            assert "before the last; refresh() it (mcfhe refresh)" in error
            command("refresh", tmp_path / "response", "--key", key, "-o", message)
    found = command("decrypt", tmp_path / "response", "--key", key)
    staged = mcfhe.load_program(program)
    plain = staged.evaluate_plain(mcfhe.datasets.load(sample, "test", limit=3).images)
    assert [found["names"].index(label) for label in found["labels"]] == plain.argmax(1).tolist()
    assert command("audit", message, "--spec", spec, "--quiet", code=1)["recovered"], "the second request's stage"
    capsys.readouterr()
    assert run(["compile", str(tmp_path / "model"), "-o", str(program), "--max-limbs", "3"]) == 1
    assert "belong to --refresh" in capsys.readouterr().err
    assert mcfhe.load_program(program).program_id == staged.program_id, "the file stays"
    staged.stages[0].save(tmp_path / "one")
    command("keygen", tmp_path / "one", "-o", tmp_path / "one.key")
    late = command("refresh", tmp_path / "response", "--key", tmp_path / "one.key", "-o", message, code=1)
    assert "without stages" in late["error"]
    again = ["compile", tmp_path / "model", "-o", program, "--refresh", sample, "--split", "test", "--scale-bits", 6]
    assert run([*map(str, again)]) == 0
    assert "stage 2 of 2, after layer" in capsys.readouterr().out
