"""A live service on a loopback port, in a thread of this process, and what to send to it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

import mcfhe
from mcfhe.server import Server
from mcfhe.service.app import Service
from mcfhe.service.run import make_server
from mcfhe.service.settings import ServiceSettings
from mcfhe.service.tokens import Tokens

PROGRAM = mcfhe.load_program(Path(__file__).parent.parent / "vectors" / "program.mcfhe")
BINARY = {"content-type": "application/octet-stream"}
EVALUATE = f"/v1/programs/{PROGRAM.program_id}/evaluate"
RNG = np.random.default_rng(20240607)


class HeldServer(Server):
    """Evaluates only while ``open`` is set; counts its evaluations."""

    def __init__(self) -> None:
        super().__init__(PROGRAM)
        self.open = threading.Event()
        self.entered = threading.Event()
        self.batches: list[int] = []

    def evaluate(self, request: Any, progress: Any = None) -> Any:
        self.batches.append(request.batch)
        self.entered.set()
        if not self.open.wait(20):
            raise TimeoutError("held for too long")
        return super().evaluate(request, progress)


class Live:
    """``with Live(...) as live``: answers at ``live.url``; leaving the block ends it gracefully."""

    def __init__(
        self, servers: Sequence[Server] | None = None, tokens: Sequence[str] = (), port: int = 0, **settings: Any
    ) -> None:
        self.service = Service(
            servers or [Server(PROGRAM)], ServiceSettings(**settings), Tokens(tokens) if tokens else None
        )
        self._started = threading.Event()
        self._server, sockets, self.url = make_server(
            self.service, port=port, log_level="error", started=lambda _: self._started.set()
        )
        self.port = sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._server.run, args=(sockets,), daemon=True)

    def __enter__(self) -> Live:
        self._thread.start()
        assert self._started.wait(10)
        self.http = httpx.Client(base_url=self.url, timeout=10)
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.stop()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(15)
        assert not self._thread.is_alive()

    def post(self, body: bytes, path: str = EVALUATE, **headers: str) -> httpx.Response:
        return self.http.post(path, content=body, headers={**BINARY, **headers})

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def metric(self, name: str) -> float:
        """The sum of a metric's samples of one name."""
        lines = self.http.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((name + " ", name + "{")))


def images(count: int) -> np.ndarray:
    return RNG.integers(0, 256, (count, *PROGRAM.input_shape), dtype=np.uint8)


def new_client(**arguments: Any) -> mcfhe.Client:
    return mcfhe.Client.generate(PROGRAM.client_spec(), **arguments)


def encrypt(client: mcfhe.Client, count: int = 1) -> tuple[mcfhe.Request, list[list[int]]]:
    """A request and the integers that its response must decrypt to."""
    request, values = client.encrypt(images(count), return_integers=True)
    return request, PROGRAM.evaluate_integers(values, request.profile)


def assert_refused(answer: httpx.Response, status: int, word: str = "") -> None:
    """A status and one line of JSON with nothing but ``error``."""
    assert answer.status_code == status, answer.text
    assert answer.text.count("\n") == 1
    assert answer.text.endswith("\n")
    body = answer.json()
    assert list(body) == ["error"]
    assert word in body["error"]
    assert "Traceback" not in answer.text


def wait_for(condition: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.01)
