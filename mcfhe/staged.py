"""Client refresh: a network deeper than the limbs allow, cut into stages.

Between two stages the client decrypts the values at the cut, rounds each to one of 256 levels of its channel's range
and encrypts the levels as the "pixels" of the next stage, whose orders start again at that of a pixel. The ranges are
those seen on calibration images; values beyond are clipped, so that the next stage's certificate holds for every image
whatever a stage before it gives. One more round trip a cut, and the client, nobody else, sees the values at the cuts.

Everything is exact: levels are computed in integers from the exact decrypted ones, and
:meth:`StagedProgram.evaluate_plain` gives the label that a client without noise decrypts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from mcfhe.client import Client
from mcfhe.errors import MismatchError, ParameterError
from mcfhe.graph.order import Order
from mcfhe.program import Program
from mcfhe.server import Server
from mcfhe.spec import ClientSpec
from mcfhe.wire import Request, Response

__all__ = ["Levels", "StagedClient", "StagedProgram", "StagedServer", "StagedSpec"]

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

    def of_floats(self, values: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(levels, certain): the same of float64 values ``[batch, n]`` whose error is at most ``bounds``; certain bool
        ``[batch]`` where no error within them changes a level."""
        pixels = self.shape[1] * self.shape[2]
        mean, std = (np.repeat(np.array(v), pixels) for v in (self.mean, self.std))
        exact = (values * std + mean) * TOP + 0.5
        # the four operations above round by less than 2**-50 of the sizes that go in
        slack = (bounds * std + 2.0**-50 * (np.abs(values) * std + np.abs(mean))) * TOP * (1 + 2.0**-40) + 2.0**-40
        low, high = (np.clip(np.floor(v), 0, TOP) for v in (exact - slack, exact + slack))
        return low.astype(np.uint8).reshape(-1, *self.shape), (low == high).all(axis=1)


