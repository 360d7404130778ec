"""What a client needs of a staged program: the client spec of each stage, and the levels at each cut."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np

from mcfhe.errors import FormatError, ParameterError
from mcfhe.graph.settings import pixel_table
from mcfhe.lattice.spec import LatticeSpec
from mcfhe.spec import STAGED_FORMAT, ClientSpec
from mcfhe.spec_json import check_header, parsed

SPEC_VERSION = 1
MAX_STAGES = 64
TOP = 255


@dataclass(frozen=True, slots=True)
class Levels:
    """How the values at a cut become pixels: level u of channel c stands for (u / 255 - mean[c]) / std[c].

    ``shape`` is (C, H, W) of the values.
    """

    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def of_integers(self, integers: Sequence[Sequence[int]], denominator: int) -> np.ndarray:
        """uint8 ``[batch, C, H, W]``: of V / ``denominator`` the nearest level, ties upwards, clipped to 0..255.

        In exact integers: u = floor(255 (std v + mean) + 1/2).
        """
        rows = []
        pixels = self.shape[1] * self.shape[2]
        for mean, std in zip(self.mean, self.std, strict=True):
            gain, offset = Fraction(std) * TOP / denominator, Fraction(mean) * TOP + Fraction(1, 2)
            common = gain.denominator * offset.denominator
            rows.append((gain.numerator * offset.denominator, offset.numerator * gain.denominator, common))
        out = np.empty((len(integers), self.shape[0] * pixels), np.uint8)
        for i, values in enumerate(integers):
            for j, value in enumerate(values):
                gain_, offset_, common = rows[j // pixels]
                out[i, j] = min(max((value * gain_ + offset_) // common, 0), TOP)
        return out.reshape(-1, *self.shape)

    def of_noisy(self, values: np.ndarray) -> np.ndarray:
        """uint8 ``[batch, C, H, W]``: of float64 values ``[batch, n]`` that carry noise the nearest level, clipped.

        Computed in float64. What that rounds, like the noise, can move a value that lies half-way between two levels to
        the other one; a value whose noise is below half a level moves by one level at most.
        """
        levels: np.ndarray = np.clip(np.floor(self._places(values)), 0, TOP).astype(np.uint8)
        return levels.reshape(-1, *self.shape)

    def of_floats(self, values: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(levels, certain): the same of float64 values ``[batch, n]`` whose error is at most ``bounds``; certain bool
        ``[batch]`` where no error within them changes a level."""
        mean, std = self._per_value()
        exact = self._places(values)
        # the four operations there round by less than 2**-50 of the sizes that go in
        slack = (bounds * std + 2.0**-50 * (np.abs(values) * std + np.abs(mean))) * TOP * (1 + 2.0**-40) + 2.0**-40
        low, high = (np.clip(np.floor(v), 0, TOP) for v in (exact - slack, exact + slack))
        return low.astype(np.uint8).reshape(-1, *self.shape), (low == high).all(axis=1)

    def steps(self) -> np.ndarray:
        """Distance of neighbouring levels for each of the n values, float64 ``[n]``."""
        return 1 / (TOP * self._per_value()[1])

    def _places(self, values: np.ndarray) -> np.ndarray:
        """255 (std v + mean) + 1/2, whose floor is the level."""
        mean, std = self._per_value()
        found: np.ndarray = (values * std + mean) * TOP + 0.5
        return found

    def _per_value(self) -> tuple[np.ndarray, np.ndarray]:
        pixels = self.shape[1] * self.shape[2]
        return np.repeat(np.array(self.mean), pixels), np.repeat(np.array(self.std), pixels)

    def to_json(self) -> dict[str, Any]:
        """Numbers and lists only."""
        return {"shape": list(self.shape), "mean": list(self.mean), "std": list(self.std)}

    @staticmethod
    def from_json(body: Any) -> Levels:
        """The inverse of :meth:`to_json`; FormatError names what is wrong."""
        if not isinstance(body, dict) or set(body) != {"shape", "mean", "std"}:
            raise FormatError("client spec: 'levels' does not hold shape, mean and std of each cut")
        shape, mean, std = body["shape"], body["mean"], body["std"]
        if not isinstance(shape, list) or len(shape) != 3 or any(type(v) is not int or v < 1 for v in shape):
            raise FormatError("client spec: levels: 'shape' is not (C, H, W)")
        for name, values in (("mean", mean), ("std", std)):
            wrong = not isinstance(values, list) or len(values) != shape[0]
            if wrong or any(type(v) is not float or not math.isfinite(v) for v in values):
                raise FormatError(f"client spec: levels: '{name}' is not made of {shape[0]} finite numbers")
        if min(std) <= 0:
            raise FormatError("client spec: levels: 'std' must be positive")
        return Levels((shape[0], shape[1], shape[2]), tuple(mean), tuple(std))


