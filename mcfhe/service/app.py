"""The routes: what each accepts, remembers and answers (docs/wire.md, section HTTP)."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mcfhe.container import read_header
from mcfhe.errors import ParameterError
from mcfhe.server import Evaluator
from mcfhe.service.admission import Gate, Ticket, read_body, room_for
from mcfhe.service.guard import Guard
from mcfhe.service.metrics import Metrics
from mcfhe.service.openapi import describe
from mcfhe.service.page import routes as page_routes
from mcfhe.service.refusal import Refusal, error_response
from mcfhe.service.replay import Replays
from mcfhe.service.scheduler import Job, Scheduler
from mcfhe.service.sessions import Sessions
from mcfhe.service.settings import KEY_HEADER_BYTES, MAX_KEY_BYTES, ServiceSettings
from mcfhe.service.tokens import Tokens
from mcfhe.wire import Request, read_evaluation_key


class Service:
    """Servers, by program id, and everything that is remembered between requests.

    ``app`` is the ASGI application; its lifespan starts and ends the work. A service serves one event loop once.
    """

    def __init__(
        self, servers: Sequence[Evaluator], settings: ServiceSettings | None = None, tokens: Tokens | None = None
    ) -> None:
        """ParameterError for no server, or two of the same program."""
        self.settings = settings = settings or ServiceSettings()
        self.servers = {server.program.program_id: server for server in servers}
        if not servers or len(self.servers) != len(servers):
            raise ParameterError("serve: one or more programs expected, all different")
        self.metrics = Metrics()
        self.accepting = False
        owners = 1 if tokens is None else len(tokens)
        self._gate = Gate(settings.max_inflight, settings.max_inflight_bytes, owners)
        if self._gate.bytes.most < settings.max_body_bytes:  # it would be told to come back for ever
            raise ParameterError(
                f"max_inflight_bytes = {settings.max_inflight_bytes}: of that one of {owners} tokens can have "
                f"{self._gate.bytes.most}, less than max_body_bytes = {settings.max_body_bytes}; raise it to "
                f"{room_for(settings.max_body_bytes, owners)}"
            )
        self._largest_key = max(MAX_KEY_BYTES, *(server.program.key_bytes + KEY_HEADER_BYTES for server in servers))
        self._sessions = Sessions(settings.max_keys, settings.session_s, settings.max_key_bytes)
        self._replays = Replays(settings.replay_s, settings.max_replay_bytes)
        self._decoder = ThreadPoolExecutor(2, thread_name_prefix="mcfhe-decode")
        self._scheduler = Scheduler(settings.max_batch_streams, self.metrics)
        self._programs = [
            {
                "program_id": program_id,
                "input_shape": list(server.program.input_shape),
                "labels": list(server.program.labels),
                "spec_sha256": server.program.client_spec().digest(),
            }
            for program_id, server in self.servers.items()
        ]
        self.app = Starlette(
            routes=[
                *page_routes(),
                Route("/healthz", self.health),
                Route("/readyz", self.ready),
                Route("/metrics", self.prometheus),
                Route("/openapi.json", self.openapi),
                Route("/v1/programs", self.programs),
                Route("/v1/programs/{program_id}/spec", self.spec),
                Route("/v1/keys", self.register, methods=["POST"]),
                Route("/v1/programs/{program_id}/evaluate", self.evaluate, methods=["POST"]),
            ],
            middleware=[Middleware(Guard, tokens=tokens, metrics=self.metrics)],
            exception_handlers={HTTPException: _http_error},
            lifespan=self._lifespan,
        )
        self.app.router.redirect_slashes = False

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self._scheduler.start()
        self.accepting = True
        try:
            yield
        finally:
            self.accepting = False
            await self._scheduler.close()
            self._decoder.shutdown()
            for server in self.servers.values():
                server.close()

    async def health(self, _: HttpRequest) -> Response:
        """The process lives and its event loop turns."""
        return JSONResponse({"status": "ok"})

    async def ready(self, _: HttpRequest) -> Response:
        """Requests are taken in; 503 before start-up has finished and while shutting down."""
        if not self.accepting:
            raise Refusal(503, "shutting down", retry_after_s=1)
        return JSONResponse({"status": "ready", "programs": len(self.servers)})

    async def prometheus(self, _: HttpRequest) -> Response:
        metrics = self.metrics
        metrics.inflight.set(self._gate.requests.taken)
        metrics.inflight_bytes.set(self._gate.bytes.taken)
        metrics.keys.set(len(self._sessions))
        metrics.waiting.set(self._scheduler.waiting)
        metrics.dropped.set(sum(getattr(server, "dropped", 0) for server in self.servers.values()))
        metrics.retried.set(sum(getattr(server, "retried", 0) for server in self.servers.values()))
        return Response(metrics.render(), media_type="text/plain; version=0.0.4")

    async def openapi(self, _: HttpRequest) -> Response:
        schemes = {server.program.scheme for server in self.servers.values()}
        return JSONResponse(describe(self.settings, self._largest_key, schemes))

    async def programs(self, _: HttpRequest) -> Response:
        return JSONResponse({"programs": self._programs})

    async def spec(self, http: HttpRequest) -> Response:
        """The client spec, its bytes as the program's digest counts them."""
        return Response(self._server(http).program.client_spec().to_json(), media_type="application/json")

    async def register(self, http: HttpRequest) -> Response:
        """Register an evaluation key for this token, or renew its session."""
        with self._enter(http.state.owner) as ticket:
            body = await read_body(http, ticket, self.settings, self._largest_key)
            key = await asyncio.get_running_loop().run_in_executor(self._decoder, read_evaluation_key, body)
            self._sessions.register(http.state.owner, key)
        answer = {"key_id": key.key_id, "expires_in_s": self._sessions.session_s}
        return Response(json.dumps(answer), 201, media_type="application/json")

    async def evaluate(self, http: HttpRequest) -> Response:
        """Evaluate a request, or join or replay the evaluation of the same one."""
        server, owner = self._server(http), http.state.owner
        loop = asyncio.get_running_loop()
        with self._enter(http.state.owner) as ticket:
            body = await read_body(http, ticket, self.settings, self.settings.max_body_bytes)
            request, digest = await loop.run_in_executor(self._decoder, self._decode, server, owner, body)
            beyond = request.held_bytes - len(body)
            del body
            http.state.log |= {
                "program": request.program_id[:12],
                "request": request.request_id,
                "images": request.batch,
            }
            slot = (owner, request.program_id, request.request_id)
            answer = self._replays.find(slot, digest)
            if answer is None:
                self._reserve(ticket, request, beyond)
                answer = loop.create_future()
                self._replays.begin(slot, digest, answer)
                ticket.keep()  # until it is done, whether or not somebody still waits for it
                answer.add_done_callback(lambda done: _settle(done, ticket))
                self._scheduler.submit(Job(server, request, answer))
            else:
                self.metrics.replayed.inc()
        del request
        try:
            data = await asyncio.wait_for(asyncio.shield(answer), self.settings.request_timeout_s)
        except asyncio.TimeoutError:
            raise Refusal(
                503, "not finished in time; send the same request again to get its result", retry_after_s=1
            ) from None
        return Response(data, media_type="application/octet-stream")

    def _decode(self, server: Evaluator, owner: str, body: bytes) -> tuple[Request, str]:
        """In a thread: the validated request and its content's digest. Errors of the package refuse it."""
        request = Request.from_bytes(body, lambda key_id: self._sessions.find(owner, key_id))
        server.check(request)
        return request, read_header(body).metadata["digest"]

    def _reserve(self, ticket: Ticket, request: Request, beyond: int) -> None:
        """Room for what evaluation holds beside a body; Refusal 413 if there never is enough, 429 if not now."""
        most = self._gate.bytes.most
        if request.held_bytes > most:
            raise Refusal(
                413,
                f"request: takes {request.held_bytes} bytes while it is evaluated, {most} may be inside for one "
                "token (max_inflight_bytes); the server's operator can raise that",
            )
        if beyond > 0:
            ticket.reserve(beyond)

    def _enter(self, owner: str) -> Ticket:
        if not self.accepting:
            raise Refusal(503, "shutting down; come back later", retry_after_s=1)
        return self._gate.enter(owner)

    def _server(self, http: HttpRequest) -> Evaluator:
        found = self.servers.get(http.path_params["program_id"])
        if found is None:
            raise Refusal(404, "no such program here; GET /v1/programs lists those that are")
        return found


def _settle(answer: asyncio.Future[bytes], ticket: Ticket) -> None:
    ticket.release()
    if not answer.cancelled():
        answer.exception()  # seen: nobody may be waiting any more


async def _http_error(_: HttpRequest, error: Exception) -> Response:
    """Starlette's own refusals: no such path, wrong method."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    messages = {404: "no such path; /openapi.json describes those there are", 405: "method not allowed on this path"}
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    return error_response(status, messages.get(status, "refused"), headers)
