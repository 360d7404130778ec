"""The file of a program: everything comes back, and nothing else is read."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import mcfhe
from mcfhe import PolyActivation, container, models
from mcfhe.errors import FormatError, McfheError, ParameterError
from mcfhe.graph.nodes import Graph, Linear, Poly
from mcfhe.program import Program
from mcfhe.spec import PROFILES
from tests.graph_support import one_thread  # noqa: F401 - a fixture


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 4, 3, padding=1),
        PolyActivation(num_channels=4),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 3),
    )
    return mcfhe.compile(nn.Sequential(*layers).eval(), (3, 6, 6), 0.5, 0.25, labels=["cat", "dog", "owl"])


def test_round_trip(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "net.mcfhe"
    program.save(path)
    loaded = mcfhe.load_program(path)
    assert loaded == program
    assert hash(loaded) == hash(program)
    assert loaded.program_id == program.program_id
    assert (loaded.settings, loaded.client_spec()) == (program.settings, program.client_spec())
    assert loaded.summary() == program.summary()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 3, 6, 6), np.uint8)
    for profile in PROFILES:
        V = rng.integers(-(2**40), 2**40, images.shape)
        assert loaded.evaluate_integers(V, profile) == program.evaluate_integers(V, profile)
    assert torch.equal(loaded.evaluate_plain(images), program.evaluate_plain(images))


def test_file_is_small_and_holds_integers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    program = mcfhe.compile(models.lenet().eval(), (1, 28, 28), scale_bits=8)
    data = program.to_bytes()
    weights = sum(p.numel() for p in models.lenet().parameters())
    assert len(data) < 1.1 * weights + 8192  # one byte each below 2**7, two for some
    header = container.read_header(data)
    assert {info.dtype for info in header.tensors.values()} == {"U8"}
    assert header.metadata["kind"] == "program"


@pytest.mark.parametrize("scale", [1, 200, 2**20, 2**40])
def test_integers_of_every_width_come_back(scale: int) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 3)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[-1.0, 127 / 128], [0.5, -0.5], [0.25, 0.0]]) * min(scale, 2**20))
        model[1].bias.copy_(torch.tensor([-1.0, 0.5, 127 / 128]) * scale)
    program = mcfhe.compile(model, (1, 1, 2), scale_bits=7)
    again = Program.from_bytes(program.to_bytes())
    for node, same in zip(program.graph.nodes, again.graph.nodes, strict=True):
        if isinstance(node, Linear) and isinstance(same, Linear):
            assert np.array_equal(node.weight, same.weight)
            assert np.array_equal(node.bias, same.bias)  # type: ignore[arg-type]
    assert again == program


def test_damaged_files(program: Program, tmp_path: Path) -> None:
    data = program.to_bytes()
    path = tmp_path / "net.mcfhe"
    for end in (0, 7, 8, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises(FormatError, match=re.escape(str(path))):
            mcfhe.load_program(path)
    for at in range(0, len(data), 97):
        flipped = bytearray(data)
        flipped[at] ^= 1 << (at % 8)
        with pytest.raises(FormatError):
            Program.from_bytes(bytes(flipped))
    for foreign in (b"PK\x03\x04" + bytes(100), b"{}", b"\x80\x04\x95" + bytes(64), data + b"\0"):
        path.write_bytes(foreign)
        with pytest.raises(FormatError):
            mcfhe.load_program(path)
    with pytest.raises(McfheError, match="cannot be read"):
        mcfhe.load_program(tmp_path / "nothing")
    with pytest.raises(McfheError, match="cannot be written"):
        program.save(tmp_path / "no" / "folder")
    path.write_bytes(container.pack("request", {}, {}))
    with pytest.raises(FormatError, match="kind 'request'"):
        mcfhe.load_program(path)


def forge(program: Program, change: Any) -> bytes:
    """A file with a valid digest and id field whose content was changed by ``change(body, tensors)``."""
    header = container.read_header(program.to_bytes())
    body = json.loads(header.metadata["program"])
    tensors = dict(program._tensors)
    change(body, tensors)
    return container.pack("program", tensors, {"program_id": program.program_id, "program": json.dumps(body)})


def _set(*path: Any) -> Any:
    def change(body: Any, tensors: dict[str, np.ndarray]) -> None:
        *keys, last, value = path
        for key in keys:
            body = body[key]
        body[last] = value

    return change


def _tensor(name: str, value: np.ndarray | None) -> Any:
    def change(body: Any, tensors: dict[str, np.ndarray]) -> None:
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value

    return change


FORGERIES: list[tuple[Any, str]] = [
    (_set("nodes", []), "'nodes'"),
    (_set("nodes", {}), "'nodes'"),
    (_set("nodes", 1, "op", "eval"), "no known 'op'"),
    (_set("nodes", 1, "op", ["conv2d"]), "no known 'op'"),
    (_set("nodes", 1, 5), "no known 'op'"),
    (_set("nodes", 1, "extra", 5), "other fields"),
    (_set("nodes", 1, "name", ""), "'name'"),
    (_set("nodes", 1, "name", 7), "'name'"),
    (_set("nodes", 1, "name", "\x1b[2J"), "printable"),
    (_set("settings", "labels", ["\n", "a", "b"]), "printable"),
    (_set("nodes", 1, "inputs", [7]), "reads values"),
    (_set("nodes", 1, "inputs", [-1]), "'inputs'"),
    (_set("nodes", 1, "inputs", 0), "'inputs'"),
    (_set("nodes", 1, "inputs", [True]), "'inputs'"),
    (_set("nodes", 1, "groups", 1.0), "'groups'"),
    (_set("nodes", 1, "groups", 2), "does not fit input"),
    (_set("nodes", 1, "stride", [1]), "'stride' has 1 entries"),
    (_set("nodes", 1, "stride", [0, 1]), "out of range"),
    (_set("nodes", 1, "padding", [2**31, 1]), "'padding'"),
    (_set("nodes", 1, "padding", [2**30, 2**30]), "more than"),
    (_set("nodes", 1, "weight", [4, 3, 3]), "does not fit shape"),
    (_set("nodes", 1, "weight", [4, 3, 9, 1]), "larger than its input"),
    (_set("nodes", 0, "shape", [3, 6]), "'shape' has 2 entries"),
    (_set("nodes", 0, "shape", [2, 6, 6]), "does not fit input"),
    (_tensor("node.1.weight", None), "does not fit shape"),
    (_tensor("node.1.weight", np.zeros((108, 3), np.uint8)), "does not fit shape"),
    (_tensor("node.1.bias", np.full((4, 8), 127, np.uint8)), "beyond 2\\*\\*53"),
    (_tensor("node.1.bias", np.array([[0] * 7 + [128]] * 4, np.uint8)), "beyond 2\\*\\*53"),
    (_tensor("node.1.weight", np.array([[0, 0, 0, 0, 1, 0, 0, 0]] * 108, np.uint8)), "not below"),
    (_tensor("node.9.weight", np.zeros((1, 1), np.uint8)), "belongs to no layer"),
    (_tensor("weights", np.zeros((1, 1), np.uint8)), "unexpected tensor"),
    (_tensor("node.1.weight", np.zeros((108, 2), np.uint8)), "'program_id' is not that of the content"),
    (_set("settings", []), "'settings'"),
    (_set("settings", "scale_bits", 64), "scale_bits"),
    (_set("settings", "scale_bits", True), "scale_bits"),
    (_set("settings", "mean", 0.5), "'mean' is not a list"),
    (_set("settings", "mean", ["0.5"] * 3), "mean"),
    (_set("settings", "std", [0.0] * 3), "positive"),
    (_set("settings", "labels", ["a"]), "for 1 labels"),
    (_set("settings", "more", 1), "'settings'"),
    (_set("more", 1), "nodes and settings"),
]


@pytest.mark.parametrize(("change", "message"), FORGERIES, ids=[str(i) for i in range(len(FORGERIES))])
def test_forged_content(program: Program, change: Any, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        Program.from_bytes(forge(program, change))


def test_forged_json(program: Program) -> None:
    for text in ("", "[]", "{", "[" * 5000, '{"nodes": NaN}', "1e999"):
        data = container.pack("program", {}, {"program_id": program.program_id, "program": text})
        with pytest.raises(FormatError):
            Program.from_bytes(data)


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_forged_anything(program: Program, data: st.DataObject) -> None:
    """A random value anywhere in the JSON: FormatError, or a program that is the same after all."""
    junk = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.just([]), st.just({})
    )

    def change(body: Any, tensors: dict[str, np.ndarray]) -> None:
        while True:
            keys = sorted(body) if isinstance(body, dict) else range(len(body))
            key = data.draw(st.sampled_from(list(keys)))
            if not isinstance(body[key], dict | list) or not body[key] or data.draw(st.booleans()):
                body[key] = data.draw(junk)
                return
            body = body[key]

    with contextlib.suppress(FormatError):
        assert Program.from_bytes(forge(program, change)) == program


def test_numbers_beyond_any_use_are_refused_before_they_are_computed() -> None:
    """Fifty polynomials of degree 16 on top of each other would mean integers of 16**50 bits."""
    power = Poly(name="p", inputs=(0,), coefficients=np.array([[0.0] * 16 + [1.0]]))
    program = mcfhe.compile(nn.Flatten().eval(), (1, 1, 2))
    nodes = [*program.graph.nodes]
    for i in range(50):
        nodes.append(Poly(name=f"p{i}", inputs=(len(nodes) - 1,), coefficients=power.coefficients))
    with pytest.raises(ParameterError, match="its order"):
        Program(Graph(tuple(nodes)), program.settings)
