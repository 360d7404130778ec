"""Workers on a Ray cluster (extra ``mcfhe[ray]``): one actor a device, each with the program and nothing secret.

Programs and keys reach the actors as bytes of the package's own formats and are validated there like any file. Ray
itself serialises calls, arrays and exceptions with pickle, between processes that trust each other: whoever can speak
to a Ray cluster can run code on it, so its ports must not be open to others. The service's clients never reach them.

Ray restarts an actor whose process died (``max_restarts``) and never repeats a call (``max_task_retries=0``): what
becomes of a lost shard is decided by :class:`mcfhe.sharding.sharded.ShardedServer`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Timer
from typing import Any

import numpy as np
import torch

from mcfhe.errors import McfheError, ParameterError
from mcfhe.modular.evaluation_key import EvaluationKey
from mcfhe.program import Program
from mcfhe.sharding.sharded import DEADLINE_S, ShardedServer, require_shards

START_S = 120.0  # until all actors have loaded torch and the program
ASK_AGAIN_S = 0.5


class Evaluation:
    """The actor: a :class:`mcfhe.Server` for each program, in a process of its own."""

    def __init__(self, programs: bytes, sizes: list[int], device: str) -> None:
        """``programs``: files of programs one after the other, of ``sizes`` bytes."""
        from mcfhe.server import Server

        self._servers: dict[str, Server] = {}
        for size in sizes:
            program = Program.from_bytes(programs[:size])
            self._servers[program.program_id] = Server(program, device)
            programs = programs[size:]

    def pid(self) -> int:
        """Of this process; answered once the program is loaded."""
        return os.getpid()

    def run(self, program_id: str, key: bytes, profile: str, residues: np.ndarray, first: int) -> np.ndarray:
        """As :meth:`mcfhe.Server.run` of one program, on int32 arrays."""
        x = torch.from_numpy(residues.astype(np.int64))
        y = self._servers[program_id].run(EvaluationKey.from_bytes(key), profile, x, first)
        return y.numpy().astype(np.int32)


class RayWorker:
    """An actor, for one of its programs. See :class:`mcfhe.sharding.sharded.Worker`."""

    def __init__(self, name: str, actor: Any, program_id: str, arguments: Any) -> None:
        self.name = name
        self.actor = actor
        self._program_id = program_id
        self._arguments = arguments  # held: a restart needs them, and Ray drops what nobody refers to

    def submit(self, key: EvaluationKey, profile: str, residues: torch.Tensor, first: int) -> Future[torch.Tensor]:
        packed = residues.numpy().astype(np.int32)
        answer = self.actor.run.remote(self._program_id, key.to_bytes(), profile, packed, first)
        return _then(answer.future(), lambda array: torch.from_numpy(array.astype(np.int64)))

    def recover(self, late: bool) -> Future[Any]:
        """When Ray has restarted it. One that is late is ended first: it may hang for ever."""
        import ray

        if late:
            ray.kill(self.actor, no_restart=False)
        back: Future[Any] = Future()
        self._ask(back)
        return back

    def _ask(self, back: Future[Any]) -> None:
        """Settle ``back`` when the actor answers, asking again while Ray restarts it."""
        from ray.exceptions import ActorUnavailableError

        def answered(done: Future[Any]) -> None:
            error = done.exception()
            if isinstance(error, ActorUnavailableError):
                timer = Timer(ASK_AGAIN_S, self._ask, (back,))
                timer.daemon = True
                timer.start()
            elif error is not None:
                back.set_exception(error)
            else:
                back.set_result(None)

        self.actor.pid.remote().future().add_done_callback(answered)

    def close(self) -> None:
        import ray

        if ray.is_initialized():
            ray.kill(self.actor)


def ray_evaluators(
    programs: Sequence[Program],
    device: str = "cpu",
    *,
    workers: int | None = None,
    address: str | None = None,
    deadline_s: float = DEADLINE_S,
) -> list[ShardedServer]:
    """Evaluators for programs that share the actors of a Ray cluster.

    Args:
        device: "cuda": one actor a GPU; "cpu": one actor a CPU core, which computes with one thread.
        workers: so many actors instead of one for every device of the cluster.
        address: of a running cluster ("auto", "ray://...", "host:port"); None starts one on this machine.
        deadline_s: of one shard.

    McfheError if Ray is missing or the cluster cannot be reached or has no such device.
    """
    if device not in ("cpu", "cuda"):
        raise ParameterError(f"device {device!r}: with Ray choose cpu or cuda; Ray says which GPU an actor gets")
    ray = connect(address, workers)
    for program in programs:
        require_shards(program)
    resource = "GPU" if device == "cuda" else "CPU"
    found = int(ray.cluster_resources().get(resource, 0))
    count = workers or found
    if not 1 <= count <= found:
        raise ParameterError(f"{count} workers on {device}: the Ray cluster has {found} of {resource}")
    options: dict[str, Any] = {"num_gpus": 1} if device == "cuda" else {"num_cpus": 1}
    actor = ray.remote(Evaluation).options(max_restarts=-1, max_task_retries=0, **options)
    files = [program.to_bytes() for program in programs]
    content = ray.put(b"".join(files))
    actors = [actor.remote(content, [len(file) for file in files], device) for _ in range(count)]
    try:
        ray.get([started.pid.remote() for started in actors], timeout=START_S)
    except ray.exceptions.RayError as error:
        for started in actors:
            ray.kill(started)
        lines = str(error).strip().splitlines() or ["no reason given"]
        raise McfheError(f"Ray: {count} actors on {device} did not start ({lines[-1][:200]})") from None
    return [
        ShardedServer(
            program,
            [RayWorker(f"ray-{number}", one, program.program_id, content) for number, one in enumerate(actors)],
            deadline_s,
        )
        for program in programs
    ]


def connect(address: str | None, cpus: int | None = None) -> Any:
    """The module ``ray``, connected; a cluster of this machine alone is started where there is no address."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report its use to its makers
    try:
        import ray
    except ModuleNotFoundError:
        raise McfheError("--engine ray needs Ray: pip install 'mcfhe[ray]'") from None
    if not ray.is_initialized():
        local: dict[str, Any] = {} if address else {"num_cpus": cpus, "include_dashboard": False}
        try:
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.WARNING, **local)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise McfheError(f"Ray at {address or 'this machine'}: {lines[0][:200]}") from None
    return ray


def _then(future: Future[Any], function: Callable[[Any], Any]) -> Future[Any]:
    """``function`` of the result; an error is passed on."""
    result: Future[Any] = Future()

    def finish(done: Future[Any]) -> None:
        try:
            result.set_result(function(done.result()))
        except Exception as error:
            result.set_exception(error)

    future.add_done_callback(finish)
    return result
