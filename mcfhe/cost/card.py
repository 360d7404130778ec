"""The cost card: what a program will cost, before anything of it runs.

Counts follow from the plan. Times come from a model of the device (:mod:`mcfhe.cost.throughput`) for the server's part,
and for the client's part from a small batch of the same shape under a key of its own, which is thrown away.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from math import prod
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mcfhe.graph.report import cost_of, format_bytes
from mcfhe.graph.steps import Conv2dStep, LinearStep

if TYPE_CHECKING:
    from mcfhe.client import Client
    from mcfhe.program import Program

__all__ = ["CostCard", "cost", "predict"]

_RESIDUE_BYTES = 8  # in memory
_WORD_BYTES = 4  # on the wire
_SAMPLE_RESIDUES = 1 << 23  # of a client's calibration batch, about
_SAMPLE_IMAGES = 256
_SAMPLE_RUNS = 5


@dataclass(frozen=True, slots=True)
class CostCard:
    """What ``images`` encrypted together cost in one profile.

    Attributes:
        limbs, lanes: N and M; a freshly drawn basis may in rare cases have one limb more or less.
        sub_images: integer images that run through the network: limbs x lanes x images, for one channel.
        macs: multiply-adds of the plain network on one image.
        residue_macs: the same on all sub-images.
        bytes_up, bytes_down, key_bytes: residues of request and response, moduli of the evaluation key. Containers add
            a few hundred bytes each.
        peak_memory: bytes of the server at its fullest: request, response, weights, constants, tiles at work.
        seconds: predicted, on a device that has nothing else to do and whose memory was in use before: "encrypt",
            "evaluate", "decrypt"; empty if not asked for.
        device: what they are predicted for.
    """

    profile: str
    images: int
    limbs: int
    lanes: int
    sub_images: int
    macs: int
    residue_macs: int
    bytes_up: int
    bytes_down: int
    key_bytes: int
    peak_memory: int
    seconds: dict[str, float]
    device: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        what = "one image" if self.images == 1 else f"{self.images} images"
        lines = [
            f"{self.profile}, {what}: {self.limbs} limbs x {self.lanes} lanes, {self.sub_images} sub-images a channel, "
            f"{self.residue_macs:,} multiply-adds;",
            f"  {format_bytes(self.bytes_up)} up, {format_bytes(self.bytes_down)} down, "
            f"{format_bytes(self.key_bytes)} of key, at most {format_bytes(self.peak_memory)} of memory on the server",
        ]
        if self.seconds:
            times = ", ".join(f"{name} {format_seconds(value)}" for name, value in self.seconds.items())
            lines.append(f"  predicted on {self.device}: {times}")
        return "\n".join(lines)


def cost(
    program: Program,
    profile: str,
    lanes: int = 4,
    images: int = 1,
    device: str | torch.device = "cpu",
    timed: bool = True,
) -> CostCard:
    """See :meth:`mcfhe.Program.cost`."""
    plan, certificate = program.integer_program(profile), program.certificate(profile)
    counts = cost_of(plan, certificate, program.settings.modulus_bits, lanes, public_key=profile == "patent")
    seconds = predict(program, profile, lanes, images, device) if timed else {}
    return CostCard(
        profile=profile,
        images=images,
        limbs=counts.limbs,
        lanes=lanes,
        sub_images=counts.sub_images * images,
        macs=counts.macs,
        residue_macs=counts.residue_macs * images,
        bytes_up=counts.bytes_up * images,
        bytes_down=counts.bytes_down * images,
        key_bytes=counts.limbs * _WORD_BYTES,
        peak_memory=_peak_memory(program, profile, counts.limbs, lanes * images),
        seconds=seconds,
        device=str(device),
    )


def predict(
    program: Program, profile: str, lanes: int = 4, images: int = 1, device: str | torch.device = "cpu"
) -> dict[str, float]:
    """Seconds to "encrypt", "evaluate" and "decrypt" ``images`` images together, none of which is run.

    ``evaluate`` is without the reduction of constants modulo a key that the server meets for the first time.
    """
    from mcfhe.cost.throughput import seconds_of

    limbs = cost_of(
        program.integer_program(profile),
        program.certificate(profile),
        program.settings.modulus_bits,
        lanes,
        public_key=False,
    ).limbs
    evaluate = seconds_of(program.integer_program(profile), limbs, lanes * images, device)
    encrypt, decrypt = _client_seconds(program, profile, lanes, min(images, _SAMPLE_IMAGES))
    return {"encrypt": encrypt * images, "evaluate": evaluate, "decrypt": decrypt * images}


@lru_cache(maxsize=64)
def _client_seconds(program: Program, profile: str, lanes: int, most: int) -> tuple[float, float]:
    """Seconds an image to encrypt and to decrypt, measured on up to ``most`` under a key that is thrown away."""
    from mcfhe.client import Client
    from mcfhe.wire import Response

    with Client.generate(program.client_spec(), lanes=lanes, profile=profile) as client:
        limbs = len(client.evaluation_key.moduli)
        count = min(most, max(1, _SAMPLE_RESIDUES // (limbs * lanes * prod(program.input_shape))))
        pixels = np.random.default_rng(0).integers(0, 256, (count, *program.input_shape), dtype=np.uint8)
        request = client.encrypt(pixels)
        response = Response.for_request(request, _scores(client, count * len(program.labels)))
        return median_of(lambda: client.encrypt(pixels)) / count, median_of(lambda: client.decrypt(response)) / count


def _scores(client: Client, count: int) -> torch.Tensor:
    """Residues of ``count`` scores anywhere in the proved range, in all lanes: int64 ``[N, labels, batch * M]``."""
    bound = client.profile.output_bound
    rng = np.random.default_rng(0)
    drawn = [
        int.from_bytes(rng.bytes(bound.bit_length() // 8 + 8), "big") % (2 * bound + 1) - bound for _ in range(count)
    ]
    labels, lanes = len(client.spec.labels), client.secret_key.lanes
    rows = [[v % b for v in drawn] for b in client.evaluation_key.moduli]
    return torch.tensor(rows).reshape(len(rows), labels, -1).repeat_interleave(lanes, dim=2)


def median_of(run: Callable[[], object]) -> float:
    """Seconds of the median of several runs."""
    times = []
    for _ in range(_SAMPLE_RUNS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return median(times)


def _peak_memory(program: Program, profile: str, limbs: int, stream: int) -> int:
    """Bytes: request and response as they are in memory, weights, one binding, and the tiles of all threads."""
    from mcfhe.engine import Engine

    plan = program.integer_program(profile)
    engine = Engine(plan)
    rows, columns = engine.tile(limbs, stream)
    workers = min(torch.get_num_threads(), -(-limbs // rows) * -(-stream // columns))
    live = engine.live_entries * rows * columns * workers
    weights = sum(step.weight.size for step in plan.steps if isinstance(step, Conv2dStep | LinearStep))
    constants = limbs * sum(_constant_count(step) for step in plan.steps)
    ends = limbs * stream * (prod(plan.input_shape) + prod(plan.output_shape))
    return _RESIDUE_BYTES * (live + weights + constants + ends)


def _constant_count(step: Any) -> int:
    """Residues of a step's constants, for one limb."""
    rows = getattr(step, "coefficients", ())
    return len(getattr(step, "bias", None) or ()) + sum(len(row) for row in rows) + len(getattr(step, "factors", ()))


def format_seconds(seconds: float) -> str:
    """Three digits, in ms below a second."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
