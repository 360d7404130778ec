"""One reader and one writer for every file and message: safetensors with versioned metadata and a digest.

Metadata of every container: ``format`` ("mcfhe"), ``kind``, ``version``, ``digest``, and what the kind needs
(``program_id``, ``key_id``, ...), all strings. ``digest`` is the SHA-256, in lower-case hex, of the whole
container with the 64 characters of the digest itself set to ``0``; so every bit of the file counts, padding
included. It finds damage. It is not a signature: whoever alters a container can compute it anew.

Nothing in a container is trusted: the header is parsed here, within a bound, every offset must lie inside the
input and tensors must cover it exactly, so that reading never allocates more than a small multiple of the input.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import secrets
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mcfhe.arguments import file_path
from mcfhe.errors import FormatError, McfheError, SecretFieldError

FORMAT = "mcfhe"
VERSION = "1"
MAX_HEADER_BYTES = 1 << 18
MAX_FILE_BYTES = 1 << 36

SECRET_KINDS = frozenset({"secret-key", "client", "lattice-client", "staged-client"})
SECRET_NAMES = frozenset(
    {"secret", "secret_key", "positions", "lane_positions", "wz", "user_key", "passphrase", "sealed"}
)

# In ascending order of safetensors, which lays tensors out by descending dtype, then by name.
_DTYPES = {"U8": "<u1", "F16": "<f2", "I32": "<i4", "F32": "<f4", "F64": "<f8", "I64": "<i8"}
_COMMON = ("format", "kind", "version", "digest")
# What people mistake for ours, by its first bytes, none of which begin a header of a size that is read.
_OTHER_FORMATS = (
    (b"{", "JSON text, such as a client spec"),
    (
        b"PK\3\4",
        "a zip file, such as a checkpoint of torch.save (mcfhe.compile takes the module itself)",
    ),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
)
_NO_DIGEST = "0" * 64
_DIGEST = re.compile(rb'"digest":"([0-9a-f]{64})"')


@dataclass(frozen=True, slots=True)
class TensorField:
    """What a tensor of a container must look like: safetensors dtype and (lowest, highest) size of each axis."""

    dtype: str
    shape: tuple[tuple[int, int], ...]
    optional: bool = False


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One entry of a parsed header; ``begin`` and ``end`` are offsets in the whole container."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed, bounded header. Offsets are checked against the input; metadata and digest are not yet."""

    metadata: dict[str, str]
    tensors: dict[str, TensorInfo]
    size: int


@dataclass(frozen=True, slots=True)
class Container:
    """Validated content: metadata without the common fields, tensors as views of the input."""

    kind: str
    metadata: dict[str, str]
    tensors: dict[str, np.ndarray]


class Stored(ABC):
    """A message that has bytes and is also kept in files."""

    @abstractmethod
    def to_bytes(self) -> bytes:
        """The content of the file."""

    @staticmethod
    @abstractmethod
    def from_bytes(data: bytes) -> Any:
        """The inverse of :meth:`to_bytes`; FormatError for anything else."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write atomically; McfheError if the file cannot be written."""
        write_file(path, self.to_bytes())

    @classmethod
    def load(cls, path: str | os.PathLike[str], max_bytes: int = MAX_FILE_BYTES) -> Any:
        """Read what :meth:`save` wrote, at most ``max_bytes``; FormatError names the file."""
        data = read_file(path, max_bytes)
        with naming(path):
            return cls.from_bytes(data)


def pack(
    kind: str, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], *, allow_secret: bool = False
) -> bytes:
    """Serialise; SecretFieldError for a secret kind or name unless ``allow_secret``. Same content, same bytes."""
    if not allow_secret:
        _refuse_secret(kind, (*tensors, *metadata))
    header = {**metadata, "format": FORMAT, "kind": kind, "version": VERSION, "digest": _NO_DIGEST}
    head, arrays = _layout(tensors, header)
    state = hashlib.sha256(head)
    for array in arrays:
        state.update(array)
    at = head.index(b'"digest":"' + _NO_DIGEST.encode()) + len(b'"digest":"')
    return b"".join((head[:at], state.hexdigest().encode(), head[at + 64 :], *arrays))


