"""The middleware around every route: bearer tokens, errors as one JSON line, logs, metrics."""

from __future__ import annotations

import logging
import time
from typing import Any

import anyio
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mcfhe.errors import McfheError
from mcfhe.service.logs import log
from mcfhe.service.metrics import Metrics
from mcfhe.service.page import PAGE_PATHS
from mcfhe.service.refusal import Refusal, error_response
from mcfhe.service.tokens import Tokens

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics", "/openapi.json"}) | PAGE_PATHS
_DRAIN_SECONDS = 2.0  # in all
_DRAIN_PAUSE_SECONDS = 0.25  # without a byte: the sender waits for the answer or has stalled


class Guard:
    """Pure ASGI. Sets ``scope["state"]["owner"]``; a handler may add log fields in ``scope["state"]["log"]``."""

    def __init__(self, app: ASGIApp, tokens: Tokens | None, metrics: Metrics) -> None:
        self._app = app
        self._tokens = tokens
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        state = scope.setdefault("state", {})
        state["log"] = {}
        start = time.monotonic()
        try:
            state["owner"] = self._owner(scope)
            await self._app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            exchange.status = 499  # nobody is there to read an answer; the number is nginx's
        except Refusal as refusal:
            state["log"]["refused"] = str(refusal)  # the service's own words; those of a McfheError may quote a message
            await exchange.refuse(refusal)
        except McfheError as error:
            state["log"]["refused"] = type(error).__name__
            await exchange.refuse(Refusal.of(error))
        except Exception:
            log("internal error", logging.ERROR, exc_info=True, endpoint=_endpoint(scope))
            await exchange.refuse(Refusal(500, "internal error"))
        finally:
            self._account(scope, exchange, time.monotonic() - start, state)

    def _owner(self, scope: Scope) -> str:
        if self._tokens is None or scope["path"] in OPEN_PATHS:
            return ""
        owner = self._tokens.owner(Headers(scope=scope).get("authorization"))
        if owner is None:
            raise Refusal(401, "no valid token: send 'Authorization: Bearer TOKEN'")
        return owner

    def _account(self, scope: Scope, exchange: _Exchange, seconds: float, state: dict[str, Any]) -> None:
        endpoint = _endpoint(scope)
        self._metrics.requests.labels(endpoint, str(exchange.status)).inc()
        self._metrics.request_seconds.labels(endpoint).observe(seconds)
        self._metrics.body_bytes.inc(exchange.received)
        level = logging.DEBUG if scope["path"] in OPEN_PATHS else logging.INFO
        log(
            "request",
            level,
            method=scope["method"] if scope["method"] in ("GET", "HEAD", "POST") else "other",
            endpoint=endpoint,
            status=exchange.status,
            seconds=round(seconds, 4),
            bytes_in=exchange.received,
            bytes_out=exchange.sent,
            owner=state.get("owner", ""),
            **state["log"],
        )


class _Exchange:
    """Receive and send of one request, counted. An unread body is read away, for a while, before an early answer.

    Otherwise the connection would have to be closed under a client that is still sending, and the reset that causes
    can destroy the answer on its way.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        self.status = 0
        self.received = 0
        self.sent = 0
        self._receive = receive
        self._send = send
        self._complete = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self.received += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
        else:
            self._complete = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if not self._complete and not await self._drain():
                message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
        else:
            self.sent += len(message.get("body", b""))
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Answer with the refusal, unless an answer has begun."""
        if self.status:
            return

        async def nothing() -> Message:
            return {"type": "http.disconnect"}

        response = error_response(refusal.status, str(refusal), refusal.headers)
        await response({"type": "http"}, nothing, self.send)

    async def _drain(self) -> bool:
        """Whether the rest of the body came; nothing of it is kept. Not tried for one that was too slow."""
        if self.status == 408:
            return False
        with anyio.move_on_after(_DRAIN_SECONDS):
            while not self._complete:
                with anyio.move_on_after(_DRAIN_PAUSE_SECONDS) as pause:
                    await self.receive()
                if pause.cancelled_caught:
                    break
        return self._complete


def _endpoint(scope: Scope) -> str:
    """The handler's name: of bounded number, unlike the path."""
    return getattr(scope.get("endpoint"), "__name__", "none")
