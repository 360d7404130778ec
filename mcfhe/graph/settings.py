"""What a program is compiled with beside the network: normalisation, scales, widths, labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch

from mcfhe.errors import FormatError, ParameterError
from mcfhe.graph.order import TABLE_LIMIT

Numbers: TypeAlias = "float | Sequence[float] | np.ndarray | torch.Tensor"

_RANGES = {"scale_bits": (1, 30), "amplification_bits": (0, 20), "modulus_bits": (8, 31), "guard_bits": (0, 256)}
_MAX_LAYER_BITS = 48
_BOUNDS = ("interval", "quadratic")
_NOT_BY_THE_LETTER = ("weight_bits", "letter")


@dataclass(frozen=True, slots=True)
class Letter:
    """What the same network needs by the letter of the patent, with one scale for all layers: the plan to beat.

    Attributes:
        scale_bits: log2 of that scale.
        required_bits: of the moduli's product, for the profiles in the order of ``mcfhe.spec.PROFILES``.
    """

    scale_bits: int
    required_bits: tuple[int, ...]


@dataclass(frozen=True)
class Settings:
    """Validated settings.

    Attributes:
        mean, std: a pixel u in 0..255 of channel c enters the network as (u / 255 - mean[c]) / std[c].
        scale_bits: log2 of Delta, 1..30: the scale of the input, and by the letter that of all layers.
        amplification_bits: log2 of a, 0..20.
        modulus_bits: width of the primes that a client draws, 8..31.
        guard_bits: 0..256, see :class:`mcfhe.graph.certificate.Certificate`.
        labels: a name for each score; empty while the network's outputs are not known.
        passes: names of the graph passes that ran.
        weight_bits: (name, bits of scale, 0..48) of every layer that pays one; None for a plan by the letter.
        letter: what this program is compared with, if it is not by the letter itself.
        bounds: how its certificate is computed, see ``mcfhe.graph.certificate.METHODS``.

    Raises:
        ParameterError: a field outside its range, by name.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale_bits: int
    amplification_bits: int
    modulus_bits: int
    guard_bits: int
    labels: tuple[str, ...]
    passes: tuple[str, ...]
    weight_bits: tuple[tuple[str, int], ...] | None = None
    letter: Letter | None = None
    bounds: str = "interval"

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ParameterError(f"{name} = {value!r} is not a whole number in {low}..{high}")
        if self.bounds not in _BOUNDS:
            raise ParameterError(f"bounds = {self.bounds!r}: choose one of {', '.join(_BOUNDS)}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not values or any(type(v) is not float or not math.isfinite(v) for v in values):
                raise ParameterError(f"{name} = {values} must be finite numbers, one per channel")
        if any(v <= 0 for v in self.std):
            raise ParameterError(f"std = {self.std} must be positive")
        if len(self.mean) != len(self.std):
            raise ParameterError(f"mean has {len(self.mean)} values, std {len(self.std)}: one per channel each")
        for name in ("labels", "passes"):
            values = getattr(self, name)
            if len(values) > 1 << 20 or any(type(v) is not str or not v or not v.isprintable() for v in values):
                raise ParameterError(f"{name}: must be printable texts that are not empty")
        for name, bits in self.weight_bits or ():
            if type(bits) is not int or not 0 <= bits <= _MAX_LAYER_BITS:
                raise ParameterError(f"weight_bits: {bits!r} for layer {name!r} is not in 0..{_MAX_LAYER_BITS}")
        if len(self.layer_bits or {}) != len(self.weight_bits or ()):
            raise ParameterError("weight_bits: a layer is named twice")
        _ = self.table

    @property
    def layer_bits(self) -> dict[str, int] | None:
        """``weight_bits`` by name."""
        return None if self.weight_bits is None else dict(self.weight_bits)

    @property
    def amplification(self) -> int:
        """a."""
        return 1 << self.amplification_bits

    @cached_property
    def table(self) -> tuple[tuple[int, ...], ...]:
        """PT of every pixel value u: round(Delta * (u / 255 - mean_c) / std_c) in float64, ties to even."""
        return pixel_table(self.mean, self.std, self.scale_bits)

    def to_json(self) -> dict[str, Any]:
        """Numbers, texts and lists only; by the letter without what only other plans have."""
        body = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        if self.bounds == _BOUNDS[0]:  # files of that kind have no such field
            del body["bounds"]
        if self.weight_bits is None:
            return {name: value for name, value in body.items() if name not in _NOT_BY_THE_LETTER}
        body["weight_bits"] = [list(pair) for pair in self.weight_bits]
        if self.letter is not None:
            body["letter"] = [self.letter.scale_bits, *self.letter.required_bits]
        return body

    @staticmethod
    def from_json(body: Any, by_the_letter: bool) -> Settings:
        """The inverse of :meth:`to_json`; FormatError names what is wrong."""
        names = {field.name for field in fields(Settings) if not by_the_letter or field.name not in _NOT_BY_THE_LETTER}
        if not isinstance(body, dict) or set(body) | {"bounds"} != names:
            raise FormatError(f"program: field 'settings' does not hold {', '.join(sorted(names))}")
        lists = ("mean", "std", "labels", "passes")
        wrong = next((name for name in lists if not isinstance(body[name], list)), None)
        if wrong is not None:
            raise FormatError(f"program: settings field {wrong!r} is not a list")
        values: dict[str, Any] = {name: tuple(v) if name in lists else v for name, v in body.items()}
        if not by_the_letter:
            values["weight_bits"] = _weight_bits(body["weight_bits"])
            values["letter"] = _letter(body["letter"])
        try:
            return Settings(**values)
        except ParameterError as error:
            raise FormatError(f"program: {error}") from None


def pixel_table(mean: Sequence[float], std: Sequence[float], scale_bits: int) -> tuple[tuple[int, ...], ...]:
    """round(2**scale_bits * (u / 255 - mean_c) / std_c) of u = 0..255 for each channel c, in float64, ties to even.

    ParameterError for an entry of 2**31 or more.
    """
    pixels = np.arange(256, dtype=np.float64) / 255
    with np.errstate(over="ignore"):
        values = np.rint(np.ldexp((pixels - np.array(mean)[:, None]) / np.array(std)[:, None], scale_bits))
    if not (np.abs(values) < TABLE_LIMIT).all():
        raise ParameterError(f"mean = {mean}, std = {std}: a normalised pixel * 2**{scale_bits} is not below 2**31")
    return tuple(tuple(int(v) for v in row) for row in values)


def _weight_bits(value: Any) -> tuple[tuple[str, int], ...]:
    pairs = isinstance(value, list) and all(isinstance(v, list) and len(v) == 2 and type(v[0]) is str for v in value)
    if not pairs:
        raise FormatError("program: settings field 'weight_bits' is not a list of names with bits")
    return tuple((name, bits) for name, bits in value)


def _letter(value: Any) -> Letter | None:
    if value is None:
        return None
    # required bits are shown, never relied on; a bound keeps them printable
    if not isinstance(value, list) or len(value) < 2 or any(type(v) is not int or not 1 <= v < 1 << 20 for v in value):
        raise FormatError("program: settings field 'letter' is not made of whole numbers in range")
    return Letter(value[0], tuple(value[1:]))


def per_channel(name: str, values: Numbers, channels: int) -> tuple[float, ...]:
    """One float a channel, from one number or one a channel; ParameterError otherwise."""
    try:
        if np.asarray(values).dtype.kind not in "iuf":  # a text is no number, nor is True
            raise TypeError
        array = np.asarray(values, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError):
        raise ParameterError(f"{name} = {values!r} must be a finite number, or one per channel") from None
    if array.size not in (1, channels):
        raise ParameterError(f"{name}: {array.size} values for {channels} channels; give one, or one per channel")
    return tuple(float(v) for v in np.broadcast_to(array, (channels,)))


def per_score(labels: Sequence[str]) -> tuple[str, ...]:
    """Labels as a tuple; ParameterError for one string or something without an order."""
    if isinstance(labels, str) or not isinstance(labels, Sequence):
        raise ParameterError(f"labels = {labels!r}: give a list of texts, one for each score")
    return tuple(labels)
