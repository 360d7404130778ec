"""The whole scheme on real images, S1 to S8, with every result checked against exact integers, and attacked.

Client and server run in one process here but exchange bytes only: the server's side is given the program and the
request's bytes, the client's side the client spec and the response's bytes. The audit is given what the server has.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

import mcfhe
from mcfhe.datasets import SAMPLE, Dataset
from mcfhe.demo.stages import shown, timed
from mcfhe.modular import audit
from mcfhe.program import Program
from mcfhe.scoring import scores
from mcfhe.spec import ClientSpec
from mcfhe.wire import Request, Response

# What this stands beside: RT-HCNN, doi 10.1109/JIOT.2023.3313443, one MNIST image on an RTX 3090.
PUBLISHED_MS = {"encrypt": 30.03, "evaluate": 79.5, "decrypt": 20.3}
LATENCY_REPEATS = 10
AUDITED_IMAGES = 10


@dataclass
class DemoResult:
    """What the demo found. Accuracies 0..1, times in seconds, sizes in bytes.

    ``mismatches`` counts decrypted integers that differ from the Python-integer evaluation of the same input integers;
    ``agreement`` is the share of labels that equal the float model's. ``predicted`` has the seconds that
    :meth:`mcfhe.Program.cost` gave before the steps that it names were run. ``audit``: ``images`` attacked and
    ``attacks`` [{attack, outcome, recovered}] with the top row guessed to be black, see :mod:`mcfhe.modular.audit`.
    """

    images: int
    profile: str
    noise: int
    mismatches: int
    encrypted_accuracy: float
    quantised_accuracy: float
    float_accuracy: float
    agreement: float
    limbs: int
    lanes: int
    order: str
    modulus_bits: int
    bytes_up: int
    bytes_down: int
    seconds: dict[str, float] = field(default_factory=dict)
    latency_ms: dict[str, float] = field(default_factory=dict)
    predicted: dict[str, float] = field(default_factory=dict)
    audit: dict[str, Any] = field(default_factory=dict)
    labels: list[int] = field(default_factory=list, repr=False)

    @property
    def exact(self) -> bool:
        """No mismatch, and without noise the labels score exactly what the quantised plaintext network scores.

        Noise is part of the integers that are compared; it may move a label whose margin is smaller.
        """
        return self.mismatches == 0 and (self.noise > 1 or self.encrypted_accuracy == self.quantised_accuracy)

    def by_outcome(self, outcome: str) -> list[str]:
        """Names of the attacks with an outcome of :data:`mcfhe.modular.audit.report.OUTCOMES`."""
        return [row["attack"] for row in self.audit.get("attacks", ()) if row["outcome"] == outcome]

    def to_json(self) -> dict[str, Any]:
        body = {k: v for k, v in self.__dict__.items() if k != "labels"}
        return body | {"published_ms": PUBLISHED_MS}


@dataclass(eq=False)
class Demo:
    """The network, its program and the images; :meth:`run` is one pass of S2 to S8."""

    model: torch.nn.Module
    program: Program
    images: Dataset
    compile_seconds: float
    float_labels: np.ndarray
    quantised_labels: np.ndarray

    @staticmethod
    def prepare(count: int) -> Demo:
        """S1 and S5: the shipped LeNet, trained on Fashion-MNIST, compiled; ``count`` of the shipped test images."""
        model = mcfhe.models.lenet(pretrained="fashion-mnist")
        card = model.mcfhe_metadata
        start = time.perf_counter()
        program = mcfhe.compile(
            model,
            input_shape=card.input_shape,
            mean=card.mean,
            std=card.std,
            scale_bits=8,
            amplification_bits=4,
            labels=card.labels,
        )
        seconds = time.perf_counter() - start
        images = mcfhe.datasets.load(SAMPLE, "test", limit=count)
        plain = np.asarray(program.evaluate_plain(images.images)).argmax(axis=1)
        floats = scores(model, images.images, card.mean, card.std, torch.float32)
        return Demo(model, program, images, seconds, np.asarray(floats.argmax(1)), plain)

    def run(
        self,
        profile: str = "patent",
        lanes: int = 4,
        device: str = "cpu",
        progress: Callable[[str], Any] | None = None,
    ) -> tuple[DemoResult, Request, mcfhe.Client]:
        """S2 to S8 and the checks.

        ``progress(label)`` gives a context manager that yields a function of the finished share, 0..1.
        """
        images, truth = self.images.images.numpy(), self.images.labels.numpy()
        spec = ClientSpec.from_json(self.program.client_spec().to_json())
        seconds = {"compile": self.compile_seconds}
        card = self.program.cost(profile, lanes, len(images), device)

        _touch(2 * card.bytes_up)  # words of 32 bits there, of 64 bits in memory
        with timed(seconds, "keygen"):
            client = mcfhe.Client.generate(spec, lanes=lanes, profile=profile)
        with timed(seconds, "encrypt"):
            request, integers = client.encrypt(images, return_integers=True)
        with timed(seconds, "upload"):
            upload = request.to_bytes()
            received = Request.from_bytes(upload)
        server = mcfhe.Server(self.program, device=device)
        with timed(seconds, "evaluate"), shown(progress, "evaluate on ciphertext") as update:
            response = server.evaluate(received, update)
        with timed(seconds, "download"):
            download = response.to_bytes()
            answer = Response.from_bytes(download)
        with timed(seconds, "decrypt"):
            decrypted = client.decrypt_integers(answer)
        labels = np.array([max(range(len(row)), key=row.__getitem__) for row in decrypted])
        with timed(seconds, "check"), shown(progress, "check against Python integers"):
            expected = self.program.evaluate_integers(integers, profile)
        mismatches = sum(
            a != b for got, want in zip(decrypted, expected, strict=True) for a, b in zip(got, want, strict=True)
        )

        with timed(seconds, "audit"):
            report = _attacked(spec, received)
        bounds = spec.profile(profile)
        result = DemoResult(
            images=len(images),
            profile=profile,
            noise=client.secret_key.noise,
            mismatches=mismatches,
            encrypted_accuracy=float((labels == truth).mean()),
            quantised_accuracy=float((self.quantised_labels == truth).mean()),
            float_accuracy=float((self.float_labels == truth).mean()),
            agreement=float((labels == self.float_labels).mean()),
            limbs=len(client.evaluation_key.moduli),
            lanes=lanes,
            order=bounds.output_order.label(spec.scale_bits),
            modulus_bits=bounds.required_bits(spec.guard_bits),
            bytes_up=len(upload),
            bytes_down=len(download),
            seconds=seconds,
            latency_ms=self._latency(client, server, images[:1]),
            predicted=card.seconds,
            audit=report,
            labels=labels.tolist(),
        )
        return result, request, client

    @staticmethod
    def _latency(client: mcfhe.Client, server: mcfhe.Server, image: np.ndarray) -> dict[str, float]:
        """Median milliseconds of each step for one image in one process, and of their sum."""
        rows = []
        for _ in range(LATENCY_REPEATS + 1):
            t0 = time.perf_counter()
            request = client.encrypt(image)
            t1 = time.perf_counter()
            response = server.evaluate(request)
            t2 = time.perf_counter()
            client.decrypt(response)
            t3 = time.perf_counter()
            rows.append((t1 - t0, t2 - t1, t3 - t2, t3 - t0))
        medians = np.median(np.array(rows[1:]), axis=0) * 1e3
        return dict(zip(("encrypt", "evaluate", "decrypt", "total"), medians.tolist(), strict=True))


def _touch(size: int) -> None:
    """Make the machine have ``size`` bytes of memory ready before anything is timed.

    The host of a virtual machine takes back what was long unused; the first write to a page then costs up to ten times
    what encrypting into it does (0.05 to 1.1 s for 400 MB, measured), and no calibration can tell.
    """
    np.ones(size, np.uint8)


def _attacked(spec: ClientSpec, request: Request) -> dict[str, Any]:
    """What a curious server makes of the first images of a request it was sent."""
    known = np.full((request.batch, *spec.input_shape), audit.UNKNOWN)
    known[:, :, 0] = 0
    report = audit.run(spec, [request], known=known, images=AUDITED_IMAGES)
    rows = [finding.to_json(report.view) for finding in report.findings]
    return {
        "images": report.view.batch,
        "attacks": [{key: row[key] for key in ("attack", "outcome", "recovered")} for row in rows],
    }
