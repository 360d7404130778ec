"""The cost card of a lattice program: of one request, which costs the same whatever share of its slots is used.

Counts follow from the plan. Evaluation is predicted from probes of its ops (:mod:`mcfhe.cost.lattice_rates`), the
client's part from one pixel encrypted and one score decrypted by SEAL under a key that is thrown away.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from mcfhe.cost.card import format_seconds, median_of
from mcfhe.engine.schedule import entries, fuse, schedule
from mcfhe.graph.report import format_bytes
from mcfhe.graph.steps import IntegerProgram
from mcfhe.lattice.report import message_bytes, multiply_adds, relinearisations, transforms
from mcfhe.lattice.security import MAX_MODULUS_BITS

if TYPE_CHECKING:
    from mcfhe.lattice.program import LatticeProgram

_WORD_BYTES = 4


@dataclass(frozen=True, slots=True)
class LatticeCostCard:
    """What one request with ``images`` images costs.

    Attributes:
        slots: images that cost the same: those beyond ``images`` are wasted.
        degree, limbs: of the ring.
        modulus_bits, max_modulus_bits: log2 of Q P, and the most that the 128-bit table allows for this degree.
        residue_macs: multiply-adds of layers on residues of all limbs, components and coefficients.
        transforms: number-theoretic transforms of one polynomial modulo one limb.
        relinearised: ciphertexts that are relinearised.
        bytes_up, bytes_down, key_bytes: residues and seeds of request and response, and of the key that is sent once.
            Containers add a few hundred bytes each.
        peak_memory: bytes of residues on a server at its fullest: the request as sent and expanded, values between
            parts, the key. Tiles at work and the library itself come on top.
        seconds: predicted, on a CPU that has nothing else to do and whose memory was in use before: "encrypt",
            "evaluate", "decrypt"; the client's only where SEAL is installed, empty if not asked for.
        device: what they are predicted for.
    """

    images: int
    slots: int
    degree: int
    limbs: int
    modulus_bits: int
    max_modulus_bits: int
    residue_macs: int
    transforms: int
    relinearised: int
    bytes_up: int
    bytes_down: int
    key_bytes: int
    peak_memory: int
    seconds: dict[str, float]
    device: str

    @property
    def empty(self) -> float:
        """Share of the slots that no image is in, 0..1: of everything above, what is wasted."""
        return 1 - self.images / self.slots

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"empty": self.empty}

    def __str__(self) -> str:
        what = "one image" if self.images == 1 else f"{self.images:,} images"
        each, full = self.bytes_up / self.images, self.bytes_up / self.slots
        lines = [
            f"lattice, {what} in one request: n = {self.degree:,}, {self.limbs} limbs, {self.modulus_bits} bits of Q P "
            f"({self.max_modulus_bits} allowed);",
            f"  {self.residue_macs:,} multiply-adds, {self.transforms:,} transforms, "
            f"{self.relinearised:,} relinearised ciphertexts;",
            f"  {format_bytes(self.bytes_up)} up, {format_bytes(self.bytes_down)} down, "
            f"{format_bytes(self.key_bytes)} of key, {format_bytes(self.peak_memory)} of residues on the server",
        ]
        if self.seconds:
            times = ", ".join(f"{name} {format_seconds(value)}" for name, value in self.seconds.items())
            missing = "" if "encrypt" in self.seconds else "; the client's part: pip install 'mcfhe[lattice]'"
            lines.append(f"  predicted on {self.device}: {times}{missing}")
        if self.images < self.slots:
            took = sum(self.seconds.values())
            times = f" and {format_seconds(took / self.images)}" if took else ""
            best = f" and {format_seconds(took / self.slots)}" if took else ""
            lines.append(
                f"  {self.empty:.1%} of {self.slots:,} slots are empty and cost as much as full ones: an image takes "
                f"{format_bytes(round(each))} up{times}, {format_bytes(round(full))}{best} in a full request"
            )
        return "\n".join(lines)


def lattice_cost(program: LatticeProgram, images: int, timed: bool) -> LatticeCostCard:
    """See :meth:`mcfhe.lattice.program.LatticeProgram.cost`."""
    up, down, key = message_bytes(program)
    plan = program.plan
    return LatticeCostCard(
        images=images,
        slots=program.slots,
        degree=plan.degree,
        limbs=plan.limbs,
        modulus_bits=plan.modulus_bits,
        max_modulus_bits=MAX_MODULUS_BITS[plan.degree],
        residue_macs=multiply_adds(program),
        transforms=transforms(program),
        relinearised=relinearisations(program),
        bytes_up=up,
        bytes_down=down,
        key_bytes=key,
        peak_memory=up + key + peak_values(program.integer_program()),
        seconds=_predicted(program) if timed else {},
        device="cpu",
    )


def peak_values(program: IntegerProgram) -> int:
    """Bytes of the values between parts at the worst moment, packed, the expanded request among them."""
    parts = schedule(program, fuse(program))
    held = {0: _value_bytes(program, 0)}
    most = held[0]
    for part in parts:
        if part.in_place:
            held[part.writes[0]] = held.pop(part.reads[0])
            continue
        held |= {value: _value_bytes(program, value) for value in part.writes}
        most = max(most, sum(held.values()))
        for value in part.dead:
            if value:  # the caller's, until the end
                del held[value]
    return most


def _value_bytes(program: IntegerProgram, value: int) -> int:
    assert program.ring is not None
    limbs = program.levels[value].limbs
    return _WORD_BYTES * limbs * program.ring.degree * entries(program, value)


def _predicted(program: LatticeProgram) -> dict[str, float]:
    from mcfhe.cost.lattice_rates import seconds_of
    from mcfhe.lattice.encryption import default_workers
    from mcfhe.lattice.seal import available

    evaluate = seconds_of(program.integer_program(), program.plan.ring)
    if not available():
        return {"evaluate": evaluate}
    encrypt, decrypt = _client_seconds(program)
    count = prod(program.input_shape)
    return {
        "encrypt": encrypt * count / default_workers(count),
        "evaluate": evaluate,
        "decrypt": decrypt * len(program.labels),
    }


@lru_cache(maxsize=16)
def _client_seconds(program: LatticeProgram) -> tuple[float, float]:
    """Seconds of one pixel's ciphertext and of one score's."""
    from mcfhe.lattice.pixels import Parameters, PixelEncryptor
    from mcfhe.lattice.seal import Seal

    spec = program.client_spec()
    seal = Seal(spec.ring)
    serialised = seal.generate_secret()
    secret, encryptor = seal.secret(serialised), PixelEncryptor(Parameters.of(spec, "seeded"), seal, serialised)
    pixels = np.random.default_rng(0).integers(0, 256, spec.slots, dtype=np.uint8)
    residues = np.zeros((spec.output_limbs, 2 * spec.ring.degree), np.int64)
    encrypt = median_of(lambda: encryptor.encrypt(0, pixels))
    return encrypt, median_of(lambda: seal.decrypt(secret, residues, float(spec.output_scale)))
