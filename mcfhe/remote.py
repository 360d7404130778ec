"""A server elsewhere, with the interface of :class:`mcfhe.Server`. Needs httpx (extra ``mcfhe[serve]``).

Only requests, evaluation keys and the bearer token leave: this module is never given a secret key.
"""

from __future__ import annotations

import ipaddress
import json
import random
import re
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mcfhe.arguments import file_path, number, require, whole
from mcfhe.errors import FormatError, McfheError, MismatchError, ParameterError, ServiceError
from mcfhe.lattice.evaluation_key import LatticeEvaluationKey
from mcfhe.lattice.wire import LatticeRequest
from mcfhe.modular.evaluation_key import EvaluationKey
from mcfhe.spec import ClientSpec
from mcfhe.wire import Request, Response, check_kind, check_match

if TYPE_CHECKING:
    import httpx

_RETRY_STATUSES = frozenset({408, 429, 502, 503, 504})
_MAX_RESPONSE_BYTES = 1 << 28
_MAX_WAIT_S = 30.0
_CHUNK = 1 << 16
_BINARY = {"content-type": "application/octet-stream"}


class RemoteServer:
    """A server at a URL. Evaluates as :meth:`mcfhe.Server.evaluate` does; each call may be retried.

    A retry repeats the request id and the bytes, so the server evaluates it once, and finds the result of a request
    whose answer got lost on its way. Thread-safe. Usable as a context manager, which closes the connections.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        timeout_s: float = 90.0,
        retries: int = 6,
        retry_wait_s: float = 0.2,
        ca_file: str | Path | None = None,
        allow_plain_token: bool = False,
    ) -> None:
        """
        Args:
            url: ``https://host:port``, or ``http://`` where nobody listens on the way.
            token: bearer token.
            timeout_s: longest silence of the server, > 0; connecting takes at most 10 s of it.
            retries: further attempts after the first, 0 or more.
            retry_wait_s: before the first retry; doubles each time, up to 30 s, with a random share; the server's own
                Retry-After is respected when it is longer.
            ca_file: PEM certificates to trust instead of the system's.
            allow_plain_token: send the token over ``http://`` to another machine.

        ParameterError for a URL or number out of range, or a token that would cross a network in the clear.
        """
        try:
            import httpx
        except ModuleNotFoundError:
            raise McfheError("RemoteServer needs httpx: pip install 'mcfhe[serve]'") from None
        require("url", url, str, "give http://HOST:PORT or https://HOST:PORT")
        require("token", token, (str, type(None)), "give a text, or None for no token")
        try:
            parts = urlsplit(url)
            extra = parts.query or parts.fragment or parts.port == 0  # port: ValueError where it is out of range
        except ValueError:
            parts, extra = urlsplit(""), True
        if parts.scheme not in ("http", "https") or not parts.hostname or extra or not re.fullmatch(r"[!-~]+", url):
            raise ParameterError(f"url {url!r}: http://HOST:PORT or https://HOST:PORT expected")
        if parts.username is not None or parts.password is not None:
            raise ParameterError("url: holds credentials; pass the token on its own")
        if token is not None and parts.scheme == "http" and not allow_plain_token and not _is_local(parts.hostname):
            raise ParameterError(
                f"token: would cross the network to {parts.hostname} in the clear; use https, or allow_plain_token"
            )
        if token is not None and not re.fullmatch(r"[!-~]+", token):
            raise ParameterError("token: printable ASCII characters without spaces expected")
        number("timeout_s", timeout_s, 0, above=True)
        number("retry_wait_s", retry_wait_s, 0)
        if whole("retries", retries) < 0:
            raise ParameterError(f"retries = {retries}: use 0 or more")
        verify: ssl.SSLContext | bool = True
        if ca_file is not None:
            try:
                verify = ssl.create_default_context(cafile=file_path(ca_file, "ca_file"))
            except OSError as error:
                raise McfheError(f"{ca_file}: cannot be read as PEM certificates ({error.strerror})") from None
        self.url = url.rstrip("/")
        self._retries = retries
        self._retry_wait_s = retry_wait_s
        self._registered: set[str] = set()
        self._http = httpx.Client(
            base_url=self.url,
            headers={} if token is None else {"authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(timeout_s, connect=min(10.0, timeout_s)),
            verify=verify,
            follow_redirects=False,
            # Not through a proxy of the environment, which would get the token that stays on this machine otherwise.
            mounts=dict.fromkeys(("http://", "https://", "all://")) if _is_local(parts.hostname) else None,
        )

    def __repr__(self) -> str:
        return f"RemoteServer({self.url!r})"

    def __enter__(self) -> RemoteServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def programs(self) -> list[dict[str, Any]]:
        """Programs of the server: ``program_id``, ``input_shape``, ``labels``, ``spec_sha256``."""
        body = self._json("/v1/programs")
        programs = body.get("programs") if isinstance(body, dict) else None
        if not isinstance(programs, list) or not all(isinstance(entry, dict) for entry in programs):
            raise FormatError("programs: the server's answer is not a list of programs")
        return programs

    def client_spec(self, program_id: str) -> ClientSpec:
        """The client spec of one program, by its 64 hex digits."""
        if not isinstance(program_id, str) or not re.fullmatch(r"[0-9a-f]{64}", program_id):
            raise ParameterError("program_id: 64 lower-case hex digits expected")
        data = self._send("GET", f"/v1/programs/{program_id}/spec")
        try:
            spec: ClientSpec = ClientSpec.from_json(data.decode())
        except UnicodeDecodeError:
            raise FormatError("client spec: not UTF-8") from None
        check_match("client spec", "program_id", spec.program_id, program_id)
        return spec

    def register(self, key: EvaluationKey | LatticeEvaluationKey) -> None:
        """Upload an evaluation key, once a session; :meth:`evaluate` does so by itself."""
        require("key", key, (EvaluationKey, LatticeEvaluationKey), "give client.evaluation_key")
        self._send("POST", "/v1/keys", key.to_bytes())
        self._registered.add(key.key_id)

    def evaluate(self, request: Request, progress: Callable[[float], None] | None = None) -> Response:
        """Send a request and return its response, whose ids are those of the request.

        ``progress`` is called with the finished share, 0..1; the upload is the first half. ServiceError for a refusal
        or when every retry failed, FormatError or MismatchError for an answer that is not the response.
        """
        check_kind("request", request, Request, LatticeRequest)
        if request.key_id not in self._registered:
            self.register(request.evaluation_key)
        path, body = f"/v1/programs/{request.program_id}/evaluate", request.to_bytes(embed_key=False)
        try:
            data = self._send("POST", path, body, progress)
        except ServiceError as error:
            if error.status != 410:
                raise
            self.register(request.evaluation_key)  # the session has expired or the server began anew
            data = self._send("POST", path, body, progress)
        response: Response = Response.from_bytes(data)
        for name in ("program_id", "key_id", "request_id"):
            check_match("response", name, getattr(response, name), getattr(request, name))
        for name in ("profile", "lanes", "batch"):
            found, expected = getattr(response, name, None), getattr(request, name, None)
            if found != expected:
                what = f"{found} images" if name == "batch" else f"{name} {found}"
                raise MismatchError(f"response: {what}, {expected} expected; it belongs to another request")
        if progress is not None:
            progress(1.0)
        return response

    def _json(self, path: str) -> Any:
        try:
            return json.loads(self._send("GET", path))
        except (ValueError, RecursionError):
            raise FormatError(f"{path}: the server's answer is not JSON") from None

    def _send(
        self, method: str, path: str, body: bytes | None = None, progress: Callable[[float], None] | None = None
    ) -> bytes:
        """The body of a 2xx answer, after retries. ServiceError otherwise."""
        import httpx

        for attempt in range(self._retries + 1):
            wait = min(_MAX_WAIT_S, self._retry_wait_s * 2**attempt) * random.uniform(0.5, 1.0)  # spread, not secret
            try:
                status, headers, data = self._attempt(method, path, body, progress)
            except httpx.TransportError as error:
                failure = ServiceError(f"{self.url}: no answer ({type(error).__name__}: {error})")
                if _is_final(error):
                    break
            else:
                if 200 <= status < 300:
                    return data
                failure = ServiceError(f"{self.url}: {_reason(data)} (status {status})", status)
                if status not in _RETRY_STATUSES:
                    break
                after = headers.get("retry-after", "")
                wait = max(wait, min(_MAX_WAIT_S, float(after))) if after.isdecimal() else wait
            if attempt < self._retries:
                time.sleep(wait)
        raise failure

    def _attempt(
        self, method: str, path: str, body: bytes | None, progress: Callable[[float], None] | None
    ) -> tuple[int, httpx.Headers, bytes]:
        headers, content = {}, None
        if body is not None:
            headers = {**_BINARY, "content-length": str(len(body))}
            content = _chunks(body, progress)
        with self._http.stream(method, path, content=content, headers=headers) as answer:
            parts, size = [], 0
            for part in answer.iter_raw():
                size += len(part)
                if size > _MAX_RESPONSE_BYTES:
                    raise FormatError(f"{self.url}: an answer of more than {_MAX_RESPONSE_BYTES} bytes")
                parts.append(part)
            return answer.status_code, answer.headers, b"".join(parts)


def _chunks(body: bytes, progress: Callable[[float], None] | None) -> Iterator[bytes]:
    for start in range(0, len(body), _CHUNK):
        yield body[start : start + _CHUNK]
        if progress is not None:
            progress(0.5 * min(1.0, (start + _CHUNK) / len(body)))


def _is_final(error: BaseException | None) -> bool:
    """Whether the next attempt would fail the same way: a certificate that is not trusted."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _reason(data: bytes) -> str:
    """The server's own line, bounded and printable."""
    try:
        text = json.loads(data)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return "refused without a reason"
    return "".join(c if c.isprintable() else "?" for c in str(text)[:300])


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
