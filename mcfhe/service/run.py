"""The process: uvicorn with a time limit on headers, JSON logs, TLS and a graceful end."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from mcfhe.errors import McfheError
from mcfhe.service.app import Service
from mcfhe.service.logs import log, logging_config
from mcfhe.service.settings import ServiceSettings


def limited_protocol(settings: ServiceSettings) -> type[H11Protocol]:
    """uvicorn's HTTP/1.1 with what it lacks: a limit on the time headers take, and on the number of connections."""

    class LimitedProtocol(H11Protocol):
        _header_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > settings.max_connections:
                self._close_with(503, "too many connections; come back later")
            else:
                self._watch_headers()

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            super().data_received(data)
            self._watch_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            self._cancel()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            self._close_with(400, "not a valid HTTP/1.1 request")

        def _watch_headers(self) -> None:
            """A timer runs while the connection owes us the rest of a request's headers."""
            if self.cycle is not None and not self.cycle.response_complete:
                self._cancel()
            elif self._header_timer is None and not self.transport.is_closing():
                self._header_timer = self.loop.call_later(settings.header_timeout_s, self._headers_late)

        def _headers_late(self) -> None:
            self._header_timer = None
            if self.cycle is None or self.cycle.response_complete:
                self._close_with(408, f"headers: not complete after {settings.header_timeout_s:g} s")

        def _cancel(self) -> None:
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None

        def _close_with(self, status: int, message: str) -> None:
            """Answer outside of HTTP's state machine, which may be anywhere, and close."""
            body = json.dumps({"error": message}) + "\n"
            self.transport.write(
                f"HTTP/1.1 {status} \r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
                f"connection: close\r\n\r\n{body}".encode("ascii")
            )
            self.transport.close()

    return LimitedProtocol


class _Uvicorn(uvicorn.Server):
    """Tells when it listens, and stops taking requests in before it waits for those that are inside."""

    def __init__(
        self, config: uvicorn.Config, service: Service, url: str, started: Callable[[str], None] | None
    ) -> None:
        super().__init__(config)
        self._url = url
        self._service = service
        self._on_start = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        limits = self._service.settings
        log(
            "started",
            url=self._url,
            programs=[program_id[:12] for program_id in self._service.servers],
            max_body_bytes=limits.max_body_bytes,
            max_inflight_bytes=limits.max_inflight_bytes,
        )
        if self._on_start is not None:
            self._on_start(self._url)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.accepting = False
        log("shutting down")
        await super().shutdown(sockets)
        self._captured_signals.clear()  # a graceful end is no failure: uvicorn would raise the signal once more
        log("finished")


def make_server(
    service: Service,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    tls_certificate: Path | None = None,
    tls_key: Path | None = None,
    log_level: str = "info",
    started: Callable[[str], None] | None = None,
) -> tuple[uvicorn.Server, list[socket.socket], str]:
    """A server that is bound but does not run yet, its sockets and its URL; ``server.run(sockets)`` runs it.

    Port 0 takes a free one. ``started`` is called with the URL once connections are answered. McfheError if the
    address cannot be bound or the TLS files do not load.
    """
    settings = service.settings
    tls: dict[str, Any] = {}
    if tls_certificate is not None:
        tls = {"ssl_certfile": str(tls_certificate), "ssl_keyfile": None if tls_key is None else str(tls_key)}
    config = uvicorn.Config(
        service.app,
        host=host,
        port=port,
        http=limited_protocol(settings),
        ws="none",
        lifespan="on",
        loop="asyncio",
        log_config=logging_config(log_level),
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=max(1, round(settings.keep_alive_s)),
        timeout_graceful_shutdown=max(1, round(settings.shutdown_timeout_s)),
        **tls,
    )
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        raise McfheError(f"TLS: {tls_certificate}, {tls_key}: cannot be loaded ({error.strerror})") from None
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol spelled out asyncio sets TCP_NODELAY; without it every answer waits 40 ms for a delayed ACK.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise McfheError(f"{host}:{port}: cannot be bound ({error.strerror})") from None
    shown = f"[{host}]" if ":" in host else host
    url = f"{'https' if tls else 'http'}://{shown}:{bound.getsockname()[1]}"
    server = _Uvicorn(config, service, url, started)
    return server, [bound], url