@dataclass(frozen=True, slots=True)
class StagedSpec:
    """What a client needs: the client spec of each stage, and the levels at each cut."""

    stages: tuple[ClientSpec, ...]
    levels: tuple[Levels, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Name of each score."""
        return self.stages[-1].labels


@dataclass(frozen=True, eq=False, slots=True)
class StagedProgram:
    """Programs that follow each other, and how one's values become the next one's pixels.

    Made by :func:`mcfhe.refresh`. Each stage is a :class:`mcfhe.Program` with its own certificate, orders and cost;
    stage i + 1 reads uint8 levels of what stage i gives.
    """

    stages: tuple[Program, ...]
    levels: tuple[Levels, ...]
    cuts: tuple[str, ...]  # the layers after which it is cut

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.stages[0].input_shape

    @property
    def labels(self) -> tuple[str, ...]:
        """Name of each score."""
        return self.stages[-1].labels

    def client_spec(self) -> StagedSpec:
        return StagedSpec(tuple(stage.client_spec() for stage in self.stages), self.levels)

    def evaluate_integers(self, integers: Sequence[Any], profile: str) -> list[list[int]]:
        """The oracle: exact scores of the integers that were encrypted, ``[batch, C, H, W]`` for each stage in turn.

        MismatchError if what was encrypted for a stage is not what the levels of the stage before it give.
        """
        if len(integers) != len(self.stages):
            raise ParameterError(f"integers: of {len(integers)} stages, the program has {len(self.stages)}")
        scores: list[list[int]] = []
        for i, (stage, V) in enumerate(zip(self.stages, integers, strict=True)):
            if i:
                self._check_refreshed(i, self._levels_of(i - 1, scores, profile), np.asarray(V), profile)
            scores = stage.evaluate_integers(V, profile)
        return scores

    def _check_refreshed(self, index: int, pixels: np.ndarray, V: np.ndarray, profile: str) -> None:
        """Is V, noise included, an encryption of these levels?"""
        stage = self.stages[index]
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
            raise MismatchError(
                f"stage {index}: the integers encrypted are not the levels of what stage {index - 1} gives"
            )

    def _levels_of(self, index: int, scores: Sequence[Sequence[int]], profile: str) -> np.ndarray:
        stage = self.stages[index]
        order: Order = stage.integer_program(profile).output_order
        return self.levels[index].of_integers(scores, order.denominator(stage.settings.amplification))

    def evaluate_plain(self, images: Any) -> torch.Tensor:
        """Scores of uint8 ``[batch, C, H, W]`` without noise, float64 ``[batch, labels]``, as ``Program`` has it.

        Levels are those that exact integers give: where float64 and its error bound leave a doubt, those are computed.
        """
        pixels = images.detach().cpu().numpy() if isinstance(images, torch.Tensor) else np.asarray(images)
        for index, levels in enumerate(self.levels):
            stage = self.stages[index]
            found = stage.plain_scores(pixels)
            refreshed, certain = levels.of_floats(found.scores.numpy(), found.bounds.numpy())
            if not certain.all():
                plain = np.array(stage.table, object)[
                    np.arange(len(stage.table))[None, :, None, None], pixels[~certain]
                ]
                V = plain * stage.settings.amplification
                refreshed[~certain] = self._levels_of(index, stage.evaluate_integers(V, "hardened"), "hardened")
            pixels = refreshed
        return self.stages[-1].evaluate_plain(pixels)

    def summary(self, profile: str = "patent", lanes: int = 4) -> str:
        """The summary of every stage, and what is sent between them."""
        parts = []
        for i, stage in enumerate(self.stages):
            what = f"stage {i + 1} of {len(self.stages)}"
            if i:
                shape = "x".join(map(str, self.levels[i - 1].shape))
                what += f", after layer {self.cuts[i - 1]}, whose {shape} values the client sees, rounds and encrypts"
            parts.append(f"{what}\n{stage.summary(profile, lanes)}")
        return "\n\n".join(parts)

    def limbs(self, profile: str = "patent") -> tuple[int, ...]:
        """Limbs of each stage."""
        return tuple(stage.cost(profile, timed=False).limbs for stage in self.stages)


class StagedServer:
    """A :class:`mcfhe.Server` for every stage; a request goes to the stage that it names."""

    def __init__(self, program: StagedProgram, device: str | torch.device = "cpu") -> None:
        self.program = program
        self._servers = {stage.program_id: Server(stage, device) for stage in program.stages}

    def evaluate(self, request: Request) -> Response:
        """As :meth:`mcfhe.Server.evaluate`; MismatchError for a program that is none of the stages."""
        server = self._servers.get(request.program_id)
        if server is None:
            raise MismatchError(f"request is for program {request.program_id[:12]}, which is no stage of this one")
        return server.evaluate(request)


class StagedClient:
    """A :class:`mcfhe.Client` for every stage, with keys of their own: a stage's limbs are as many as it needs.

    ``request = client.encrypt(images)``; then ``request = client.refresh(response)`` for every cut; then
    ``scores = client.decrypt(response)``. :meth:`classify` is the whole of it.
    """

    def __init__(self, spec: StagedSpec, clients: Sequence[Client]) -> None:
        if [client.spec for client in clients] != list(spec.stages):
            raise ParameterError("clients: one for the client spec of each stage is needed, in their order")
        self.spec = spec
        self.clients = tuple(clients)

    @classmethod
    def generate(cls, spec: StagedSpec, **arguments: Any) -> StagedClient:
        """Draw a key for every stage; arguments are those of :meth:`mcfhe.Client.generate`."""
        if arguments.get("user_key") is not None:
            raise ParameterError(
                "user_key: the stages need keys that differ; generate each Client with a salt of its own"
            )
        return cls(spec, [Client.generate(stage, **arguments) for stage in spec.stages])

    def close(self) -> None:
        """Overwrite the secrets of all stages in memory, as :meth:`mcfhe.Client.close`."""
        for client in self.clients:
            client.close()

    def encrypt(self, images: Any, return_integers: bool = False) -> Any:
        """As :meth:`mcfhe.Client.encrypt`, for the first stage."""
        return self.clients[0].encrypt(images, return_integers)  # type: ignore[call-overload]

    def refresh(self, response: Response, return_integers: bool = False) -> Any:
        """Decrypt what a stage but the last gives, round it to levels and encrypt those for the next stage."""
        index = self._stage(response)
        if index == len(self.clients) - 1:
            raise ParameterError("response: is of the last stage, whose scores are decrypted and not refreshed")
        client = self.clients[index]
        denominator = client.profile.output_order.denominator(client.spec.amplification)
        pixels = self.spec.levels[index].of_integers(client.decrypt_integers(response), denominator)
        return self.clients[index + 1].encrypt(pixels, return_integers)  # type: ignore[call-overload]

    def decrypt(self, response: Response) -> torch.Tensor:
        """Scores, float64 ``[batch, labels]``, of the last stage's response."""
        if self._stage(response) != len(self.clients) - 1:
            raise ParameterError("response: is of a stage before the last; refresh() it and evaluate again")
        return self.clients[-1].decrypt(response)

    def classify(self, images: Any, server: StagedServer) -> torch.Tensor:
        """Encrypt, evaluate, refresh at every cut, decrypt: scores, float64 ``[batch, labels]``."""
        response = server.evaluate(self.encrypt(images))
        for _ in self.spec.levels:
            response = server.evaluate(self.refresh(response))
        return self.decrypt(response)

    def _stage(self, response: Response) -> int:
        ids = [client.spec.program_id for client in self.clients]
        if response.program_id not in ids:
            raise MismatchError(f"response: of program {response.program_id[:12]}, which is no stage of this client's")
        return ids.index(response.program_id)
