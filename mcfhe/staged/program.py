"""Client refresh: a network deeper than the limbs or the ring allow, cut into stages.

Between two stages the client decrypts the values at the cut, rounds each to one of 256 levels of its channel's range
and encrypts the levels as the "pixels" of the next stage, whose orders or levels start again at those of a pixel. The
ranges are those seen on calibration images; values beyond are clipped, so that the next stage's certificate holds for
every image whatever a stage before it gives. One more round trip a cut, and the client, nobody else, sees the values
at the cuts.

In the modular scheme everything is exact: levels are computed in integers from the exact decrypted ones, and
:meth:`StagedProgram.evaluate_plain` gives the label that a client without noise decrypts. In the lattice scheme the
decrypted values carry noise, so a value near the middle between two levels may become either; the next stage starts
from levels without noise again. :meth:`StagedProgram.predict_levels` says how many are expected to change, and
:meth:`StagedProgram.evaluate_plain` is the network without noise, levels from exact integers.

This module is the server's half: programs, no keys (:mod:`mcfhe.staged.client`).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mcfhe import container
from mcfhe.arguments import require
from mcfhe.errors import FormatError, MismatchError, ParameterError
from mcfhe.graph.storage import STAGED_KIND
from mcfhe.lattice.wire import LatticeRequest
from mcfhe.program import Program, load_program
from mcfhe.server import Server
from mcfhe.spec import DEFAULT_PROFILE
from mcfhe.staged.spec import MAX_STAGES, Levels, StagedSpec, check_chain, staged_id
from mcfhe.wire import Request, check_kind

__all__ = ["CutPrecision", "Levels", "StagedProgram", "StagedServer", "StagedSpec"]

_STAGES = {"stage.*": container.TensorField("U8", ((1, 1 << 32),))}


@dataclass(frozen=True, slots=True)
class CutPrecision:
    """What noise does to the values at one cut of a lattice program.

    Attributes:
        cut: the layer after which it is.
        noise: predicted standard deviation of a decrypted value's noise.
        step: smallest distance of two neighbouring levels, over the channels.
        changed: share of the values that are expected to get another level than without noise.
    """

    cut: str
    noise: float
    step: float
    changed: float


@dataclass(frozen=True, eq=False, slots=True)
class StagedProgram:
    """Programs that follow each other, and how one's values become the next one's pixels.

    Made by :func:`mcfhe.refresh`, kept in files by :meth:`save` and :func:`mcfhe.load_program`. Each stage is a
    :class:`mcfhe.Program`, or each a :class:`mcfhe.lattice.program.LatticeProgram`, with its own certificate and cost;
    stage i + 1 reads uint8 levels of what stage i gives.
    """

    stages: tuple[Any, ...]  # Program each, or LatticeProgram each
    cuts: tuple[str, ...]  # the layers after which it is cut

    def __post_init__(self) -> None:
        """ParameterError for stages that do not follow each other, or another number of cuts than between them."""
        check_chain(self.stages)
        named = all(isinstance(name, str) and name and name.isprintable() for name in self.cuts)
        if len(self.cuts) != len(self.stages) - 1 or not named:
            raise ParameterError(f"cuts: {len(self.stages) - 1} names of layers are needed")

    @property
    def levels(self) -> tuple[Levels, ...]:
        """How values become pixels, at each cut: by the normalisation of the stage after it."""
        return tuple(Levels(stage.input_shape, stage.settings.mean, stage.settings.std) for stage in self.stages[1:])

    @property
    def scheme(self) -> str:
        scheme: str = self.stages[0].scheme
        return scheme

    @property
    def program_id(self) -> str:
        """SHA-256, hex, over the ids of the stages."""
        return staged_id(self.stages)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        shape: tuple[int, int, int] = self.stages[0].input_shape
        return shape

    @property
    def labels(self) -> tuple[str, ...]:
        """Name of each score."""
        labels: tuple[str, ...] = self.stages[-1].labels
        return labels

    def __repr__(self) -> str:
        return f"StagedProgram({self.program_id[:16]}, {self.scheme}, cut after {', '.join(self.cuts)})"

    def client_spec(self) -> StagedSpec:
        """What a client needs, without weights or layers."""
        return StagedSpec(tuple(stage.client_spec() for stage in self.stages), self.levels)

    def evaluate_integers(self, integers: Sequence[Any], profile: str) -> list[list[int]]:
        """The oracle of the modular scheme: exact scores of the integers that were encrypted, ``[batch, C, H, W]`` for
        each stage in turn.

        MismatchError if what was encrypted for a stage is not what the levels of the stage before it give.
        ParameterError for lattice stages, which have no exact oracle: compare with :meth:`evaluate_plain`.
        """
        require("integers", integers, Sequence, "give those of each stage, as encrypt and refresh return them")
        if len(integers) != len(self.stages):
            raise ParameterError(f"integers: of {len(integers)} stages, the program has {len(self.stages)}")
        scores: list[list[int]] = []
        for i, (stage, V) in enumerate(zip(self.stages, integers, strict=True)):
            if not isinstance(stage, Program):
                raise ParameterError("integers: a noisy scheme has no exact oracle; compare with evaluate_plain")
            if i:
                before: Program = self.stages[i - 1]
                unit = before.integer_program(profile).output_order.denominator(before.settings.amplification)
                _check_refreshed(i, stage, self.levels[i - 1].of_integers(scores, unit), np.asarray(V), profile)
            scores = stage.evaluate_integers(V, profile)
        return scores

    def evaluate_plain(self, images: Any) -> torch.Tensor:
        """Scores of uint8 ``[batch, C, H, W]`` without noise, float64 ``[batch, labels]``, as ``Program`` has it.

        Levels are those that exact integers give: where float64 and its error bound leave a doubt, those are computed.
        """
        return self._followed(images)[1]

    def _followed(self, images: Any) -> tuple[list[np.ndarray], torch.Tensor]:
        """uint8 pixels of every stage, and the scores of the last."""
        found = [images.detach().cpu().numpy() if isinstance(images, torch.Tensor) else np.asarray(images)]
        for stage, levels in zip(self.stages, self.levels, strict=False):
            plain = stage.plain_scores(found[-1])
            refreshed, certain = levels.of_floats(plain.scores.numpy(), plain.bounds.numpy())
            if not certain.all():
                refreshed[~certain] = levels.of_integers(*stage.exact_scores(found[-1][~certain]))
            found.append(refreshed)
        return found, self.stages[-1].evaluate_plain(found[-1])

    def predict_levels(self, images: Any, seed: int = 0) -> list[CutPrecision]:
        """What noise is expected to do at every cut of a lattice program, by simulation over uint8 images
        ``[batch, C, H, W]`` (:mod:`mcfhe.lattice.simulate`).

        A value whose place between two levels a step s apart is uniform gets another level by noise of standard
        deviation d with the probability sqrt(2 / pi) d / s, while d is far below s. ParameterError for modular stages.
        """
        pixels, _ = self._followed(images)
        found = []
        for stage, levels, cut, x in zip(self.stages, self.levels, self.cuts, pixels, strict=False):
            if isinstance(stage, Program):
                raise ParameterError("predict_levels: the modular scheme's levels are exact")
            noise, steps = stage.predict_precision(x, seed)[-1].noise, levels.steps()
            changed = np.minimum(1.0, math.sqrt(2 / math.pi) * noise / steps).mean()
            found.append(CutPrecision(cut, noise, float(steps.min()), float(changed)))
        return found

    def summary(self, profile: str = DEFAULT_PROFILE, lanes: int = 4) -> str:
        """The summary of every stage, and what is sent between them; the lattice scheme has no profile or lanes."""
        parts = []
        for i, stage in enumerate(self.stages):
            what = f"stage {i + 1} of {len(self.stages)}"
            if i:
                shape = "x".join(map(str, stage.input_shape))
                what += f", after layer {self.cuts[i - 1]}, whose {shape} values the client sees, rounds and encrypts"
            text = stage.summary(profile, lanes) if isinstance(stage, Program) else stage.summary()
            parts.append(f"{what}\n{text}")
        return "\n\n".join(parts)

    def limbs(self, profile: str = DEFAULT_PROFILE) -> tuple[int, ...]:
        """Limbs of each stage; of a fresh ciphertext in the lattice scheme, which has no profile."""
        return tuple(
            stage.cost(profile, timed=False).limbs if isinstance(stage, Program) else stage.plan.limbs
            for stage in self.stages
        )

    def to_bytes(self) -> bytes:
        """The content of the file: the stages' own files in one container."""
        tensors = {f"stage.{i}": np.frombuffer(stage.to_bytes(), np.uint8) for i, stage in enumerate(self.stages)}
        return container.pack(
            STAGED_KIND, tensors, {"program_id": self.program_id, "cuts": json.dumps(list(self.cuts))}
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the program as one safetensors file; on any failure the file that was there before stays."""
        container.write_file(path, self.to_bytes())

    @staticmethod
    def load(path: str | os.PathLike[str]) -> StagedProgram:
        """Read what :meth:`save` wrote; FormatError for anything else, another program among it."""
        program = load_program(path)
        if not isinstance(program, StagedProgram):
            raise FormatError(f"{os.fspath(path)}: a program that is not cut; mcfhe.load_program reads it")
        return program

    @staticmethod
    def from_bytes(data: bytes) -> StagedProgram:
        """The inverse of :meth:`to_bytes`; FormatError names what is wrong."""
        content = container.unpack(data, STAGED_KIND, _STAGES, ("program_id", "cuts"))
        count = len(content.tensors)
        if not 2 <= count <= MAX_STAGES or set(content.tensors) != {f"stage.{i}" for i in range(count)}:
            raise FormatError(f"staged program: stage.0, stage.1, .. expected, 2..{MAX_STAGES} of them")
        try:
            cuts = json.loads(content.metadata["cuts"])
        except (ValueError, RecursionError):
            cuts = None
        if not isinstance(cuts, list) or any(type(name) is not str for name in cuts):
            raise FormatError("staged program: field 'cuts' is not a list of names")
        stages = []
        for index in range(count):
            try:
                stages.append(Program.from_bytes(content.tensors[f"stage.{index}"].tobytes()))
            except FormatError as error:
                raise type(error)(f"staged program: stage {index}: {error}") from None
        try:
            program = StagedProgram(tuple(stages), tuple(cuts))
            _ = program.client_spec()
        except ParameterError as error:
            raise FormatError(f"staged program: {error}") from None
        if program.program_id != content.metadata["program_id"]:
            raise FormatError("staged program: field 'program_id' is not that of the stages; save the program again")
        return program


def _check_refreshed(index: int, stage: Program, pixels: np.ndarray, V: np.ndarray, profile: str) -> None:
    """Is V, noise included, an encryption of these levels?"""
    settings, noise = stage.settings, stage.client_spec().profile(profile).max_noise
    table = np.array(stage.table, object)
    plain = table[np.arange(len(table))[None, :, None, None], pixels]
    if V.shape != plain.shape:
        raise MismatchError(f"stage {index}: integers of shape {V.shape}, {plain.shape} expected")
    if profile == "patent":  # V = (a Delta + e) PT with one e an image
        factors = [(settings.amplification << settings.scale_bits) + e for e in range(max(1, noise))]
        pairs = zip(plain, V, strict=False)
        fits = all(any((factor * row == v).all() for factor in factors) for row, v in pairs)
    else:
        rest = V - settings.amplification * plain
        fits = bool(((rest >= 0) & (rest < max(1, noise))).all())
    if not fits:
        raise MismatchError(f"stage {index}: the integers encrypted are not the levels of what stage {index - 1} gives")


class StagedServer:
    """A :class:`mcfhe.Server` for every stage; a request goes to the stage that it names."""

    def __init__(self, program: StagedProgram, device: str | torch.device = "cpu") -> None:
        require("program", program, StagedProgram, "give what mcfhe.refresh or mcfhe.load_program returns")
        self.program = program
        self._servers = {stage.program_id: Server(stage, device) for stage in program.stages}

    def check(self, request: Any) -> None:
        """As :meth:`mcfhe.Server.check`; MismatchError for a program that is none of the stages."""
        self._server(request).check(request)

    def evaluate(self, request: Any, progress: Callable[[float], None] | None = None) -> Any:
        """As :meth:`mcfhe.Server.evaluate`; MismatchError for a program that is none of the stages."""
        return self._server(request).evaluate(request, progress)

    def close(self) -> None:
        """Nothing to give back."""

    def _server(self, request: Any) -> Any:
        check_kind("request", request, Request, LatticeRequest)
        server = self._servers.get(request.program_id)
        if server is None:
            raise MismatchError(f"request is for program {request.program_id[:12]}, which is no stage of this one")
        return server
