"""Clients that keep a server busy, and what they and its memory did. One process, one event loop.

Each client has one connection and sends its next request when the last is answered. HTTP is h11 over asyncio's
streams: a client library with a pool spends more time on a request here than the server does, and what is measured
then is the client (httpx with 50 connections: 0.3 s of a 0.4 s median were spent before the server saw the request).
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import h11
import numpy as np

import mcfhe
from mcfhe.errors import McfheError
from mcfhe.wire import new_request_id

BUSY = (429, 503)
ATTEMPTS = 100
TIMEOUT_S = 60.0


@dataclass
class Prepared:
    """An encrypted request and the integers that its response must decrypt to."""

    client: mcfhe.Client
    request: mcfhe.Request
    expected: list[list[int]]


@dataclass
class Load:
    """What the load saw. ``samples``: (seconds since the start, resident bytes of the server)."""

    answers: list[tuple[Prepared, str, bytes]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    samples: list[tuple[float, int]] = field(default_factory=list)
    rejected: int = 0
    lost: int = 0

    def percentile_ms(self, share: float) -> float:
        """Of the answered requests' times, from the first attempt on."""
        times = sorted(self.seconds) or [float("nan")]
        return round(1000 * times[min(len(times) - 1, int(len(times) * share))], 1)


def prepare(program: mcfhe.Program, keys: int, batch: int) -> list[Prepared]:
    """Four requests a key, profiles in turn."""
    rng, prepared = np.random.default_rng(1), []
    for number in range(keys):
        client = mcfhe.Client.generate(program.client_spec(), profile=("patent", "hardened")[number % 2])
        for _ in range(4):
            images = rng.integers(0, 256, (batch, *program.input_shape), dtype=np.uint8)
            request, values = client.encrypt(images, return_integers=True)
            prepared.append(Prepared(client, request, program.evaluate_integers(values, request.profile)))
    return prepared


class Connection:
    """HTTP/1.1 to one server, opened again when it breaks."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname, parts.port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._http = h11.Connection(h11.CLIENT)

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer; OSError or h11.ProtocolError if there is none."""
        try:
            return await asyncio.wait_for(self._exchange(path, body), TIMEOUT_S)
        except BaseException:
            self.close()
            raise

    async def _exchange(self, path: str, body: bytes) -> tuple[int, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
            self._http = h11.Connection(h11.CLIENT)
        reader, writer = self._streams
        headers = [
            ("host", "localhost"),
            ("content-type", "application/octet-stream"),
            ("content-length", str(len(body))),
        ]
        head = self._http.send(h11.Request(method="POST", target=path, headers=headers)) or b""
        writer.write(head)
        writer.write(self._http.send(h11.Data(data=body)) or b"")
        self._http.send(h11.EndOfMessage())
        await writer.drain()
        status, parts = 0, []
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(await reader.read(1 << 16))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                parts.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                raise ConnectionError("closed without an answer")
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        else:
            self.close()
        return status, b"".join(parts)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def send_until(end: float, number: int, url: str, work: Sequence[Prepared], load: Load) -> None:
    """One client: one request after the other; a rejected or failed one is sent again, with the same bytes."""
    turn, connection = number, Connection(url)
    while time.monotonic() < end:
        item = work[turn % len(work)]
        turn += 7
        request = dataclasses.replace(item.request, request_id=new_request_id())
        body, path = request.to_bytes(embed_key=False), f"/v1/programs/{request.program_id}/evaluate"
        start = time.monotonic()
        for attempt in range(ATTEMPTS):
            try:
                status, answer = await connection.post(path, body)
            except (OSError, asyncio.TimeoutError, h11.ProtocolError):
                status = 0
            if status == 200:
                load.answers.append((item, request.request_id, answer))
                load.seconds.append(time.monotonic() - start)
                break
            if status in BUSY:
                load.rejected += 1
            elif status or attempt > 5:
                load.lost += 1
                break
            await asyncio.sleep(0.05 * random.random() * min(20, attempt + 1))
        else:
            load.lost += 1
    connection.close()


async def run_load(url: str, pid: int, clients: int, seconds: float, work: Sequence[Prepared]) -> Load:
    """``clients`` of :func:`send_until` for some time, the server's memory sampled each second."""
    load, registrar = Load(), Connection(url)
    for key in {id(item.client): item.client.evaluation_key for item in work}.values():
        status, answer = await registrar.post("/v1/keys", key.to_bytes())
        if status != 201:
            raise RuntimeError(f"key refused: {status} {answer[:200]!r}")
    registrar.close()
    begin = time.monotonic()
    tasks = [asyncio.create_task(send_until(begin + seconds, number, url, work, load)) for number in range(clients)]
    while (now := time.monotonic() - begin) < seconds:
        load.samples.append((now, resident_bytes(pid)))
        await asyncio.sleep(min(1.0, seconds / 20))
    load.samples.append((now, resident_bytes(pid)))
    await asyncio.gather(*tasks)
    return load


def growth(samples: Sequence[tuple[float, int]]) -> float:
    """Of the memory from a sixth of the time to its end, as a share."""
    after = samples[-1][0] / 6
    early = next(count for at, count in samples if at >= after)
    return samples[-1][1] / early - 1


def resident_bytes(pid: int) -> int:
    """Resident memory of a process (Linux)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def count_wrong(load: Load) -> int:
    """Responses that are not the exact result of their own request."""
    wrong = 0
    for item, request_id, data in load.answers:
        try:
            found = item.client.decrypt_integers(mcfhe.Response.from_bytes(data), request_id=request_id)
            wrong += found != item.expected
        except McfheError:
            wrong += 1
    return wrong