def _layout(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> tuple[bytes, list[memoryview]]:
    """Length and header, then the bytes of every tensor: what the safetensors library writes, with the metadata in
    order (its own writer leaves that in a random one) and without its copies of the data."""
    body: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    views, end = [], 0
    arrays = {name: np.ascontiguousarray(value, value.dtype.newbyteorder("<")) for name, value in tensors.items()}
    names = {np.dtype(code): name for name, code in _DTYPES.items()}
    order = list(_DTYPES)
    try:
        found = {name: names[array.dtype] for name, array in arrays.items()}
    except KeyError as error:
        raise FormatError(f"container: a tensor of {error} cannot be written; known: {', '.join(_DTYPES)}") from None
    for name in sorted(arrays, key=lambda name: (-order.index(found[name]), name)):
        array = arrays[name]
        begin, end = end, end + array.nbytes
        body[name] = {"dtype": found[name], "shape": list(array.shape), "data_offsets": [begin, end]}
        views.append(array.reshape(-1).view(np.uint8).data)
    header = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header, views


def unpack(
    data: bytes | bytearray,
    kind: str,
    fields: Mapping[str, TensorField],
    metadata: Iterable[str] = (),
    *,
    allow_secret: bool = False,
    max_header: int = MAX_HEADER_BYTES,
) -> Container:
    """Parse and validate a container of one kind.

    ``fields`` names the tensors; a name that ends in ``*`` stands for any number of tensors with that prefix.
    ``metadata`` names the fields that must be there beside the common ones; no others are accepted.
    Tensors come back as little-endian views of ``data``, read-only if it is bytes. FormatError names what is wrong;
    SecretFieldError if the container holds secrets and ``allow_secret`` is not set.
    """
    header = read_header(data, max_header)
    found = header.metadata
    if found.get("format") != FORMAT:
        raise FormatError(f"{kind}: metadata field 'format' is {_show(found.get('format'))}, not {FORMAT!r}")
    if not allow_secret:
        _refuse_secret(found.get("kind", ""), (*header.tensors, *found))
    if found.get("kind") != kind:
        raise FormatError(f"a container of kind {_show(found.get('kind'))} was given where {kind!r} is read")
    if found.get("version") != VERSION:
        raise FormatError(f"{kind}: version {_show(found.get('version'))}, this build reads version {VERSION}")
    _check_digest(data, header, kind)
    wanted = {*metadata, *_COMMON}
    if set(found) != wanted:
        missing, extra = sorted(wanted - set(found)), sorted(set(found) - wanted)
        raise FormatError(f"{kind}: metadata fields missing {_show(missing)}, unexpected {_show(extra)}")
    _check_tensors(kind, header.tensors, fields)
    tensors = {
        name: np.frombuffer(data, _DTYPES[info.dtype], math.prod(info.shape), info.begin).reshape(info.shape)
        for name, info in header.tensors.items()
    }
    return Container(kind, {name: found[name] for name in found if name not in _COMMON}, tensors)


def read_header(data: bytes | bytearray, max_header: int = MAX_HEADER_BYTES) -> Header:
    """Parse the safetensors header alone, without trusting any number in it. Tensors are not touched."""
    if not isinstance(data, bytes | bytearray):
        raise FormatError(f"container: bytes expected, not {type(data).__name__}")
    if len(data) < 8:
        raise FormatError(f"container: {len(data)} bytes, too short for a header; the file is truncated")
    size = int.from_bytes(data[:8], "little")
    if not 2 <= size <= min(max_header, len(data) - 8):
        for start, what in _OTHER_FORMATS:
            if data.startswith(start):
                raise FormatError(f"this is {what}, not a file or message of mcfhe")
        raise FormatError(f"container: header of {size} bytes in a file of {len(data)} (at most {max_header})")
    try:
        body = json.loads(bytes(data[8 : 8 + size]).decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise FormatError("container: the header is not valid JSON; the file is damaged or of another format") from None
    if not isinstance(body, dict):
        raise FormatError("container: the header is not a JSON object")
    metadata = body.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError("container: metadata must map names to strings")
    tensors = {name: _tensor_info(name, entry, 8 + size) for name, entry in body.items()}
    end = 8 + size
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != end:
            raise FormatError(f"container: tensor {_show(name)} leaves a gap or overlaps another")
        end = info.end
    if end != len(data):
        raise FormatError(f"container: tensors end at byte {end} of {len(data)}; the file is truncated or padded")
    return Header(metadata, tensors, size)


def as_bytes(data: bytes | bytearray | memoryview) -> bytes:
    """Bytes of any buffer; FormatError for anything else (``bytes(n)`` of an int would allocate n bytes)."""
    if not isinstance(data, bytes | bytearray | memoryview):
        raise FormatError(f"container: bytes expected, not {type(data).__name__}")
    return bytes(data)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    body = dict(pairs)
    if len(body) != len(pairs):
        raise ValueError("a name occurs twice")
    return body


def _tensor_info(name: str, entry: Any, start: int) -> TensorInfo:
    """FormatError unless the entry has a known dtype, a sane shape and as many bytes as both ask for."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"container: tensor {_show(name)} needs dtype, shape and data_offsets and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise FormatError(f"container: tensor {_show(name)} has dtype {_show(dtype)}; known: {', '.join(_DTYPES)}")
    for field, value, length in (("shape", shape, 8), ("data_offsets", offsets, 2)):
        # type(), not isinstance: True is no size
        if not isinstance(value, list) or len(value) > length or any(type(v) is not int or v < 0 for v in value):
            raise FormatError(f"container: tensor {_show(name)}: {field} is not a list of at most {length} sizes")
    if len(offsets) != 2 or max((*shape, *offsets)) >= 1 << 63:
        raise FormatError(f"container: tensor {_show(name)}: sizes out of range")
    if math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize != offsets[1] - offsets[0]:
        raise FormatError(f"container: tensor {_show(name)}: shape and data_offsets disagree")
    return TensorInfo(dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _refuse_secret(kind: str, names: Iterable[str]) -> None:
    secret = sorted(name for name in names if name.lower() in SECRET_NAMES)
    if kind in SECRET_KINDS or secret:
        what = f"kind {kind!r}" if kind in SECRET_KINDS else f"field {secret[0]!r}"
        raise SecretFieldError(f"container holds secrets ({what}): only the client that owns it may read or write it")


def _check_digest(data: bytes | bytearray, header: Header, kind: str) -> None:
    view = memoryview(data)
    matches = list(_DIGEST.finditer(view[8 : 8 + header.size]))
    if len(matches) != 1 or matches[0].group(1).decode() != header.metadata.get("digest"):
        raise FormatError(f"{kind}: metadata field 'digest' is missing or not 64 lower-case hex digits")
    at = 8 + matches[0].start(1)
    state = hashlib.sha256(view[:at])
    state.update(_NO_DIGEST.encode())
    state.update(view[at + 64 :])
    if state.hexdigest() != header.metadata["digest"]:
        raise FormatError(f"{kind}: the digest does not match; the data was truncated or altered, fetch it again")


def _check_tensors(kind: str, tensors: Mapping[str, TensorInfo], fields: Mapping[str, TensorField]) -> None:
    patterns = {name[:-1]: field for name, field in fields.items() if name.endswith("*")}
    for name, info in tensors.items():
        field = fields.get(name) or next((f for prefix, f in patterns.items() if name.startswith(prefix)), None)
        if field is None or name.endswith("*"):
            raise FormatError(f"{kind}: unexpected tensor {_show(name)}")
        if info.dtype != field.dtype or len(info.shape) != len(field.shape):
            raise FormatError(
                f"{kind}: tensor {_show(name)} is {info.dtype} with {len(info.shape)} axes; "
                f"{field.dtype} with {len(field.shape)} expected"
            )
        for axis, (size, (low, high)) in enumerate(zip(info.shape, field.shape, strict=True)):
            if not low <= size <= high:
                raise FormatError(f"{kind}: tensor {_show(name)}: axis {axis} is {size}, outside {low}..{high}")
    for name, field in fields.items():
        if not field.optional and not name.endswith("*") and name not in tensors:
            raise FormatError(f"{kind}: tensor {name!r} is missing")


def _show(value: object) -> str:
    """A value from outside, short enough and escaped for a message."""
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."


def parse_int(container: Container, name: str, low: int, high: int) -> int:
    """Metadata field as an integer in low..high; FormatError otherwise. Plain decimal digits only."""
    text = container.metadata[name]
    if not re.fullmatch(r"0|[1-9][0-9]{0,18}", text, re.ASCII) or not low <= int(text) <= high:
        raise FormatError(f"{container.kind}: {name} = {_show(text)} is not an integer in {low}..{high}")
    return int(text)


def parse_hex(container: Container, name: str, digits: int) -> str:
    """Metadata field as ``digits`` lower-case hex digits; FormatError otherwise."""
    text = container.metadata[name]
    if len(text) != digits or not re.fullmatch(r"[0-9a-f]+", text):
        raise FormatError(f"{container.kind}: {name} = {_show(text)} is not {digits} lower-case hex digits")
    return text


def parse_choice(container: Container, name: str, choices: Iterable[str]) -> str:
    """Metadata field as one of ``choices``; FormatError otherwise."""
    text = container.metadata[name]
    if text not in (allowed := tuple(choices)):
        raise FormatError(f"{container.kind}: {name} = {_show(text)} is not one of {', '.join(allowed)}")
    return text


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """FormatErrors of the block begin with the file that it reads: a command is given several."""
    try:
        yield
    except FormatError as error:
        raise type(error)(f"{os.fspath(path)}: {error}") from None


def read_file(path: str | os.PathLike[str], max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Whole content of a regular file of at most ``max_bytes``; McfheError says why it could not be read."""
    with _regular_file(path, max_bytes) as (file, size):
        data: bytes = file.read(size + 1)
    if len(data) != size:
        raise FormatError(f"{path}: changed while it was read; try again")
    return data


def read_secret_file(path: str | os.PathLike[str], max_bytes: int) -> bytearray:
    """As :func:`read_file`, unbuffered and into memory that the caller can overwrite, and should."""
    with _regular_file(path, max_bytes, buffering=0) as (file, size):
        data = bytearray(size)
        view, count = memoryview(data), 0
        while count < size and (got := file.readinto(view[count:])):
            count += got
        more = file.read(1)
    if count != size or more:
        raise FormatError(f"{path}: changed while it was read; try again")
    return data


@contextmanager
def _regular_file(path: str | os.PathLike[str], max_bytes: int, buffering: int = -1) -> Iterator[tuple[Any, int]]:
    """An open file and its size."""
    name = file_path(path)
    try:
        # Without O_NONBLOCK a named pipe would be waited for, for ever.
        with open(
            name, "rb", buffering, opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))
        ) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise FormatError(f"{path}: not a regular file")
            if status.st_size > max_bytes:
                raise FormatError(f"{path}: {status.st_size} bytes, more than the {max_bytes} that are read")
            yield file, status.st_size
    except OSError as error:
        raise McfheError(f"{path}: cannot be read ({error.strerror})") from None


