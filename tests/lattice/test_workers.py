"""Encryption in several processes: the same images, nothing left behind, nothing lost in silence."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mcfhe.errors import ParameterError, WorkerError
from mcfhe.lattice.client import LatticeClient
from mcfhe.lattice.pixels import Parameters
from mcfhe.lattice.plan import make_ring
from mcfhe.lattice.program import LatticeProgram
from mcfhe.lattice.seal import Seal
from mcfhe.lattice.wire import LatticeRequest
from mcfhe.lattice.workers import Workers


def images(program: LatticeProgram, count: int = 5) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (count, *program.input_shape), dtype=np.uint8)


def pixels_of(client: LatticeClient, request: LatticeRequest) -> np.ndarray:
    """What the first components decrypt to with the expanded second ones: float64 [places, slots]."""
    from mcfhe.lattice.expansion import expanded

    spec = client.spec
    residues = expanded(request).view(len(spec.ring.moduli), -1, 2 * spec.ring.degree).numpy().astype(np.uint32)
    seal, secret = client._seal, client._secret
    return np.stack([seal.decrypt(secret, residues[:, at], 2.0**spec.input_bits) for at in range(residues.shape[1])])


def children() -> set[str]:
    tasks = Path("/proc/self/task")
    return {pid for task in tasks.iterdir() for pid in (task / "children").read_text().split()}


@pytest.mark.parametrize("seeded", [True, False])
def test_workers_encrypt_every_pixel_where_it_belongs(
    program: LatticeProgram, client: LatticeClient, seeded: bool
) -> None:
    spec, pixels, before = client.spec, images(program), children()
    finished: list[float] = []
    request = client.encrypt(pixels, finished.append, seeded=seeded, workers=3)
    table = np.array(spec.table) / 2.0**spec.scale_bits
    channel = np.arange(len(table))[:, None, None]
    expected = table[channel, pixels].reshape(len(pixels), -1).T
    found = pixels_of(client, request)
    assert np.abs(found[:, : len(pixels)] - expected).max() < 1e-3
    assert np.abs(found[:, len(pixels) :]).max() < 1e-3  # the other slots hold nothing
    assert finished == sorted(finished)
    assert finished[-1] == 1.0
    assert len(finished) == len(expected)
    assert children() <= before


def test_workers_do_not_repeat_each_others_randomness(program: LatticeProgram, client: LatticeClient) -> None:
    seeds = [client.encrypt(images(program), workers=workers).seeds for workers in (2, 2, 1)]
    rows = np.concatenate([seed.numpy().reshape(-1, 64) for seed in seeds if seed is not None])
    assert len(np.unique(rows, axis=0)) == len(rows) == 3 * int(np.prod(program.input_shape))


def test_a_worker_that_dies_is_an_error_and_leaves_none(program: LatticeProgram, client: LatticeClient) -> None:
    before = children()

    def kill(_: float) -> None:
        for pid in children() - before:
            os.kill(int(pid), signal.SIGKILL)

    with pytest.raises(WorkerError, match=r"one ended before it was done.*workers=1"):
        client.encrypt(images(program), kill, workers=2)
    assert children() <= before
    assert client.encrypt(images(program), workers=2).batch == 5


def test_short_buffers_of_the_system_make_nobody_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels of the largest ring, 16 KiB a ciphertext, where the system's sockets hold a few KiB."""
    pair = socket.socketpair

    def short() -> tuple[socket.socket, socket.socket]:
        ends = pair()
        for end in ends:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        ends[0].settimeout(30)  # or it would wait forever
        return ends

    monkeypatch.setattr("mcfhe.lattice.workers.socket.socketpair", short)
    ring = make_ring(32768, 1)
    parameters = Parameters(ring.moduli, ring.special, ring.degree, ((0,) * 256,), 8, 20, "seeded")
    jobs = [(0, np.zeros(ring.degree // 2, np.uint8))] * 6
    with Workers(2, parameters, Seal(ring).generate_secret()) as workers:
        assert sorted(number for number, _ in workers.encrypt(jobs)) == list(range(6))


def test_what_a_worker_refuses_is_said(client: LatticeClient) -> None:
    parameters = Parameters.of(client.spec, "seeded")
    with Workers(1, parameters, client._serialised) as workers, pytest.raises(WorkerError, match="refused to encrypt"):
        list(workers.encrypt([(0, np.zeros(parameters.degree, np.uint8))]))  # twice as many as slots


def test_a_worker_that_does_not_start_says_why(client: LatticeClient) -> None:
    parameters = Parameters.of(client.spec, "seeded")
    with pytest.raises(WorkerError, match="secret key: SEAL refuses it"), Workers(1, parameters, b"no key") as workers:
        list(workers.encrypt([(0, np.zeros(1, np.uint8))]))


def test_an_interpreter_that_is_not_there(
    program: LatticeProgram, client: LatticeClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
    with pytest.raises(WorkerError, match="no process was started"):
        client.encrypt(images(program), workers=2)
    assert client.encrypt(images(program), workers=1).batch == 5


def test_workers_load_no_torch_and_nothing_of_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('another json')")
    code = "import mcfhe.lattice.workers, sys; print('torch' in sys.modules)"
    command = [sys.executable, "-I", "-c", f"import sys; sys.path[:] = {sys.path!r}; {code}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("False", "")


@pytest.mark.parametrize("workers", [0, -1, 1025, 2.0, True, "2"])
def test_a_number_of_workers_that_is_none(program: LatticeProgram, client: LatticeClient, workers: object) -> None:
    with pytest.raises(ParameterError, match="workers = "):
        client.encrypt(images(program), workers=workers)  # type: ignore[arg-type]


def test_few_ciphertexts_start_no_process(
    program: LatticeProgram, client: LatticeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/gone")
    monkeypatch.setattr("torch.get_num_threads", lambda: 64)
    assert int(np.prod(program.input_shape)) < 64
    assert client.encrypt(images(program)).batch == 5
