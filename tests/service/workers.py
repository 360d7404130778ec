"""Workers that fail on purpose."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch

from mcfhe.modular.evaluation_key import EvaluationKey
from mcfhe.program import Program
from mcfhe.sharding.sharded import LocalWorker, ShardedServer


class FaultyWorker(LocalWorker):
    """``fault(n)`` says what becomes of the n-th shard given to it: None (computed), "dies", "hangs" or "garbles"."""

    def __init__(
        self, program: Program, fault: Callable[[int], str | None] = lambda n: None, name: str = "cpu"
    ) -> None:
        super().__init__(program, "cpu")
        self.name = name
        self.given: list[tuple[int, int]] = []  # (first limb, number of limbs)
        self.release = threading.Event()
        self.hangs = False  # the shard it was given last
        self._fault = fault

    def submit(self, key: EvaluationKey, profile: str, residues: torch.Tensor, first: int) -> Future[torch.Tensor]:
        fault = self._fault(len(self.given))
        self.given.append((first, residues.shape[0]))
        self.hangs = fault == "hangs"
        if fault is None:
            return super().submit(key, profile, residues, first)
        if fault == "dies":
            future: Future[Any] = Future()
            future.set_exception(ConnectionError("the worker died"))
        elif fault == "hangs":
            future = self._thread.submit(self._hang)
        else:
            future = Future()
            future.set_result(torch.zeros(1))
        self._last = future
        return future

    def _hang(self) -> torch.Tensor:
        self.release.wait(20)
        return torch.zeros(1)


class PatientServer(ShardedServer):
    """``deadline_s`` is for shards that hang: on a busy machine any other one may take as long."""

    def _hand_out(self, run: Any) -> None:
        super()._hand_out(run)
        for flight in run.flying.values():
            if not flight.worker.hangs:
                flight.deadline = time.monotonic() + 60
