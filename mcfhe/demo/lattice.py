"""The lattice scheme on the shipped sample: compile, keys, encrypt, evaluate, decrypt, and what came of it."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

import mcfhe
from mcfhe.datasets import SAMPLE
from mcfhe.demo.stages import shown, timed
from mcfhe.lattice.program import LatticeProgram
from mcfhe.lattice.report import message_bytes
from mcfhe.lattice.server import LatticeServer
from mcfhe.scoring import scores as scores_of

SCALE_BITS = 10
NOISE_IMAGES = 64  # that the prediction is simulated on


@dataclass
class LatticeDemoResult:
    """What the demo found. Accuracies 0..1, times in seconds, sizes in bytes.

    ``mismatches`` counts labels that differ from those of the quantised network without noise; ``score_noise`` and
    ``predicted_noise`` are standard deviations, in units of the scores, whose own is ``score_rms``.
    """

    images: int
    scheme: str
    mismatches: int
    encrypted_accuracy: float
    quantised_accuracy: float
    float_accuracy: float
    agreement: float
    degree: int
    limbs: int
    slots: int
    modulus_bits: int
    bytes_up: int
    bytes_down: int
    key_bytes: int
    score_noise: float
    predicted_noise: float
    score_rms: float
    peak_bytes: int
    seconds: dict[str, float] = field(default_factory=dict)
    labels: list[int] = field(default_factory=list, repr=False)

    @property
    def evaluate_ms_per_slot(self) -> float:
        """Evaluation time over the slots, which are paid for whether they hold an image or not."""
        return 1e3 * self.seconds["evaluate"] / self.slots

    def to_json(self) -> dict[str, Any]:
        body = asdict(self)
        del body["labels"]
        return body | {"evaluate_ms_per_slot": self.evaluate_ms_per_slot}


def run(count: int, device: str = "cpu", progress: Callable[[str], Any] | None = None) -> LatticeDemoResult:
    """Classify ``count`` of the shipped Fashion-MNIST test images with the shipped LeNet, encrypted under SEAL's CKKS.

    ``progress(label)`` gives a context manager that yields a function of the finished share, 0..1.
    """
    seconds: dict[str, float] = {}
    model = mcfhe.models.lenet(pretrained="fashion-mnist")
    card = model.mcfhe_metadata
    images = mcfhe.datasets.load(SAMPLE, "test", limit=count)
    pixels, truth = images.images.numpy(), images.labels.numpy()
    with timed(seconds, "compile"):
        program: LatticeProgram = mcfhe.compile(
            model,
            card.input_shape,
            card.mean,
            card.std,
            scale_bits=SCALE_BITS,
            labels=card.labels,
            scheme="lattice",
        )
    with timed(seconds, "keygen"):
        client = mcfhe.Client.generate(program.client_spec())
    with timed(seconds, "encrypt"), shown(progress, "encrypt") as update:
        request = client.encrypt(pixels, progress=update)
    server = LatticeServer(program, device)
    with timed(seconds, "bind"):
        server.bind(request.evaluation_key)
    with timed(seconds, "evaluate"), shown(progress, "evaluate on ciphertext") as update:
        response = server.evaluate(request, update)
    with timed(seconds, "decrypt"):
        scores = client.decrypt(response)
    quantised = program.evaluate_plain(pixels)
    floats = scores_of(model, images.images, card.mean, card.std, torch.float32).argmax(1).numpy()
    labels, plain = scores.argmax(1).numpy(), quantised.argmax(1).numpy()
    # counted, not measured: serialising would hold the request twice
    up, down, key = message_bytes(program)
    return LatticeDemoResult(
        images=len(pixels),
        scheme=program.scheme,
        mismatches=int((labels != plain).sum()),
        encrypted_accuracy=float((labels == truth).mean()),
        quantised_accuracy=float((plain == truth).mean()),
        float_accuracy=float((floats == truth).mean()),
        agreement=float((labels == floats).mean()),
        degree=program.plan.degree,
        limbs=program.plan.limbs,
        slots=program.slots,
        modulus_bits=program.plan.modulus_bits,
        bytes_up=up,
        bytes_down=down,
        key_bytes=key,
        score_noise=float((scores - quantised).pow(2).mean().sqrt()),
        predicted_noise=program.predict_precision(pixels[:NOISE_IMAGES])[-1].noise,
        score_rms=float(quantised.pow(2).mean().sqrt()),
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        seconds=seconds,
        labels=labels.tolist(),
    )
