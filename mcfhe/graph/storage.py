"""A quantised graph as JSON and byte tensors: the content of a program file, and what its identity is computed from.

Only what cannot be derived is kept: structure, and constants. A constant on the grid of a scale is the integer
round(c * 2**bits), in rows of the fewest bytes (1, 2, 4 or 8, two's complement, little-endian) that hold all integers
of its tensor. By the letter those are all constants; with a scale for every layer they are the weights of convolutions
and linear layers, and everything else is a float64 in rows of 8 bytes, little-endian. Orders, alignment constants and
bounds follow from those.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mcfhe import container
from mcfhe.errors import FormatError, ParameterError
from mcfhe.graph.compiled import Compiled
from mcfhe.graph.nodes import Add, AvgPool2d, Concat, Conv2d, Flatten, Graph, Input, Linear, Node, Poly

#: One scale for all layers, or one for every layer that pays one.
Scales = int | Mapping[str, int]

KIND = "program"  # of the container
STAGED_KIND = "staged-program"  # of one that holds several
MAX_NODES = 1 << 12
_WIDTHS = (1, 2, 4, 8)
_INT_LIMIT = 1 << 53  # a float64 holds every integer below


@dataclass(frozen=True, slots=True)
class _Layout:
    """Which fields of a node are numbers, which are tuples of numbers (with their length), which are arrays."""

    node: Callable[..., Node]
    numbers: tuple[str, ...] = ()
    tuples: tuple[tuple[str, int], ...] = ()
    arrays: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


_LAYOUTS = {
    "input": _Layout(Input, tuples=(("shape", 3),)),
    "conv2d": _Layout(
        Conv2d,
        numbers=("groups",),
        tuples=(("stride", 2), ("padding", 2), ("dilation", 2)),
        arrays=("weight", "bias"),
        optional=("bias",),
    ),
    "linear": _Layout(Linear, arrays=("weight", "bias"), optional=("bias",)),
    "avg_pool2d": _Layout(AvgPool2d, numbers=("divisor",), tuples=(("kernel", 2), ("stride", 2), ("padding", 2))),
    "poly": _Layout(Poly, arrays=("coefficients",)),
    "add": _Layout(Add),
    "concat": _Layout(Concat),
    "flatten": _Layout(Flatten),
}


class StoredProgram(Compiled):
    """A compiled network as a file, of any scheme. Equal when their ids are.

    Attributes:
        program_id: :func:`identity` of the content.
    """

    program_id: str
    _body: str
    _tensors: dict[str, np.ndarray]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the program as one safetensors file; on any failure the file that was there before stays."""
        container.write_file(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """The content of the file."""
        return container.pack(KIND, self._tensors, {"program_id": self.program_id, "program": self._body})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self.program_id == other.program_id

    def __hash__(self) -> int:
        return hash(self.program_id)


def identity(body: str, tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256, hex, of a program's canonical JSON and every tensor with its name and shape."""
    state = hashlib.sha256()
    for part in (body, *(f"{name} {tensor.shape}" for name, tensor in tensors.items())):
        encoded = part.encode()
        state.update(len(encoded).to_bytes(8, "little") + encoded)
    for tensor in tensors.values():
        state.update(tensor.tobytes())
    return state.hexdigest()


def encode_graph(graph: Graph, scales: Scales) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """JSON-ready nodes, and uint8 ``[count, bytes]`` tensors named ``node.INDEX.FIELD``, of a quantised graph."""
    nodes: list[dict[str, Any]] = []
    tensors: dict[str, np.ndarray] = {}
    for index, node in enumerate(graph.nodes):
        layout = _LAYOUTS[node.op]
        entry: dict[str, Any] = {"op": node.op, "name": node.name, "inputs": list(node.inputs)}
        entry |= {field: getattr(node, field) for field in layout.numbers}
        entry |= {field: list(getattr(node, field)) for field, _ in layout.tuples}
        for field in layout.arrays:
            array = getattr(node, field)
            if array is not None:
                entry[field] = list(array.shape)
                tensors[f"node.{index}.{field}"] = _to_bytes(array, _grid_of(node.name, field, scales))
        nodes.append(entry)
    return nodes, tensors


def decode_graph(nodes: Any, tensors: Mapping[str, np.ndarray], scales: Scales) -> Graph:
    """The inverse of :func:`encode_graph` for untrusted content; FormatError names what is wrong."""
    if not isinstance(nodes, list) or not 2 <= len(nodes) <= MAX_NODES:
        raise FormatError(f"program: field 'nodes' is not a list of 2..{MAX_NODES} layers")
    left = dict(tensors)
    decoded = [_decode_node(index, entry, left, scales) for index, entry in enumerate(nodes)]
    if left:
        raise FormatError(f"program: tensor {next(iter(left))!a} belongs to no layer")
    try:
        return Graph(tuple(decoded))
    except ParameterError as error:
        raise FormatError(f"program: {error}") from None


def _decode_node(index: int, entry: Any, tensors: dict[str, np.ndarray], scales: Scales) -> Node:
    layout = _LAYOUTS.get(entry.get("op", "")) if isinstance(entry, dict) and type(entry.get("op")) is str else None
    if layout is None:
        raise FormatError(f"program: layer {index} has no known 'op'")
    fields = {"op", "name", "inputs", *layout.numbers, *(field for field, _ in layout.tuples), *layout.arrays}
    if not set(entry) <= fields or not fields - set(layout.optional) <= set(entry):
        raise FormatError(f"program: layer {index} has other fields than {', '.join(sorted(fields))}")
    name = entry["name"]
    if type(name) is not str or not 1 <= len(name) <= 1 << 12 or not name.isprintable():
        raise FormatError(f"program: layer {index}: 'name' is not a short printable text")
    values: dict[str, Any] = {"name": name, "inputs": _sizes(index, "inputs", entry["inputs"], None)}
    for field in layout.numbers:
        values[field] = _sizes(index, field, [entry[field]], 1)[0]
    for field, length in layout.tuples:
        values[field] = _sizes(index, field, entry[field], length)
    for field in layout.arrays:
        if field not in entry:
            values[field] = None
            continue
        shape = _sizes(index, field, entry[field], None)
        data = tensors.pop(f"node.{index}.{field}", None)
        if data is None or data.ndim != 2 or data.shape[1] not in _WIDTHS or data.shape[0] != _product(shape):
            raise FormatError(f"program: layer {index}: tensor of '{field}' is missing or does not fit shape {shape}")
        values[field] = _from_bytes(index, field, data, _grid_of(name, field, scales)).reshape(shape)
    return layout.node(**values)


def _grid_of(name: str, field: str, scales: Scales) -> int | None:
    """Bits of the grid that a constant lies on; None for a constant on none."""
    if isinstance(scales, int):
        return scales
    if field != "weight":
        return None
    if name not in scales:
        raise FormatError(f"program: weight_bits has no bits for layer {name!r}")
    return scales[name]


def _sizes(index: int, field: str, values: Any, length: int | None) -> tuple[int, ...]:
    # type(), not isinstance: True is no size
    if not isinstance(values, list) or any(type(v) is not int or not 0 <= v < 1 << 31 for v in values):
        raise FormatError(f"program: layer {index}: '{field}' is not made of whole numbers in range")
    if length is not None and len(values) != length:
        raise FormatError(f"program: layer {index}: '{field}' has {len(values)} entries instead of {length}")
    return tuple(values)


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _to_bytes(array: np.ndarray, scale_bits: int | None) -> np.ndarray:
    rows: np.ndarray
    if scale_bits is None:
        rows = np.ascontiguousarray(array, "<f8").reshape(-1, 1).view(np.uint8)
        return rows
    integers = np.ldexp(array, scale_bits).astype("<i8").reshape(-1)
    low, high = int(integers.min()), int(integers.max())
    width = next(w for w in _WIDTHS if -(1 << (8 * w - 1)) <= low and high < 1 << (8 * w - 1))
    rows = integers.astype(f"<i{width}").view(np.uint8).reshape(-1, width)
    return rows


def _from_bytes(index: int, field: str, data: np.ndarray, scale_bits: int | None) -> np.ndarray:
    if scale_bits is None:
        if data.shape[1] != 8:
            raise FormatError(f"program: layer {index}: '{field}' is not made of float64 values")
        return np.ascontiguousarray(data).view("<f8").reshape(-1).astype(np.float64)
    integers = np.ascontiguousarray(data).view(f"<i{data.shape[1]}").reshape(-1).astype(np.int64)
    if (np.abs(integers) >= _INT_LIMIT).any() or (integers == np.iinfo(np.int64).min).any():
        raise FormatError(f"program: layer {index}: '{field}' holds an integer beyond 2**53")
    return np.ldexp(integers.astype(np.float64), -scale_bits)
