"""The model file: safetensors weights and a card that says what they are and what their input means."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcfhe import container
from mcfhe.errors import FormatError, ParameterError

KIND = "model"
MAX_FILE_BYTES = 1 << 30

Argument = int | bool | str


@dataclass(frozen=True)
class ModelCard:
    """Where a trained model comes from and what its input means.

    A pixel u in 0..255 of channel c enters the network as ``(u / 255 - mean[c]) / std[c]``.

    Attributes:
        arch: name in ``mcfhe.models.ARCHITECTURES``.
        arguments: the keyword arguments it was built with.
        dataset: name of the training data.
        input_shape: (channels, height, width) of one image.
        mean, std: one value per channel, std positive.
        labels: ``labels[i]`` names score i.
        test_accuracy: of the float model on the whole test split, 0..1; None if never measured.
        command: the command line that trained it.
        seed: of weights, order and augmentation.
        environment: torch version and threads; equal seeds give equal weights only where this is equal too.

    Raises:
        ParameterError: a field outside its range, by name.
    """

    arch: str
    arguments: Mapping[str, Argument]
    dataset: str
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    labels: tuple[str, ...]
    test_accuracy: float | None = None
    command: str = ""
    seed: int = 0
    environment: str = ""

    def __post_init__(self) -> None:
        if len(self.input_shape) != 3 or any(side < 1 for side in self.input_shape):
            raise ParameterError(f"input_shape: {self.input_shape} is not (channels, height, width)")
        channels = self.input_shape[0]
        for field, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != channels or not all(math.isfinite(v) for v in values):
                raise ParameterError(f"{field}: {values} is not {channels} finite values, one per channel")
        if any(v <= 0 for v in self.std):
            raise ParameterError(f"std: {self.std} must be positive")
        if not self.labels:
            raise ParameterError("labels: empty; one name per score is needed")
        if self.test_accuracy is not None and not 0 <= self.test_accuracy <= 1:
            raise ParameterError(f"test_accuracy: {self.test_accuracy} is outside 0..1")

    def to_metadata(self) -> dict[str, str]:
        """The card's part of a container's metadata: strings only, structured fields as JSON."""
        fields: dict[str, str] = {name: getattr(self, name) for name in _TEXT_FIELDS}
        for name in _JSON_FIELDS:
            value = getattr(self, name)
            fields[name] = json.dumps(dict(value) if isinstance(value, Mapping) else value, sort_keys=True)
        return fields

    @staticmethod
    def from_metadata(metadata: Mapping[str, str]) -> ModelCard:
        """The inverse of :meth:`to_metadata`; FormatError names the field that is missing or wrong."""
        missing = [name for name in (*_TEXT_FIELDS, *_JSON_FIELDS) if name not in metadata]
        if missing:
            raise FormatError(f"metadata field {missing[0]!r} is missing; not a model that mcfhe saved")
        values: dict[str, Any] = {name: metadata[name] for name in _TEXT_FIELDS}
        for name, parse in _JSON_FIELDS.items():
            try:
                values[name] = parse(json.loads(metadata[name]))
            except (TypeError, ValueError, RecursionError) as error:
                reason = str(error)[:120]
                raise FormatError(f"{name}: {metadata[name][:80]!r} is not valid ({reason}); save it again") from None
        try:
            return ModelCard(**values)
        except ParameterError as error:
            raise FormatError(str(error)) from None


def _typed(value: Any, *kinds: type) -> Any:
    """``value`` when its type is exactly one of ``kinds`` (a bool is no int here), else TypeError."""
    if type(value) not in kinds:
        raise TypeError(f"{type(value).__name__} instead of {' or '.join(kind.__name__ for kind in kinds)}")
    return value


def _arguments(value: Any) -> dict[str, Argument]:
    return {name: _typed(v, int, bool, str) for name, v in _typed(value, dict).items()}


def _floats(value: Any) -> tuple[float, ...]:
    return tuple(float(_typed(v, int, float)) for v in _typed(value, list))


_JSON_FIELDS: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
    {
        "arguments": _arguments,
        "input_shape": lambda value: tuple(_typed(v, int) for v in _typed(value, list)),
        "mean": _floats,
        "std": _floats,
        "labels": lambda value: tuple(_typed(v, str) for v in _typed(value, list)),
        "test_accuracy": lambda value: None if value is None else float(_typed(value, int, float)),
        "seed": lambda value: _typed(value, int),
    }
)
_TEXT_FIELDS = ("arch", "dataset", "command", "environment")
_DTYPES = {torch.float32: "F32", torch.int64: "I64"}


def write(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], card: ModelCard) -> None:
    """Write atomically: on any failure the file that was there before stays.

    A float32 tensor whose every value is a float16, as after :func:`mcfhe.train.snap`, is stored as float16.
    """
    # Containers have no 0-dimensional tensors; batch norm's step counter is one.
    arrays = {
        name: _shortened(tensor.detach().cpu().reshape(_stored(tensor)).numpy()) for name, tensor in tensors.items()
    }
    container.write_file(path, container.pack(KIND, arrays, card.to_metadata()))


def read(
    path: str | os.PathLike[str], expect: Callable[[ModelCard], Mapping[str, Tensor]]
) -> tuple[ModelCard, dict[str, Tensor]]:
    """The card and the tensors of a model file; FormatError names file, field and value.

    Args:
        path: what :func:`write` wrote, or anything else.
        expect: from the card to the names, shapes and dtypes that must be there (meta tensors will do).
    """
    data = container.read_file(path, MAX_FILE_BYTES)
    try:
        header = container.read_header(data)
        card = ModelCard.from_metadata(header.metadata)
        expected = expect(card)
        fields = {
            name: container.TensorField(
                _dtype(tensor, header.tensors.get(name)), tuple((n, n) for n in _stored(tensor))
            )
            for name, tensor in expected.items()
        }
        arrays = container.unpack(data, KIND, fields, (*_TEXT_FIELDS, *_JSON_FIELDS)).tensors
        # Copied: views of immutable bytes are no storage for trainable weights.
        tensors = {
            name: torch.from_numpy(arrays[name].copy()).to(like.dtype).reshape(like.shape)
            for name, like in expected.items()
        }
        check_tensors(tensors, expected)
    except (FormatError, ParameterError) as error:
        raise FormatError(f"{os.fspath(path)}: {error}") from None
    return card, tensors


def _shortened(array: np.ndarray) -> np.ndarray:
    if array.dtype != np.float32:
        return array
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    return half if np.array_equal(half, array) else array


def _dtype(like: Tensor, found: container.TensorInfo | None) -> str:
    """What the tensor may be stored as: its own dtype, or for float32 float16 where the file has that."""
    short = found is not None and found.dtype == "F16" and like.dtype == torch.float32
    return "F16" if short else _DTYPES[like.dtype]


def _stored(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape) or (1,)


def check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """ParameterError unless names, shapes and dtypes are those of ``expected`` and every value is finite."""
    if tensors.keys() != expected.keys():
        missing = sorted(expected.keys() - tensors.keys()) or "none"
        extra = sorted(tensors.keys() - expected.keys()) or "none"
        raise ParameterError(f"tensors: missing {missing}, unexpected {extra}; the card names another network")
    for name, tensor in tensors.items():
        like = expected[name]
        if tensor.dtype != like.dtype or tensor.shape != like.shape:
            found, wanted = f"{tensor.dtype} {list(tensor.shape)}", f"{like.dtype} {list(like.shape)}"
            raise ParameterError(f"{name}: {found}, the card's network has {wanted}")
        if not bool(torch.isfinite(tensor).all()):
            raise ParameterError(f"{name}: holds values that are not finite; train again with a lower learning rate")
