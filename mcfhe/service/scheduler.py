"""One worker thread, a queue before it, and dynamic batching: what piled up while the worker was busy is joined.

Only requests of the same program, profile and evaluation key are joined, on the stream axis, where every stream is
computed on its own: joining changes no bit of any result, and results of different keys never share a tensor.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from mcfhe.server import Evaluator
from mcfhe.service.metrics import Metrics
from mcfhe.wire import Request, Response


@dataclass(eq=False)
class Job:
    """A checked request and the answer that somebody waits for."""

    server: Evaluator
    request: Request
    answer: asyncio.Future[bytes]
    since: float = field(default_factory=time.monotonic)

    @property
    def group(self) -> tuple[object, ...]:
        """Jobs of one group may be evaluated together."""
        return self.request.group

    @property
    def streams(self) -> int:
        return self.request.ciphertext.shape[-1]


class Scheduler:
    """Runs jobs oldest first, each with those of its group that fit. Used from the event loop only."""

    def __init__(self, max_batch_streams: int, metrics: Metrics) -> None:
        self._max_streams = max_batch_streams
        self._metrics = metrics
        self._queue: deque[Job] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="mcfhe-evaluate")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to work, in the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="mcfhe-scheduler")

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def submit(self, job: Job) -> None:
        """Queue a job; its length is bounded by admission."""
        self._queue.append(job)
        self._wake.set()

    async def close(self) -> None:
        """Finish everything that was submitted, then stop."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await self._task
        self._worker.shutdown()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self._queue:
                if self._closing:
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            batch = self._take()
            start = time.monotonic()
            for job in batch:
                self._metrics.wait_seconds.observe(start - job.since)
            results = await loop.run_in_executor(self._worker, _evaluate, batch)
            self._metrics.evaluate_seconds.observe(time.monotonic() - start)
            self._metrics.batch_requests.observe(len(batch))
            for job, result in zip(batch, results, strict=True):
                if job.answer.done():
                    continue
                if isinstance(result, bytes):
                    self._metrics.images.labels(job.request.program_id[:12]).inc(job.request.batch)
                    job.answer.set_result(result)
                else:
                    job.answer.set_exception(result)

    def _take(self) -> list[Job]:
        """The oldest job and, in order, those of its group that fit beside it."""
        first = self._queue.popleft()
        batch, rest, streams = [first], deque[Job](), first.streams
        while self._queue:
            job = self._queue.popleft()
            if job.group == first.group and streams + job.streams <= self._max_streams:
                batch.append(job)
                streams += job.streams
            else:
                rest.append(job)
        self._queue = rest
        return batch


def _evaluate(batch: list[Job]) -> list[bytes | Exception]:
    """In the worker thread: an answer or an error for every job. If a batch fails, each of its jobs is tried alone."""
    try:
        if len(batch) == 1:
            return [batch[0].server.evaluate(batch[0].request).to_bytes()]
        return _evaluate_joined(batch)
    except Exception as error:
        if len(batch) == 1:
            return [error]
        return [result for job in batch for result in _evaluate([job])]


def _evaluate_joined(batch: list[Job]) -> list[bytes | Exception]:
    requests = [job.request for job in batch]
    first = requests[0]
    keys = [request.public_key for request in requests if request.public_key is not None]
    joined = Request(
        torch.cat([request.ciphertext for request in requests], dim=-1),
        torch.cat(keys, dim=-1) if keys else None,
        first.evaluation_key,
        first.program_id,
        first.lanes,
        first.profile,
    )
    response = batch[0].server.evaluate(joined)
    parts = torch.split(response.residues, [job.streams for job in batch], dim=-1)
    return [
        Response.for_request(request, part.contiguous(), response.limbs).to_bytes()
        for request, part in zip(requests, parts, strict=True)
    ]
