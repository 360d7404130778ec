"""The command line: whole flows over files in separate processes; every bad input is one line and exit code 1."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mcfhe
from mcfhe.cards import ModelCard
from mcfhe.cli import run
from mcfhe.wording import SECURITY_LINE

SAMPLE = mcfhe.datasets.SAMPLE


class Files:
    """A small network compiled, a key, an encrypted request of three images and its response."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model, self.program, self.spec = root / "model.st", root / "net.mcfhe", root / "spec.json"
        self.key, self.request, self.response = root / "client.key", root / "request", root / "response"


def save_model(path: Path, seed: int = 1) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = mcfhe.models.lenet().eval()
    card = ModelCard(
        arch="lenet",
        arguments={"in_channels": 1, "num_classes": 10, "image_size": 28, "batch_norm": False, "activation": "poly"},
        dataset="none",
        input_shape=(1, 28, 28),
        mean=(0.25,),
        std=(0.5,),
        labels=tuple(f"label {i}" for i in range(10)),
    )
    mcfhe.models.save(model, path, card)
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Made by the commands themselves, each in a process of its own."""
    files = Files(tmp_path_factory.mktemp("cli"))
    save_model(files.model)
    command("compile", files.model, "--out", files.program, "--spec", files.spec)
    command("keygen", files.spec, "--out", files.key, "--noise", 0)
    command("encrypt", "--key", files.key, "--dataset", SAMPLE, "--count", 3, "--out", files.request)
    command("evaluate", files.program, files.request, "--out", files.response)
    return files


def command(*arguments: object, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "mcfhe", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 1) -> str:
    """Run in this process; the exit code, one line on standard error, no traceback. Returns the line."""
    capsys.readouterr()
    assert run([str(a) for a in arguments]) == code
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert lines, "no message"
    assert "Traceback" not in captured.err
    assert lines[-1].startswith("mcfhe: ")
    if code == 1:
        assert len([line for line in lines if line.startswith("mcfhe: ")]) == 1
    assert captured.out == ""
    return lines[-1]


def test_processes_agree_with_the_python_interface(files: Files) -> None:
    answer = json.loads(command("decrypt", files.response, "--key", files.key, "--json"))
    program = mcfhe.load_program(files.program)
    images = mcfhe.datasets.load(SAMPLE, "test", limit=3).images
    expected = np.asarray(program.evaluate_plain(images))
    assert answer["labels"] == [answer["names"][i] for i in expected.argmax(axis=1)]
    client, server = mcfhe.Client.load(files.key), mcfhe.Server(program)
    assert client.decrypt(server.evaluate(mcfhe.Request.load(files.request))).tolist() == answer["scores"]
    request, integers = client.encrypt(images, return_integers=True)
    assert client.decrypt_integers(server.evaluate(request)) == program.evaluate_integers(integers, request.profile)


def test_key_file_is_private_and_its_key_is_not_in_the_request(files: Files) -> None:
    assert stat.S_IMODE(files.key.stat().st_mode) == 0o600
    positions = bytes(np.array(mcfhe.Client.load(files.key).secret_key.positions, "<i4"))
    assert positions in files.key.read_bytes()
    assert positions not in files.request.read_bytes()


def test_image_files_and_passphrase(files: Files, tmp_path: Path) -> None:
    images = mcfhe.datasets.load(SAMPLE, "test", limit=2).images.numpy()
    for i, image in enumerate(images):
        Image.fromarray(image[0]).save(tmp_path / f"{i}.png")
    phrase = tmp_path / "phrase"
    phrase.write_text("correct horse\n")
    key, request, response = tmp_path / "key", tmp_path / "request", tmp_path / "response"
    keygen = json.loads(
        command(
            "keygen", files.program, "--out", key, "--passphrase-file", phrase, "--lanes", 3, "--noise", 0, "--json"
        )
    )
    assert (keygen["lanes"], keygen["profile"]) == (3, "hardened")
    arguments = ("encrypt", tmp_path / "0.png", tmp_path / "1.png", "--key", key, "--out", request)
    command(*arguments, MCFHE_PASSPHRASE="correct horse")
    evaluated = json.loads(command("evaluate", files.program, request, "--out", response, "--json"))
    assert evaluated["images"] == 2
    lines = command("decrypt", response, "--key", key, "--top", 2, "--passphrase-file", phrase).splitlines()
    plain = np.asarray(mcfhe.load_program(files.program).evaluate_plain(images))
    for line, scores in zip(lines, plain, strict=True):
        best = scores.argsort()[::-1]
        assert line.index(f"label {best[0]} ") < line.index(f"label {best[1]} ")


def test_patent_profile_over_files(files: Files, tmp_path: Path) -> None:
    key, request, response = tmp_path / "key", tmp_path / "request", tmp_path / "response"
    command("keygen", files.spec, "--out", key, "--profile", "patent", "--redundancy", 1)
    command("encrypt", "--key", key, "--dataset", SAMPLE, "--count", 2, "--out", request, "--quiet")
    command("evaluate", files.program, request, "--out", response)
    answer = json.loads(command("decrypt", response, "--key", key, "--json"))
    assert len(answer["labels"]) == 2


def test_encrypt_says_what_the_scheme_is_worth(
    files: Files, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["encrypt", "--key", str(files.key), "--dataset", SAMPLE, "--count", "1", "--out", str(tmp_path / "r")]
    assert run(arguments) == 0
    assert capsys.readouterr().err.splitlines() == [SECURITY_LINE]
    assert run([*arguments, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [SECURITY_LINE]  # beside the one object on standard output, not in it
    assert set(json.loads(captured.out)) == {"out", "images", "request_id", "bytes", "labels"}
    assert run([*arguments, "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_classify_says_what_the_scheme_is_worth(
    files: Files, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Before anything is sent, so also where no server answers."""
    pytest.importorskip("httpx")
    arguments = ["classify", "--server", "http://127.0.0.1:9", "--retries", "0", "--key", str(files.key)]
    arguments += ["--dataset", SAMPLE, "--count", "1"]
    assert run(arguments) == 1
    line, refusal = capsys.readouterr().err.splitlines()
    assert line == SECURITY_LINE
    assert refusal.startswith("mcfhe: ")
    assert run([*arguments, "--quiet"]) == 1
    assert "semantic" not in capsys.readouterr().err


