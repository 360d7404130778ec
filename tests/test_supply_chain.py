"""No file format that executes anything, and every reader refuses one that would."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mcfhe
from mcfhe.cli.client_commands import read_spec
from mcfhe.modular.evaluation_key import EvaluationKey
from mcfhe.modular.keys import SecretKey
from mcfhe.spec import ClientSpec
from mcfhe.wire import Request, Response
from tests.source_rules import violations

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    [path for folder in ("mcfhe", "benchmarks", "csrc") for path in (ROOT / folder).rglob("*.py")] + [ROOT / "setup.py"]
)
# Files that may use a name of tests/source_rules.py, and why that runs no foreign code.
ALLOWED = {
    "mcfhe/__init__.py": frozenset({"importlib.import_module"}),  # its own modules, from a table in the source
    "mcfhe/_extension.py": frozenset({"importlib.import_module"}),  # the compiled extension by its fixed name
    "mcfhe/graph/passes/__init__.py": frozenset({"importlib.import_module"}),  # its own modules
}
READERS: dict[str, Callable[[Path], Any]] = {
    "program": mcfhe.load_program,
    "model": mcfhe.models.load,
    "request": Request.load,
    "response": Response.load,
    "client": mcfhe.Client.load,
    "client with a pass-phrase": lambda path: mcfhe.Client.load(path, "phrase"),
    "secret key": SecretKey.load,
    "evaluation key": EvaluationKey.load,
    "spec file": read_spec,
    "request bytes": lambda path: Request.from_bytes(path.read_bytes()),
    "response bytes": lambda path: Response.from_bytes(path.read_bytes()),
    "spec text": lambda path: ClientSpec.from_json(path.read_bytes().decode("latin-1")),
    "image": mcfhe.datasets.read_image,
    "data set": lambda path: mcfhe.datasets.load(str(path), "test"),
}


class Bomb:
    """Makes a file when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (os.mkdir, (str(self.marker),))


def bombs(folder: Path, marker: Path) -> list[Path]:
    """A pickle by itself, as torch.save writes it (both formats), and inside npy and npz."""
    paths = [folder / name for name in ("plain.pkl", "model.pt", "old.pt", "images.npz", "train.npz", "array.npy")]
    paths[0].write_bytes(pickle.dumps(Bomb(marker)))
    torch.save({"weight": Bomb(marker)}, paths[1])
    torch.save(Bomb(marker), paths[2], _use_new_zipfile_serialization=False)
    array = np.array([Bomb(marker)], object)
    names = ("x_train", "y_train", "x_test", "y_test", "images", "labels", "test_images", "test_labels")
    np.savez(paths[3], **dict.fromkeys(names, array))
    with zipfile.ZipFile(paths[4], "w") as archive:
        for name in names:
            archive.writestr(f"{name}.npy", pickle.dumps(Bomb(marker)))
    np.save(paths[5], array, allow_pickle=True)
    return paths


@pytest.mark.parametrize("reader", READERS)
def test_pickles_are_refused_and_not_run(reader: str, tmp_path: Path) -> None:
    marker = tmp_path / "it ran"
    for path in bombs(tmp_path, marker):
        with pytest.raises(mcfhe.McfheError):
            READERS[reader](path)
        assert not marker.exists(), f"{reader} ran {path.name}"


def test_the_bombs_work(tmp_path: Path) -> None:
    marker = tmp_path / "it ran"
    path = bombs(tmp_path, marker)[0]
    assert not marker.exists()
    pickle.loads(path.read_bytes())  # noqa: S301
    assert marker.is_dir()


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_in_the_source_executes_data(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    assert list(violations(path.read_text("utf-8"), ALLOWED.get(name, frozenset()))) == []


@pytest.mark.parametrize("name", ALLOWED)
def test_exceptions_are_needed(name: str) -> None:
    assert list(violations((ROOT / name).read_text("utf-8")))


PLANTED = """
import pickle
import pickle as harmless
from pickle import loads
def late(): import _pickle
import marshal
from shelve import open as shelf
import yaml; yaml.load(text)
from yaml import safe_load
import dill
import pandas as pd
torch.load(path)
torch.load(path, weights_only=False)
torch.load(path, **options)
torch.load(path, None, weights_only=bool(1))
import torch as t; t.load(path)
from torch import load; load(path)
from torch import load as fetch; fetch(path, map_location="cpu")
read = torch.load; read(path)
getattr(torch, "load")(path)
torch.jit.load(path)
from torch.hub import load
np.load(path, allow_pickle=True)
np.load(path, None, True)
np.load(path, **options)
import numpy; numpy.load(path, allow_pickle=flag)
from numpy import load as read; read(path, allow_pickle=1)
np.save(path, array)
eval(text)
exec(text)
run = eval; run(text)
list(map(eval, texts))
import builtins; builtins.exec(text)
from builtins import eval as parse; parse(text)
__import__("pickle").loads(data)
import importlib; importlib.import_module(name)
from importlib import import_module; import_module("pickle")
import os; os.system(command)
from os import system; system(command)
import subprocess; subprocess.run(command, shell=True)
import runpy
import torch.package
from torch import package
"""
HARMLESS = """
torch.load(path, weights_only=True)
np.load(path)
np.load(path, allow_pickle=False)
np.load(path, None, False)
import json; json.load(file)
model.eval()
models.load(path)
getattr(torch, name)
subprocess.run([command])
re.compile(text)
"""


@pytest.mark.parametrize("line", PLANTED.strip().splitlines())
def test_what_is_planted_is_found(line: str, tmp_path: Path) -> None:
    for name in ("mcfhe/models.py", "mcfhe/container.py"):
        copy = tmp_path / Path(name).name
        copy.write_text((ROOT / name).read_text("utf-8") + f"\n\ndef planted():\n    {line}\n", "utf-8")
        assert list(violations(copy.read_text("utf-8"))), line


@pytest.mark.parametrize("line", HARMLESS.strip().splitlines())
def test_what_is_harmless_passes(line: str) -> None:
    assert list(violations(f"import re, subprocess\nimport numpy as np\nimport torch\n{line}\n")) == []


def test_lockfile_pins_every_tool_with_hashes() -> None:
    text = (ROOT / "requirements-dev.lock").read_text("utf-8")
    entries = re.split(r"\n(?=[a-z0-9])", text[text.index("\n\n") + 2 :].strip())
    names = set()
    for entry in entries:
        pinned = re.match(r"([a-z0-9][a-z0-9._-]*)(\[[a-z,]+\])?==[0-9][^ ]*", entry)
        assert pinned, entry.splitlines()[0]
        assert "--hash=sha256:" in entry
        names.add(pinned.group(1))
    assert not {n for n in names if n == "torch" or n.startswith(("nvidia-", "triton"))}
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    lists = re.search(r"\ndependencies = \[(.*?)\n\]", project, re.S), re.search(r"\ndev = \[(.*?)\n\]", project, re.S)
    for found in lists:
        assert found
        for requirement in re.findall(r'"([A-Za-z0-9_-]+)', found.group(1)):
            assert requirement.lower() in names | {"torch"}, f"{requirement} is not in the lockfile; see its head"
