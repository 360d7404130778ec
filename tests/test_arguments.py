"""What the public functions do with arguments that are not what they take: one error of mcfhe's that names them."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mcfhe
from mcfhe.errors import McfheError, MismatchError, ParameterError

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 1, 4, 4), dtype=np.uint8)
NAN, HUGE = float("nan"), 10**400
NOT_A_PATH = [None, 5, b"bytes", "", "a\0b"]
NO_DEVICE = ["elsewhere", "meta", None, 5]


class Square(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), Square(), nn.Flatten(), nn.Linear(8, 3)).eval()


def trained() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).eval()


def compiled(model: Any = None, **arguments: Any) -> mcfhe.Program:
    defaults: dict[str, Any] = {"mean": 0.5, "std": 0.5, "scale_bits": 6}
    return mcfhe.compile(network() if model is None else model, (1, 4, 4), **(defaults | arguments))  # type: ignore[no-any-return]


@cache
def program() -> mcfhe.Program:
    return compiled()


@cache
def client() -> mcfhe.Client:
    return mcfhe.Client.generate(program().client_spec())  # type: ignore[no-any-return]


@cache
def staged() -> mcfhe.StagedProgram:
    return mcfhe.refresh(program(), PIXELS, ["1"])


def generated(**arguments: Any) -> Any:
    return mcfhe.Client.generate(arguments.pop("spec", program().client_spec()), **arguments)


def converted(**arguments: Any) -> Any:
    return mcfhe.convert(trained(), arguments.pop("calibration", PIXELS), **arguments)


def finetuned(**arguments: Any) -> Any:
    model = arguments.pop("model", None)
    known = {"images": PIXELS, "labels": np.arange(8) % 3, "epochs": 1, "progress": False}
    return mcfhe.finetune(converted(degree=2).model if model is None else model, **(known | arguments))


def trains(**arguments: Any) -> Any:
    images = mcfhe.datasets.Dataset(torch.from_numpy(PIXELS), torch.arange(8) % 3, ("a", "b", "c"), "noise")
    return mcfhe.train.train(**({"dataset": (images, images), "epochs": 1, "progress": False} | arguments))


def searched(**arguments: Any) -> Any:
    return compiled(**({"scale_bits": "auto", "calibration": PIXELS} | arguments))


def remote(**arguments: Any) -> Any:
    return mcfhe.RemoteServer(arguments.pop("url", "https://127.0.0.1:1"), **arguments)


CASES: list[tuple[Callable[..., Any], str, list[Any]]] = [
    (compiled, "mean", ["0.5", True, HUGE, [b"1"]]),
    (compiled, "std", ["0.5", HUGE]),
    (compiled, "passes", [5]),
    (compiled, "degree", [4096, "x"]),
    (searched, "tolerance", ["x", None]),
    (searched, "calibration_labels", [[3] * 8, [-1] * 8]),
    (generated, "spec", [None, "x", {}, "PROGRAM"]),
    (generated, "profile", [["patent"], {}]),
    (generated, "moduli", [5]),
    (converted, "calibration", [None, "x", PIXELS.astype(object)]),
    (converted, "mean", [None, "x", HUGE, NAN]),
    (converted, "std", ["x", NAN]),
    (converted, "max_degree", ["x", 1.5, None]),
    (finetuned, "model", [5, nn.Identity()]),
    (finetuned, "images", [None, "x"]),
    (finetuned, "labels", [None, "x", ["a"] * 8, np.full(8, 3)]),
    (finetuned, "mean", [None, "x"]),
    (finetuned, "validation", [5, "x", (PIXELS,), (PIXELS, [0] * 8, 1), (PIXELS, [3] * 8)]),
    (finetuned, "epochs", [1.5, "x", None, True]),
    (finetuned, "batch_size", [1.5, "x", None]),
    (finetuned, "seed", [1.5, "x", None]),
    (finetuned, "lr", ["x", None]),
    (finetuned, "weight_decay", ["x", None]),
    (finetuned, "range_weight", ["x"]),
    (finetuned, "device", NO_DEVICE),
    (trains, "epochs", ["x", 1.5]),
    (trains, "batch_size", ["x", None]),
    (trains, "seed", [1.5, "x"]),
    (trains, "lr", ["x", None]),
    (trains, "augment", [["shift"]]),
    (trains, "grid_bits", [1.5]),
    (trains, "label_smoothing", ["x", NAN]),
    (trains, "range_penalty", ["x"]),
    (trains, "device", NO_DEVICE),
    (remote, "url", [None, 5]),
    (remote, "token", [5]),
    (remote, "timeout_s", ["x", None, NAN]),
    (remote, "retries", ["x", 1.5, NAN]),
    (remote, "retry_wait_s", ["x", float("inf")]),
    (remote, "ca_file", ["a\0b", 5]),
]


@pytest.mark.parametrize(("function", "name", "values"), CASES, ids=lambda v: getattr(v, "__name__", None))
def test_arguments_are_refused_by_name(function: Callable[..., Any], name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(McfheError, match="images" if name == "calibration" and function is converted else name):
            function(**{name: program() if isinstance(value, str) and value == "PROGRAM" else value})


def test_a_model_without_values() -> None:
    with pytest.raises(ParameterError, match="parameter"):
        compiled(network().to("meta"))


@pytest.mark.parametrize("device", NO_DEVICE)
def test_devices(device: Any) -> None:
    for use in (mcfhe.Server, lambda p, device: p.cost(device=device)):
        with pytest.raises(ParameterError, match="device"):
            use(program(), device=device)


def test_things_of_another_kind() -> None:
    """Each is what somebody may well pass by mistake."""
    key, server = client(), mcfhe.Server(program())
    request = key.encrypt(PIXELS[:1])
    several = mcfhe.Client.generate(staged().client_spec())
    first = several.encrypt(PIXELS[:1])
    calls: list[tuple[Callable[[Any], object], list[Any], str]] = [
        (mcfhe.Server, [None, network(), program().client_spec()], "program"),
        (mcfhe.StagedServer, [None, program()], "program"),
        (lambda v: mcfhe.Server(program(), tile_bytes=v), ["x", 1.5, NAN, 0], "tile_bytes"),
        (server.evaluate, [None, b"", key], "request"),
        (key.decrypt, [None, b"", request], "response"),
        (key.decrypt_integers, [None, request], "response"),
        (lambda v: key.decrypt(server.evaluate(request), request_id=v), [5, b""], "request_id"),
        (lambda v: key.encrypt(PIXELS, byte_budget=v), ["x", NAN, 1.5], "byte_budget"),
        (lambda v: mcfhe.explain(v, key.evaluation_key), [None, network(), staged()], "program"),
        (lambda v: mcfhe.explain(program(), v), [None, 5, key], "key"),
        (lambda v: mcfhe.refresh(v, PIXELS), [None, network(), staged(), program().client_spec()], "program"),
        (lambda v: mcfhe.refresh(program(), PIXELS, v), [5, [None], [["0"]], {}], "cuts"),
        (mcfhe.StagedClient.generate, [None, program().client_spec(), "x"], "spec"),
        (lambda v: mcfhe.StagedClient(several.spec, v), [None, 5, "x"], "clients"),
        (lambda v: mcfhe.StagedProgram(v, ("0",)), [None, (1, 2)], "stages"),
        (mcfhe.Server(staged()).evaluate, [None, b"", 5], "request"),
        (several.decrypt, [None, b""], "response"),
        (several.refresh, [None, b"", first], "response"),
        (lambda v: several.classify(PIXELS[:1], v), [None, program()], "server"),
        (lambda v: staged().evaluate_integers(v, "patent"), [None, 5], "integers"),
        (program().certificate, [["patent"], {}], "profile"),
        (program().summary, [["patent"]], "profile"),
        (lambda v: mcfhe.models.lenet(activation=v), [["poly"]], "activation"),
    ]
    for call, values, match in calls:
        for value in values:
            with pytest.raises((ParameterError, MismatchError), match=match):
                call(value)


@pytest.mark.parametrize("path", NOT_A_PATH)
def test_paths(path: Any) -> None:
    request = client().encrypt(PIXELS[:1])
    for call in (mcfhe.load_program, mcfhe.Client.load, mcfhe.Request.load, mcfhe.models.load, program().save,
                 client().save, request.save, mcfhe.datasets.read_image):  # fmt: skip
        with pytest.raises(McfheError):
            call(path)


@pytest.mark.parametrize("passphrase", [5, True, ["a"], 0, {}])
def test_passphrases_are_texts(passphrase: Any, tmp_path: Path) -> None:
    """bytes(5) are five zeros, which anybody can guess."""
    with pytest.raises(ParameterError, match="passphrase"):
        client().save(tmp_path / "key", passphrase)
    assert not (tmp_path / "key").exists()
    client().save(tmp_path / "key", "a passphrase")
    with pytest.raises(ParameterError, match="passphrase"):
        mcfhe.Client.load(tmp_path / "key", passphrase)


def test_keys_that_cannot_be_derived() -> None:
    """Who asks for a key from a secret of their own must not get another one."""
    for name, value in (("user_key", "a passphrase"), ("salt", bytes(16)), ("moduli", [3, 5])):
        with pytest.raises(ParameterError, match=name):
            mcfhe.Client.generate(staged().client_spec(), **{name: value})


def test_files_are_named(tmp_path: Path) -> None:
    """A command reads several: which of them is the wrong one?"""
    program().save(tmp_path / "program")
    (tmp_path / "noise").write_bytes(bytes(range(256)))
    client().save(tmp_path / "key", "a passphrase")
    calls: list[tuple[Callable[[Path], object], str]] = [
        (mcfhe.load_program, "key"),
        (mcfhe.Client.load, "program"),
        (mcfhe.Client.load, "noise"),
        (lambda path: mcfhe.Client.load(path, "another"), "key"),
        (mcfhe.Request.load, "program"),
        (mcfhe.Response.load, "noise"),
        (mcfhe.Response.load, "key"),
    ]
    for call, name in calls:
        with pytest.raises(McfheError, match=re.escape(str(tmp_path / name))) as caught:
            call(tmp_path / name)
        assert str(caught.value).count(str(tmp_path)) == 1
