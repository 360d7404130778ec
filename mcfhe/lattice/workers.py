"""Encryption of pixels in processes of their own.

SEAL's Python module holds the interpreter's lock while it works, so threads would wait for each other. Workers are
processes of their own: a fresh interpreter that loads SEAL and numpy, not torch, and so is ready in some tenths of a
second. Keys and pixels go to it over a socket pair that has no name, nothing is pickled, and it ends with its socket.
Each process draws its randomness from the operating system, as SEAL does for every ciphertext.

A message is a u64 and so many bytes, all little-endian. To a worker go first the parameters as JSON and the key (SEAL's
serialised secret key, or the residues of a public one as u32), then for every ciphertext u32 channel and uint8 pixels.
Back come b"+", the seed (64 bytes, or none) and the residues as u32; or b"-" and why not.
"""

from __future__ import annotations

import selectors
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np

from mcfhe.errors import WorkerError
from mcfhe.lattice.pixels import Encrypted, Job, Parameters, PixelEncryptor
from mcfhe.lattice.seal import Seal
from mcfhe.lattice.security import SEED_BYTES
from mcfhe.wiping import wipe

_SIZE, _CHANNEL = struct.Struct("<Q"), struct.Struct("<I")
_DONE, _FAILED = b"+", b"-"
_AHEAD = 2  # ciphertexts a worker is given at once, so that it need not wait for the next
_GIVEN_BYTES = 1 << 17  # more than these take at the largest ring degree: 16 KiB each
_END_SECONDS = 5.0
_ERROR_BYTES = 1 << 16


class _Pipe:
    """Messages over one end of a socket pair. EOFError or OSError when the other end has gone."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end

    def send(self, *parts: bytes | bytearray) -> None:
        self.end.sendall(_SIZE.pack(sum(map(len, parts))))
        for part in parts:
            self.end.sendall(part)

    def receive(self) -> bytearray:
        return self._exactly(_SIZE.unpack(self._exactly(_SIZE.size))[0])

    def _exactly(self, size: int) -> bytearray:
        message = bytearray(size)
        rest = memoryview(message)
        while rest:
            count = self.end.recv_into(rest)
            if not count:
                raise EOFError
            rest = rest[count:]
        return message


class Workers:
    """Processes that encrypt under one key. A context manager: at its end none of them is left."""

    def __init__(self, count: int, parameters: Parameters, key: bytes | bytearray) -> None:
        """``key``: as :class:`PixelEncryptor` takes it. WorkerError if the system starts no process."""
        self._parameters = parameters
        self._processes: dict[_Pipe, subprocess.Popen[bytes]] = {}
        try:
            for _ in range(count):
                self._start()
            for pipe in self._processes:  # while all of them load what they need
                self._send(pipe, parameters.to_json().encode())
                self._send(pipe, key)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def encrypt(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Encrypted]]:
        """The number of each job and its ciphertext, in the order in which they are done.

        WorkerError if a worker ends or refuses; what the others did is lost with it, and no ciphertext is wrong.
        """
        waiting = iter(enumerate(jobs))
        given: dict[_Pipe, list[int]] = {pipe: [] for pipe in self._processes}

        def give(pipe: _Pipe) -> None:
            for number, (channel, pixels) in waiting:
                self._send(pipe, _CHANNEL.pack(channel), pixels.tobytes())
                given[pipe].append(number)
                return

        for _ in range(_AHEAD):
            for pipe in given:
                give(pipe)
        with selectors.DefaultSelector() as selector:
            for pipe in given:
                selector.register(pipe.end, selectors.EVENT_READ, pipe)
            while any(given.values()):
                for key, _ in selector.select():
                    pipe = key.data
                    ciphertext = self._received(pipe)
                    give(pipe)
                    yield given[pipe].pop(0), ciphertext

    def close(self) -> None:
        """Hang up; whoever does not end of its own accord is killed. Idempotent."""
        for pipe in self._processes:
            pipe.end.close()
        for process in self._processes.values():
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stderr is not None:
                process.stderr.close()
        self._processes.clear()

    def _start(self) -> None:
        # the path that this interpreter imports from, and nothing else that environment or folder would add
        code = f"import sys; sys.path[:] = {sys.path!r}; from mcfhe.lattice.workers import work; work(sys.argv[1])"
        ours, theirs = socket.socketpair()
        # A worker does not read while it sends: both sides would wait for each other where what it is given ahead does
        # not fit the buffers, and some systems' hold 8 KiB.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _GIVEN_BYTES)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _GIVEN_BYTES)
        with theirs:
            try:
                process = subprocess.Popen(
                    [sys.executable, "-I", "-c", code, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    pass_fds=(theirs.fileno(),),
                )
            except OSError as error:
                ours.close()
                raise WorkerError(f"workers: no process was started ({error}); encrypt with workers=1") from None
        self._processes[_Pipe(ours)] = process

    def _send(self, pipe: _Pipe, *parts: bytes | bytearray) -> None:
        try:
            pipe.send(*parts)
        except OSError:
            raise self._ended(pipe) from None

    def _received(self, pipe: _Pipe) -> Encrypted:
        parameters = self._parameters
        try:
            message = pipe.receive()
        except (EOFError, OSError):
            raise self._ended(pipe) from None
        if message[:1] != _DONE:
            raise WorkerError(f"workers: one refused to encrypt: {message[1:].decode(errors='replace')}")
        seed = 1 + (SEED_BYTES if parameters.seeded else 0)
        residues = np.frombuffer(message, "<u4", offset=seed).reshape(len(parameters.moduli), parameters.words)
        return residues, bytes(message[1:seed])

    def _ended(self, pipe: _Pipe) -> WorkerError:
        process = self._processes[pipe]
        with suppress(subprocess.TimeoutExpired):  # it may still say why
            process.wait(_END_SECONDS)
        process.kill()
        assert process.stderr is not None
        lines = process.stderr.read(_ERROR_BYTES).decode(errors="replace").strip().splitlines()
        why = lines[-1] if lines else f"status {process.wait()}"
        return WorkerError(f"workers: one ended before it was done ({why}); encrypt again, or with workers=1")


def work(descriptor: str) -> None:
    """What a worker does: encrypts what comes from a socket until that is closed."""
    with suppress(EOFError, ConnectionError, KeyboardInterrupt), socket.socket(fileno=int(descriptor)) as end:
        # until the one who asked has gone, or both are interrupted
        pipe = _Pipe(end)
        parameters, key = Parameters.from_json(pipe.receive().decode()), pipe.receive()
        encryptor, refusal = None, ""
        try:
            encryptor = PixelEncryptor(parameters, Seal(parameters.ring()), key)
        except (RuntimeError, ValueError) as error:
            refusal = str(error)
        wipe(key)
        while True:
            message = pipe.receive()
            if encryptor is None:
                pipe.send(_FAILED, refusal.encode())
            else:
                (channel,) = _CHANNEL.unpack_from(message)
                _answer(pipe, encryptor, channel, np.frombuffer(message, np.uint8, offset=_CHANNEL.size))


def _answer(pipe: _Pipe, encryptor: PixelEncryptor, channel: int, pixels: np.ndarray) -> None:
    try:
        residues, seed = encryptor.encrypt(channel, pixels)
    except (RuntimeError, ValueError) as error:
        pipe.send(_FAILED, str(error).encode())
        return
    pipe.send(_DONE, seed, residues.astype("<u4").tobytes())


__all__ = ["Workers", "work"]