def test_the_security_line_is_what_the_documents_say() -> None:
    root = Path(__file__).parent.parent
    readme, security = ((root / name).read_text("utf-8") for name in ("README.md", "SECURITY.md"))
    said = SECURITY_LINE.split(":")[0].removeprefix("The modular scheme is ")
    assert said == "a fast obfuscation without semantic security"
    assert said in readme.split("## ")[0]
    top = " ".join(security.split("## ")[0].split())
    assert "The modular scheme is a fast obfuscation." in top
    assert "no semantic security" in top
    for text in (readme, security):
        assert not re.search(r"\bsecure\b|128-bit|\bcannot be (read|recovered|broken)", text, re.IGNORECASE)


def test_evaluate_refuses_secrets(files: Files, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "secret" in refused(capsys, "evaluate", files.program, files.key, "--out", out)
    mcfhe.Client.load(files.key).secret_key.save(tmp_path / "sk")
    assert "secret" in refused(capsys, "evaluate", files.program, tmp_path / "sk", "--out", out)
    assert "secret" in refused(capsys, "evaluate", tmp_path / "sk", files.request, "--out", out)
    assert not out.exists()


def test_wrong_key_and_other_program(files: Files, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run(["keygen", str(files.spec), "--out", str(tmp_path / "other.key")])
    assert "key_id" in refused(capsys, "decrypt", files.response, "--key", tmp_path / "other.key")
    save_model(tmp_path / "m2", seed=2)
    run(["compile", str(tmp_path / "m2"), "--out", str(tmp_path / "p2")])
    line = refused(capsys, "evaluate", tmp_path / "p2", files.request, "--out", tmp_path / "r2")
    assert mcfhe.load_program(tmp_path / "p2").program_id[:12] in line
    assert not (tmp_path / "r2").exists()


def test_truncated_and_flipped_files(files: Files, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    for path, use in (
        (files.program, lambda p: ("evaluate", p, files.request, "--out", tmp_path / "o")),
        (files.request, lambda p: ("evaluate", files.program, p, "--out", tmp_path / "o")),
        (files.response, lambda p: ("decrypt", p, "--key", files.key)),
        (files.key, lambda p: ("decrypt", files.response, "--key", p)),
        (files.model, lambda p: ("compile", p, "--out", tmp_path / "o")),
    ):
        data = path.read_bytes()
        bad = tmp_path / "bad"
        for size in (0, 5, len(data) // 2, len(data) - 1):
            bad.write_bytes(data[:size])
            refused(capsys, *use(bad))
        for position in rng.integers(0, len(data), 6):
            flipped = bytearray(data)
            flipped[position] ^= 1 << int(rng.integers(8))
            bad.write_bytes(flipped)
            refused(capsys, *use(bad))
    assert not (tmp_path / "o").exists()


def test_spec_that_is_damaged(files: Files, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    body = json.loads(files.spec.read_text())
    out = tmp_path / "k"
    for field, value in (("scale_bits", 99), ("table", [[1]]), ("labels", []), ("version", 9), ("profiles", {"x": {}})):
        (tmp_path / "spec").write_text(json.dumps({**body, field: value}))
        refused(capsys, "keygen", tmp_path / "spec", "--out", out)
    (tmp_path / "spec").write_bytes(b"\xff\xfe{")
    refused(capsys, "keygen", tmp_path / "spec", "--out", out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [("--lanes", 0, "lanes"), ("--lanes", 10**9, "lanes"), ("--profile", "best", "profile"), ("--noise", 9, "noise")],
)
def test_bad_key_parameters(
    files: Files, capsys: pytest.CaptureFixture[str], tmp_path: Path, option: str, value: object, word: str
) -> None:
    assert word in refused(capsys, "keygen", files.spec, "--out", tmp_path / "k", option, value)
    assert not (tmp_path / "k").exists()


def test_images_of_another_shape_or_kind(files: Files, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    Image.new("L", (27, 28)).save(tmp_path / "narrow.png")
    Image.new("RGB", (28, 28), (1, 2, 3)).save(tmp_path / "colour.png")
    (tmp_path / "text.png").write_text("no image")
    arguments = ("--key", files.key, "--out", tmp_path / "r")
    assert "[1, 28, 27]" in refused(capsys, "encrypt", tmp_path / "narrow.png", *arguments, "--quiet")
    assert "[3, 28, 28]" in refused(capsys, "encrypt", tmp_path / "colour.png", *arguments, "--quiet")
    assert "text.png" in refused(capsys, "encrypt", tmp_path / "text.png", *arguments, "--quiet")
    assert "missing.png" in refused(capsys, "encrypt", tmp_path / "missing.png", *arguments, "--quiet")
    assert "one of the two" in refused(capsys, "encrypt", *arguments, "--quiet")
    assert not (tmp_path / "r").exists()


def test_nothing_is_overwritten_or_left_behind(
    files: Files, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = files.key.read_bytes()
    assert "--force" in refused(capsys, "keygen", files.spec, "--out", files.key)
    assert files.key.read_bytes() == before
    nowhere = tmp_path / "no" / "such" / "folder"
    for arguments in (
        ("keygen", files.spec),
        ("compile", files.model),
        ("evaluate", files.program, files.request),
        ("encrypt", "--key", files.key, "--dataset", SAMPLE, "--count", 1, "--quiet"),
    ):
        assert "no/such/folder" in refused(capsys, *arguments, "--out", nowhere / "file")
    assert list(tmp_path.iterdir()) == []


def test_non_finite_weights(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = mcfhe.models.lenet().eval()
    for value in (float("nan"), float("inf")):
        with torch.no_grad():
            next(model.parameters()).view(-1)[3] = value
        with pytest.raises(mcfhe.McfheError, match=r"conv1\.weight.*NaN or infinity"):
            mcfhe.compile(model, input_shape=(1, 28, 28), mean=0.5, std=0.5)


def test_usage_errors_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, "keygen", code=2)
    refused(capsys, "no-such-command", code=2)
    refused(capsys, "evaluate", "a", "b", "--out", "c", "--bogus", code=2)


def test_json_errors_are_one_object(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["decrypt", str(tmp_path / "no"), "--key", str(tmp_path / "no"), "--json"]) == 1
    captured = capsys.readouterr()
    assert set(json.loads(captured.out)) == {"error"}


def test_unknown_device_and_model(files: Files, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = refused(capsys, "evaluate", files.program, files.request, "--out", tmp_path / "o", "--device", "tpu")
    assert "tpu" in line
    assert "lenet:nothing" in refused(capsys, "compile", "lenet:nothing", "--out", tmp_path / "o")


def test_help_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.split("Commands:")[1].strip().splitlines()]
    assert {"demo", "train", "compile", "keygen", "encrypt", "evaluate", "decrypt", "info"} <= set(listed)
    for name in listed:
        assert run([name, "--help"]) == 0
        assert "--json" in capsys.readouterr().out


def test_info_names_what_was_built(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["torch"] == torch.__version__
    assert facts["cpu_isa"] in ("generic", "avx2", "avx512")


def test_train_writes_a_model_that_compiles(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for name in ("dark", "light"):
            folder = tmp_path / "set" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                level = 40 if name == "dark" else 210
                Image.fromarray(rng.integers(level - 30, level + 30, (28, 28), dtype=np.uint8)).save(
                    folder / f"{i}.png"
                )
    out = tmp_path / "model"
    arguments = ["train", "--dataset", str(tmp_path / "set"), "--epochs", "2", "--batch-size", "8", "--out", str(out)]
    assert run([*arguments, "--json"]) == 0
    reported = json.loads(capsys.readouterr().out)["test_accuracy"]
    assert reported == mcfhe.models.load(out).mcfhe_metadata.test_accuracy
    assert reported >= 0.5
    assert run(["compile", str(out), "--out", str(tmp_path / "program"), "--passes", "letter", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["order"]["patent"] == [8, 352]
    assert mcfhe.load_program(tmp_path / "program").client_spec().labels == ("dark", "light")
    assert "epochs" in refused(capsys, "train", "--out", out, "--epochs", 0)
    quick = ["--epochs", "1", "--validation", "0"]
    assert run([*arguments[:3], "--recipe", "cryptonets-mnist", *quick, "--out", str(out), "--json"]) == 0
    card = mcfhe.models.load(out).mcfhe_metadata
    assert (card.arch, card.arguments["activation"]) == ("cryptonets", "square")  # of the recipe
    assert "--epochs 1 " in card.command  # said here
    assert "--validation" not in card.command
    assert "choose one of lenet-fashion-mnist" in refused(capsys, "train", "--out", out, "--recipe", "vgg")


def test_bench_reports_every_step(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "--model", str(files.model), "--images", "2", "--repeats", "2", "--json", "--quiet"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in body["rows"]] == ["encrypt", "evaluate", "decrypt", "float32"]
    assert all(row["median"] > 0 for row in body["rows"])
    assert body["ratio"] > 0
    assert body["limbs"] > 1
    assert (body["scheme"], body["lanes"], body["images"]) == ("modular", 4, 2)


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("demo", "--scheme", "lattice", "--lanes", 8), "--lanes: an option of the modular scheme"),
        (("demo", "--scheme", "lattice", "--picture", "x.png"), "--picture: an option of the modular scheme"),
        (("bench", "--scheme", "lattice", "--profile", "patent"), "--profile: an option of the modular scheme"),
        (("compile", "lenet:mnist", "-o", "x", "--precision-bits", 8), "--precision-bits: an option of the lattice"),
        (("compile", "lenet:mnist", "-o", "x", "--degree", 8192), "--degree: an option of the lattice scheme"),
        (("compile", "lenet:mnist", "-o", "x", "--scheme", "lattice", "--guard-bits", 8), "--guard-bits: an option"),
    ],
)
def test_options_of_the_other_scheme_are_not_ignored(
    arguments: tuple[object, ...], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*map(str, arguments)]) == 2
    assert option in capsys.readouterr().err