def staged_id(stages: Iterable[Any]) -> str:
    """What names a staged program: SHA-256, hex, over the ids of its stages (programs or their specs), which settle
    the levels too."""
    return hashlib.sha256(b"mcfhe/staged-program/1\0" + b"".join(s.program_id.encode() for s in stages)).hexdigest()


def check_chain(stages: Sequence[Any]) -> None:
    """ParameterError unless ``stages`` (programs or client specs) follow each other: 2 or more, of one scheme, all
    different, each with as many inputs as the one before it has scores."""
    if not isinstance(stages, Sequence) or any(not hasattr(stage, "program_id") for stage in stages):
        raise ParameterError("stages: give programs that follow each other, or their client specs")
    if not 2 <= len(stages) <= MAX_STAGES:
        raise ParameterError(f"stages: {len(stages)}, 2..{MAX_STAGES} expected")
    if len({stage.scheme for stage in stages}) != 1:
        raise ParameterError("stages: of two schemes; all must be of one")
    if len({stage.program_id for stage in stages}) != len(stages):
        raise ParameterError("stages: one of them occurs twice")
    for index, (stage, following) in enumerate(pairwise(stages)):
        if len(stage.labels) != math.prod(following.input_shape):
            raise ParameterError(
                f"stages: stage {index} gives {len(stage.labels)} values, stage {index + 1} takes images of shape "
                f"{following.input_shape}"
            )


@dataclass(frozen=True, slots=True)
class StagedSpec:
    """The client's half of a staged program: ``levels[i]`` turn the scores of ``stages[i]`` into the pixels of
    ``stages[i + 1]``."""

    stages: tuple[ClientSpec | LatticeSpec, ...]
    levels: tuple[Levels, ...]

    def __post_init__(self) -> None:
        """ParameterError for stages or levels that do not fit each other."""
        check_chain(self.stages)
        if len(self.levels) != len(self.stages) - 1:
            raise ParameterError(f"levels: of {len(self.levels)} cuts between {len(self.stages)} stages")
        for levels, stage in zip(self.levels, self.stages[1:], strict=True):
            if levels.shape != tuple(stage.input_shape):
                raise ParameterError(f"levels: of shape {levels.shape}, the stage takes {tuple(stage.input_shape)}")
            if pixel_table(levels.mean, levels.std, stage.scale_bits) != stage.table:
                raise ParameterError("levels: mean and std are not those of the stage's pixel table")

    @property
    def scheme(self) -> str:
        return self.stages[0].scheme

    @property
    def program_id(self) -> str:
        """As :attr:`mcfhe.StagedProgram.program_id`."""
        return staged_id(self.stages)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.stages[0].input_shape

    @property
    def labels(self) -> tuple[str, ...]:
        """Name of each score."""
        return self.stages[-1].labels

    @property
    def slots(self) -> int | None:
        """Images that one request of every stage can hold; None where nothing bounds them (modular scheme)."""
        slots = [stage.slots for stage in self.stages if isinstance(stage, LatticeSpec)]
        return min(slots, default=None)

    def to_json(self) -> str:
        """Canonical JSON: keys sorted."""
        body = {
            "format": STAGED_FORMAT,
            "version": SPEC_VERSION,
            "stages": [json.loads(stage.to_json()) for stage in self.stages],
            "levels": [levels.to_json() for levels in self.levels],
        }
        return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @staticmethod
    def from_json(text: str) -> StagedSpec:
        """Parse and validate; FormatError names the field that is wrong."""
        return StagedSpec.from_body(parsed(text))

    @staticmethod
    def from_body(body: Any) -> StagedSpec:
        """:meth:`from_json` of text that is parsed already."""
        check_header(body, STAGED_FORMAT, SPEC_VERSION, {"format", "version", "stages", "levels"})
        stages, levels = body["stages"], body["levels"]
        if not isinstance(stages, list) or not isinstance(levels, list) or max(len(stages), len(levels)) > MAX_STAGES:
            raise FormatError(f"client spec: 'stages' and 'levels' must be lists of at most {MAX_STAGES}")
        if any(isinstance(stage, dict) and stage.get("format") == STAGED_FORMAT for stage in stages):
            raise FormatError("client spec: a stage is itself a staged program")
        specs = tuple(ClientSpec.from_body(stage) for stage in stages)
        try:
            return StagedSpec(specs, tuple(Levels.from_json(entry) for entry in levels))
        except ParameterError as error:
            raise FormatError(f"client spec: {error}") from None

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()
