"""Several workers behind one evaluator: shards are handed out, late and lost ones dropped or tried elsewhere.

A worker has one shard at a time. A shard whose worker died or that misses its deadline is *dropped* while the moduli
can spare all limbs that are missing then (Moduli.spare; the client corrects s missing limbs by arithmetic, see
:mod:`mcfhe.modular.decrypt`), and only otherwise tried on another worker. A limb that is missing for one image is
left out for all images of the request, since a response has the same limbs for each.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Protocol

import torch

from mcfhe import ops
from mcfhe.errors import ParameterError, WorkerError
from mcfhe.modular.evaluation_key import EvaluationKey
from mcfhe.program import Program
from mcfhe.server import Evaluator, Server, check_request
from mcfhe.sharding.cuts import Shard, cut
from mcfhe.wire import Request, Response

_LOG = logging.getLogger("mcfhe")
DEADLINE_S = 10.0
LATE = "missed its deadline"
ATTEMPTS = 3  # of one shard that cannot be spared


class Worker(Protocol):
    """One device somewhere. Used by one thread at a time."""

    name: str

    def submit(self, key: EvaluationKey, profile: str, residues: torch.Tensor, first: int) -> Future[torch.Tensor]:
        """As :meth:`mcfhe.Server.run`, int64, beside the caller."""

    def recover(self, late: bool) -> Future[Any]:
        """After a failure, or a missed deadline (``late``): done when the worker can be used again.

        An exception in it gives the worker up for good.
        """

    def close(self) -> None:
        """End it."""


class LocalWorker:
    """A device of this process with a thread of its own."""

    def __init__(self, program: Program, device: str) -> None:
        self.name = device
        self._server = Server(program, device)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"mcfhe-{device}", initializer=self._begin)
        self._last: Future[Any] = Future()
        self._last.set_result(None)

    def _begin(self) -> None:
        if self._server.device.type == "cuda":
            torch.cuda.set_device(self._server.device)

    def submit(self, key: EvaluationKey, profile: str, residues: torch.Tensor, first: int) -> Future[torch.Tensor]:
        future = self._thread.submit(self._server.run, key, profile, residues, first)
        self._last = future
        return future

    def recover(self, late: bool) -> Future[Any]:
        """A thread cannot be stopped: a late one is used again when it has finished."""
        return when_done(self._last)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


@dataclass(eq=False)
class _Flight:
    """A shard on its way."""

    shard: Shard
    worker: Worker
    deadline: float


@dataclass(eq=False)
class _Run:
    """One request at work."""

    request: Request
    residues: torch.Tensor  # int64 [N, labels, S], filled shard by shard
    spare: int
    pending: deque[Shard]
    flying: dict[Future[torch.Tensor], _Flight] = field(default_factory=dict)
    missing: set[int] = field(default_factory=set)  # limbs
    tried: dict[Shard, list[Worker]] = field(default_factory=dict)  # in vain

    def drop(self, shard: Shard) -> bool:
        """Do without the shard's limbs, if they can be spared beside those that are missing already."""
        together = self.missing.union(shard.limbs)
        if len(together) > self.spare:
            return False
        self.missing = together
        self.pending = deque(other for other in self.pending if not together.issuperset(other.limbs))
        return True

    def take(self, future: Future[torch.Tensor], shard: Shard) -> str | None:
        """Store a shard's result; the reason if there is none."""
        if not future.done():
            return LATE
        error = future.exception()
        if error is not None:
            return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
        result, target = future.result(), _part(self.residues, shard)
        if result.shape != target.shape or result.dtype != target.dtype:
            return f"a result of shape {list(result.shape)}, {list(target.shape)} expected"
        target.copy_(result)
        return None


