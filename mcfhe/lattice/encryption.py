"""Requests from images: a ciphertext a pixel, made in this process or in several, under either kind of key."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from mcfhe.arguments import whole
from mcfhe.errors import ImageError, ParameterError
from mcfhe.images import check_images
from mcfhe.lattice.evaluation_key import LatticeEvaluationKey
from mcfhe.lattice.pixels import Encrypted, Encryption, Job, Parameters, PixelEncryptor
from mcfhe.lattice.seal import Seal
from mcfhe.lattice.security import SEED_BYTES
from mcfhe.lattice.spec import LatticeSpec
from mcfhe.lattice.wire import LatticeRequest
from mcfhe.lattice.workers import Workers

_LEAST_OF_A_WORKER = 32  # ciphertexts: below, starting a process takes longer than it saves
_MAX_WORKERS = 1024


def default_workers(count: int) -> int:
    """Processes that encrypt so many ciphertexts: as many as torch has threads, if there is enough for all."""
    return max(1, min(torch.get_num_threads(), count // _LEAST_OF_A_WORKER))


def encrypt_images(
    images: Any,
    spec: LatticeSpec,
    evaluation_key: LatticeEvaluationKey,
    key: bytes | bytearray,
    encryption: Encryption,
    workers: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> LatticeRequest:
    """uint8 images ``[batch, C, H, W]`` encrypted under ``key``, as :class:`mcfhe.lattice.pixels.PixelEncryptor` takes
    it, for the owner of ``evaluation_key``. Errors as :meth:`mcfhe.lattice.client.LatticeClient.encrypt`."""
    array = check_images(images, spec.input_shape)
    batch, slots = len(array), spec.slots
    if batch > slots:
        raise ImageError(f"images: {batch} in one request, the ring has {slots} slots; split the batch")
    channels, height, width = spec.input_shape
    count, area = channels * height * width, height * width
    if workers is None:
        workers = default_workers(count)
    elif not 1 <= whole("workers", workers) <= _MAX_WORKERS:
        raise ParameterError(f"workers = {workers} is not in 1..{_MAX_WORKERS}")
    parameters = Parameters.of(spec, encryption)
    limbs, words = len(parameters.moduli), parameters.words
    ciphertext = torch.empty(limbs, channels, height, width, words, dtype=torch.int32)
    seeds = torch.empty(channels, height, width, SEED_BYTES, dtype=torch.uint8) if parameters.seeded else None
    target = ciphertext.view(limbs, -1, words).numpy().view(np.uint32)
    pixels = np.ascontiguousarray(array.reshape(batch, count).T)
    jobs = [(place // area, pixels[place]) for place in range(count)]
    for done, (place, (residues, seed)) in enumerate(_encrypted(jobs, parameters, key, min(workers, count)), 1):
        target[:, place] = residues
        if seeds is not None:
            seeds.view(-1, SEED_BYTES)[place] = torch.frombuffer(bytearray(seed), dtype=torch.uint8)
        if progress is not None:
            progress(done / count)
    return LatticeRequest(ciphertext, evaluation_key, spec.program_id, batch, seeds=seeds)


def _encrypted(
    jobs: Sequence[Job], parameters: Parameters, key: bytes | bytearray, workers: int
) -> Iterator[tuple[int, Encrypted]]:
    """The number of each job and its ciphertext, not in order; ``workers`` = 1 encrypts in this process."""
    if workers == 1:
        encryptor = PixelEncryptor(parameters, Seal(parameters.ring()), key)
        for number, job in enumerate(jobs):
            yield number, encryptor.encrypt(*job)
        return
    with Workers(workers, parameters, key) as processes:
        yield from processes.encrypt(jobs)


__all__ = ["default_workers", "encrypt_images"]