def write_file(path: str | os.PathLike[str], data: bytes, *, secret: bool = False) -> None:
    """Write atomically: a temporary file in the same directory, fsync, rename. On failure the old file stays.

    ``secret`` creates the file with mode 0600 from the start; otherwise the umask decides. McfheError for what a rename
    would destroy: devices and links (``/dev/stdout``), and, unless ``secret``, a file with a secret key.
    """
    target = Path(file_path(path))
    _check_target(target, secret)
    temporary = target.parent / f".{target.name}.{secrets.token_hex(8)}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    created = False
    try:
        handle = os.open(temporary, flags, 0o600 if secret else 0o666)
        created = True
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        created = False
        _sync_directory(target.parent)
    except OSError as error:
        raise McfheError(f"{path}: cannot be written ({error.strerror}); the old file, if any, is unchanged") from None
    finally:
        if created:
            temporary.unlink(missing_ok=True)


def _check_target(target: Path, secret: bool) -> None:
    try:
        mode = target.lstat().st_mode
    except OSError:
        return  # not there, or writing will say why it cannot be
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise McfheError(f"{target}: not a regular file, and would be replaced by one; give the name of a file")
    if secret or not stat.S_ISREG(mode):
        return
    with contextlib.suppress(OSError), target.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        found = re.search(rb'"kind":"([a-z-]+)"', file.read(min(size, MAX_HEADER_BYTES)))
        if found and found[1].decode() in SECRET_KINDS:
            raise McfheError(f"{target}: holds a secret key, which would be lost; choose another name")


def _sync_directory(directory: Path) -> None:
    """Make the rename itself durable; file systems that cannot sync a directory are left alone."""
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