class ShardedServer:
    """An evaluator (:class:`mcfhe.server.Evaluator`) that shares every request among workers. Thread-safe.

    Requests are taken one after the other, since each occupies all workers.
    ``dropped`` counts limbs that responses did without, ``retried`` shards that were tried again.
    """

    def __init__(self, program: Program, workers: Sequence[Worker], deadline_s: float = DEADLINE_S) -> None:
        if not workers or not deadline_s > 0:
            raise ParameterError("workers: one or more expected, and a positive deadline")
        require_shards(program)
        self.program = program
        self.dropped = 0
        self.retried = 0
        self._workers = list(workers)  # those that were given up are taken out
        self._deadline_s = deadline_s
        self._away: dict[Worker, Future[Any]] = {}  # workers that cannot be given anything before this is done
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"ShardedServer(program_id={self.program.program_id[:12]}, workers={[w.name for w in self._workers]})"

    def check(self, request: Request) -> None:
        """As :func:`mcfhe.server.check_request`, for this program."""
        check_request(self.program, request)

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.close()

    def evaluate(self, request: Request, progress: Callable[[float], None] | None = None) -> Response:
        """As :meth:`mcfhe.Server.evaluate`; ``response.limbs`` names the limbs that are there if any is missing.

        WorkerError where more was lost than the moduli can spare and it could not be computed elsewhere.
        """
        self.check(request)
        key = request.evaluation_key
        ops.check_residues(request.ciphertext, key.moduli.as_tensor(request.ciphertext.device))
        bounds = self.program.client_spec().profile(request.profile)
        spare = key.moduli.spare(bounds.required_product(self.program.client_spec().guard_bits))
        x = request.ciphertext
        residues = torch.zeros(x.shape[0], len(self.program.labels), x.shape[-1], dtype=torch.int64, device=x.device)
        with self._lock:
            shards = cut(tuple(x.shape), request.lanes, len(self._workers), spare)
            run = _Run(request, residues, spare, deque(shards))
            try:
                self._finish(run, progress)
            finally:  # after an error some workers are still at it
                self._away.update({flight.worker: when_done(future) for future, flight in run.flying.items()})
        if not run.missing:
            return Response.for_request(request, residues)
        limbs = [limb for limb in range(len(key.moduli)) if limb not in run.missing]
        return Response.for_request(request, residues[limbs], tuple(limbs))

    def _finish(self, run: _Run, progress: Callable[[float], None] | None) -> None:
        total, somebody = len(run.pending), time.monotonic()
        while run.pending or run.flying:
            self._hand_out(run)
            now = time.monotonic()
            if run.flying:
                somebody = now
                until = min(flight.deadline for flight in run.flying.values())
            else:  # every worker is away
                until = somebody + self._deadline_s
                if now >= until or not self._workers:
                    raise WorkerError("no worker is there to evaluate it; send the request again later")
            wait([*run.flying, *self._away.values()], max(0.0, until - now), FIRST_COMPLETED)
            now = time.monotonic()
            for future in [f for f, flight in run.flying.items() if f.done() or flight.deadline <= now]:
                flight = run.flying.pop(future)
                reason = run.take(future, flight.shard)
                if reason is not None:
                    self._lose(run, flight, reason)
            if progress is not None:
                progress(1 - (len(run.pending) + len(run.flying)) / total)

    def _hand_out(self, run: _Run) -> None:
        """One shard to every worker that has none; to one that failed it before only where nobody else is left."""
        self._welcome_back()
        busy = {flight.worker for flight in run.flying.values()}
        usable = [worker for worker in self._workers if worker not in self._away]
        for worker in usable:
            if worker in busy:
                continue
            for shard in run.pending:
                tried = run.tried.get(shard, ())
                if worker in tried and not all(other in tried for other in usable):
                    continue
                run.pending.remove(shard)
                key, profile = run.request.evaluation_key, run.request.profile
                future = worker.submit(key, profile, _part(run.request.ciphertext, shard), shard.limbs.start)
                run.flying[future] = _Flight(shard, worker, time.monotonic() + self._deadline_s)
                break

    def _welcome_back(self) -> None:
        for worker, back in list(self._away.items()):
            if not back.done():
                continue
            del self._away[worker]
            error = back.exception()
            if error is not None:
                _LOG.error("worker %s is given up: %s", worker.name, type(error).__name__)
                self._workers.remove(worker)

    def _lose(self, run: _Run, flight: _Flight, reason: str) -> None:
        """Drop the shard or queue it again; its worker is away until it has recovered."""
        shard, worker = flight.shard, flight.worker
        self._away[worker] = worker.recover(reason == LATE)
        where = f"limbs {shard.limbs.start}..{shard.limbs.stop - 1} on {worker.name}"
        before = len(run.missing)
        if run.drop(shard):
            self.dropped += len(run.missing) - before
            _LOG.warning("shard dropped: %s: %s; the key can spare %d limbs", where, reason, run.spare)
            return
        tried = run.tried.setdefault(shard, [])
        tried.append(worker)
        if len(tried) >= ATTEMPTS:
            raise WorkerError(f"{where}: {reason}, {ATTEMPTS} times; send the request again later")
        self.retried += 1
        _LOG.warning("shard tried again: %s: %s", where, reason)
        run.pending.append(shard)


def _part(x: torch.Tensor, shard: Shard) -> torch.Tensor:
    """The view of [N, ..., S] that a shard covers."""
    return x[shard.limbs.start : shard.limbs.stop, ..., shard.streams.start : shard.streams.stop]


def when_done(future: Future[Any]) -> Future[Any]:
    """Done without a result or an error when ``future`` is."""
    settled: Future[Any] = Future()
    future.add_done_callback(lambda _: settled.set_result(None))
    return settled


def require_shards(program: Any) -> None:
    """ParameterError for a lattice program: its limbs meet in every ciphertext."""
    if program.scheme == "lattice":
        raise ParameterError(
            f"program {program.program_id[:12]}: a lattice program runs on one device; name one, with --engine local"
        )


def local_evaluator(program: Program, device: str = "cpu", deadline_s: float = DEADLINE_S) -> Evaluator:
    """An evaluator on devices of this process: "cpu", "cuda:1", a list "cuda:0,cuda:1", or "cuda" for all GPUs.

    A single device is a plain :class:`mcfhe.Server`; ``deadline_s`` is for a shard of several.
    """
    devices = [name.strip() for name in device.split(",")]
    if devices == ["cuda"] and (count := torch.cuda.device_count()) > 1:
        devices = [f"cuda:{index}" for index in range(count)]
    if len(devices) == 1:
        server: Evaluator = Server(program, devices[0])
        return server
    return ShardedServer(program, [LocalWorker(program, name) for name in devices], deadline_s)
