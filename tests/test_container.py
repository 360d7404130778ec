"""Containers and files: round trips, and bytes from an enemy."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from mcfhe import container
from mcfhe.container import TensorField
from mcfhe.errors import FormatError, McfheError, SecretFieldError
from mcfhe.modular.evaluation_key import EvaluationKey
from mcfhe.wire import Request, Response
from tests.container_support import read_sample, sample, sample_header, with_digest


class TestContainer:
    def test_round_trip(self) -> None:
        content = read_sample(sample())
        assert content.kind == "sample"
        assert content.metadata == {"note": "n"}
        assert content.tensors["numbers"].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert not content.tensors["numbers"].flags.writeable

    def test_is_plain_safetensors(self) -> None:
        assert safetensors.numpy.load(sample())["numbers"].tolist() == [[0, 1, 2], [3, 4, 5]]

    def test_layout_is_the_librarys(self) -> None:
        """Order, offsets and data of every dtype, empty tensors among them; one copy of the data, not three."""
        kinds = ("<u1", "<i4", "<i8", "<f2", "<f4", "<f8")
        tensors = {f"{name}{code[1:]}": np.arange(3).astype(code) for code in kinds for name in "zaé"}
        tensors |= {"empty": np.empty((0, 3), "<i4"), "strided": np.arange(12, dtype=">i4").reshape(3, 4).T}
        plain = {name: np.ascontiguousarray(value, value.dtype.newbyteorder("<")) for name, value in tensors.items()}
        ours, theirs = container.pack("sample", tensors, {}), safetensors.numpy.save(plain)
        bodies = []
        for data in (ours, theirs):
            size = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + size])
            header.pop("__metadata__", None)
            bodies.append((list(header.items()), data[8 + size :]))
        assert bodies[0] == bodies[1]
        with pytest.raises(FormatError, match="<i2"):
            container.pack("sample", {"short": np.zeros(1, "<i2")}, {})

    def test_digest_is_sha256_of_the_bytes_with_the_digest_zeroed(self) -> None:
        data = sample()
        digest = container.read_header(data).metadata["digest"].encode()
        assert data.count(digest) == 1
        assert hashlib.sha256(data.replace(digest, b"0" * 64)).hexdigest().encode() == digest

    def test_own_writer_is_accepted(self) -> None:
        assert read_sample(with_digest(sample_header(), bytes(24))).tensors["numbers"].tolist() == [[0] * 3] * 2

    def test_every_truncation_is_refused(self) -> None:
        data = sample()
        for length in range(len(data)):
            with pytest.raises(FormatError):
                read_sample(data[:length])
        with pytest.raises(FormatError):
            read_sample(data + b"\0")

    def test_every_flipped_bit_is_refused(self) -> None:
        data = bytearray(sample())
        for bit in range(8 * len(data)):
            data[bit // 8] ^= 1 << bit % 8
            with pytest.raises(FormatError):
                read_sample(bytes(data))
            data[bit // 8] ^= 1 << bit % 8

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("format", "other", "'format' is 'other'"),
            ("kind", "request", "of kind 'request' was given where 'sample'"),
            ("version", "2", "version '2', this build reads version 1"),
            ("surplus", "x", "unexpected \\['surplus'\\]"),
        ],
    )
    def test_metadata(self, field: str, value: str, message: str) -> None:
        header = sample_header()
        header["__metadata__"][field] = value
        with pytest.raises(FormatError, match=message):
            read_sample(with_digest(header, bytes(24)))

    @pytest.mark.parametrize("field", ["format", "kind", "version", "note"])
    def test_missing_metadata(self, field: str) -> None:
        header = sample_header()
        del header["__metadata__"][field]
        with pytest.raises(FormatError):
            read_sample(with_digest(header, bytes(24)))

    @pytest.mark.parametrize(
        "changes",
        [
            {"dtype": "I64"},
            {"dtype": "F16"},
            {"dtype": ["I32"]},
            {"dtype": None},
            {"shape": [2, 4]},
            {"shape": [6]},
            {"shape": [1, 6, 1]},
            {"shape": [2, 3.0]},
            {"shape": [True, 6]},
            {"shape": [-2, -3]},
            {"shape": [2**40, 2**40]},
            {"shape": [2**63, 0], "data_offsets": [0, 0]},
            {"shape": [10**4000, 0], "data_offsets": [0, 0]},
            {"shape": [6, 1]},
            {"shape": [0, 3], "data_offsets": [0, 0]},
            {"shape": "23"},
            {"data_offsets": [0, 24, 24]},
            {"data_offsets": [0]},
            {"data_offsets": [24, 0]},
            {"data_offsets": [4, 28]},
            {"data_offsets": [0, 2**62]},
            {"data_offsets": None},
            {"more": 1},
        ],
    )
    def test_hostile_tensor_entries(self, changes: dict[str, Any]) -> None:
        with pytest.raises(FormatError):
            read_sample(with_digest(sample_header(**changes), bytes(24)))

    def test_hostile_layouts(self) -> None:
        both = sample_header() | {"extra": {"dtype": "U8", "shape": [4], "data_offsets": [20, 24]}}
        gap = sample_header() | {"extra": {"dtype": "U8", "shape": [4], "data_offsets": [28, 32]}}
        unknown = sample_header() | {"other": {"dtype": "U8", "shape": [0], "data_offsets": [24, 24]}}
        missing = {"__metadata__": sample_header()["__metadata__"]}
        for header, size in ((both, 24), (gap, 32), (unknown, 24), (missing, 0)):
            with pytest.raises(FormatError):
                read_sample(with_digest(header, bytes(size)))

    @pytest.mark.parametrize(
        "text",
        [
            b"[]",
            b"{",
            b"{}",
            b"[" * 200_000,
            b'{"a":1,"a":1}',
            b'{"__metadata__":{"a":1}}',
            b'{"__metadata__":[]}',
            b"\xff" * 4,
        ],
    )
    def test_hostile_headers(self, text: bytes) -> None:
        with pytest.raises(FormatError):
            read_sample(len(text).to_bytes(8, "little") + text)

    @pytest.mark.parametrize("size", [0, 1, 2**18 + 1, 2**31, 2**63, 2**64 - 1])
    def test_header_length_is_bounded(self, size: int) -> None:
        with pytest.raises(FormatError, match="header of"):
            read_sample(size.to_bytes(8, "little") + b"{}" * 100)

    @pytest.mark.parametrize("data", [None, 10**12, "text", [1]])
    def test_not_bytes(self, data: Any) -> None:
        for reader in (read_sample, Request.from_bytes, Response.from_bytes, EvaluationKey.from_bytes):
            with pytest.raises(FormatError, match="bytes expected"):
                reader(data)

    def test_messages_stay_short(self) -> None:
        header = sample_header()
        header["__metadata__"]["kind"] = "k\n" * 50_000
        with pytest.raises(FormatError) as caught:
            read_sample(with_digest(header, bytes(24)))
        assert len(str(caught.value)) < 300
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("kind", ["secret-key", "client"])
    def test_secret_kinds(self, kind: str) -> None:
        data = container.pack(kind, {}, {}, allow_secret=True)
        with pytest.raises(SecretFieldError):
            container.unpack(data, kind, {})
        assert container.unpack(data, kind, {}, allow_secret=True).kind == kind
        with pytest.raises(SecretFieldError):
            container.pack(kind, {}, {})

    @pytest.mark.parametrize("name", ["positions", "secret_key", "Positions", "WZ", "user_key", "passphrase", "sealed"])
    def test_secret_names(self, name: str) -> None:
        fields = {name: TensorField("U8", ((1, 1),))}
        for tensors, metadata in (({name: np.zeros(1, "u1")}, {}), ({}, {name: "x"})):
            data = container.pack("sample", tensors, metadata, allow_secret=True)
            with pytest.raises(SecretFieldError, match=name):
                container.unpack(data, "sample", fields, metadata)
            with pytest.raises(SecretFieldError, match=name):
                container.pack("sample", tensors, metadata)

    def test_patterns(self) -> None:
        fields = {"weight.*": TensorField("I64", ((1, 5),)), "bias": TensorField("I32", ((1, 5),), optional=True)}
        tensors = {f"weight.{i}": np.arange(i + 1) for i in range(3)}
        assert set(container.unpack(container.pack("sample", tensors, {}), "sample", fields).tensors) == set(tensors)
        assert container.unpack(container.pack("sample", {}, {}), "sample", fields).tensors == {}
        for name, array in (("weights", np.arange(2)), ("weight.9", np.arange(6)), ("weight.*", np.arange(2))):
            with pytest.raises(FormatError):
                container.unpack(container.pack("sample", {name: array}, {}), "sample", fields)


class TestFiles:
    def test_write_replaces(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        previous = os.umask(0o027)
        try:
            container.write_file(path, b"old")
            container.write_file(path, b"new")
        finally:
            os.umask(previous)
        assert container.read_file(path) == b"new"
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert os.listdir(tmp_path) == ["file"]

    @pytest.mark.parametrize("call", ["fsync", "replace", "write"])
    def test_failure_leaves_the_old_file_and_no_other(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        path = tmp_path / "file"
        container.write_file(path, b"old")

        def fail(*_: Any, **__: Any) -> Any:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fdopen" if call == "write" else call, fail)
        with pytest.raises(McfheError, match=r"cannot be written.*No space left"):
            container.write_file(path, b"new")
        monkeypatch.undo()
        assert container.read_file(path) == b"old"
        assert os.listdir(tmp_path) == ["file"]

    def test_interrupt_leaves_no_temporary_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(_: int) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            container.write_file(tmp_path / "file", b"new")
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("where", ["missing/file", "."])
    def test_unwritable(self, tmp_path: Path, where: str) -> None:
        with pytest.raises(McfheError, match="cannot be written"):
            container.write_file(tmp_path / where, b"new")
        assert os.listdir(tmp_path) == []

    def test_unreadable(self, tmp_path: Path) -> None:
        with pytest.raises(McfheError, match="cannot be read"):
            container.read_file(tmp_path / "missing")
        with pytest.raises(McfheError, match="cannot be read"):
            container.read_file(tmp_path)
        (tmp_path / "large").write_bytes(bytes(100))
        with pytest.raises(FormatError, match="100 bytes, more than the 99"):
            container.read_file(tmp_path / "large", 99)

    def test_not_a_regular_file(self, tmp_path: Path) -> None:
        """A pipe without a writer is refused at once, not waited for."""
        os.mkfifo(tmp_path / "pipe")
        for path in (tmp_path / "pipe", "/dev/zero"):
            with pytest.raises(FormatError, match="not a regular file"):
                container.read_file(path)

    def test_growing_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").write_bytes(bytes(10))
        real = os.fstat

        def grow(handle: int) -> os.stat_result:
            status = real(handle)
            (tmp_path / "file").write_bytes(bytes(20))
            return status

        monkeypatch.setattr(os, "fstat", grow)
        with pytest.raises(FormatError, match="changed while it was read"):
            container.read_file(tmp_path / "file")


def test_writing_never_destroys_what_is_no_file(tmp_path: Path) -> None:
    """A rename over /dev/null, by root, leaves the whole machine without one."""
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "dangling", "pipe"):
        before = (tmp_path / name).lstat()
        for secret in (False, True):
            with pytest.raises(McfheError, match=f"{name}: not a regular file"):
                container.write_file(tmp_path / name, b"new", secret=secret)
        assert (tmp_path / name).lstat().st_ino == before.st_ino
    assert (tmp_path / "file").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "file", "link", "pipe"]


@pytest.mark.parametrize("kind", sorted(container.SECRET_KINDS))
def test_nothing_but_a_key_is_written_over_a_key(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "client.key"
    key = container.pack(kind, {"secret": np.zeros(4, "<u1")}, {}, allow_secret=True)
    container.write_file(path, key, secret=True)
    with pytest.raises(McfheError, match=r"client\.key: holds a secret key, which would be lost"):
        container.write_file(path, b"a request")
    assert path.read_bytes() == key
    container.write_file(path, b"another key", secret=True)
    container.write_file(path, b"no key any more")
    assert path.read_bytes() == b"no key any more"
