"""Senders that mean harm or are broken: each refused with a 4xx and one line, in time, and nobody else notices."""

from __future__ import annotations

import json
import logging
import random
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mcfhe
from benchmarks.service_fuzz import check_decode, fuzz_decoder
from mcfhe.errors import McfheError
from mcfhe.service.logs import JsonFormatter
from tests.service.mutate import mutate
from tests.service.support import EVALUATE, PROGRAM, HeldServer, Live, assert_refused, encrypt, new_client, wait_for

CLIENT = new_client(profile="patent")
REQUEST = encrypt(CLIENT, 2)[0]
KEY = CLIENT.evaluation_key
MESSAGES: dict[str, tuple[bytes, Callable[[bytes], Any]]] = {
    "request": (REQUEST.to_bytes(), lambda data: mcfhe.Request.from_bytes(data, {KEY.key_id: KEY}.get)),
    "keyed": (
        REQUEST.to_bytes(embed_key=False),
        lambda data: mcfhe.Request.from_bytes(data, {KEY.key_id: KEY}.get),
    ),
    "key": (KEY.to_bytes(), mcfhe.EvaluationKey.from_bytes),
    "response": (mcfhe.Server(PROGRAM).evaluate(REQUEST).to_bytes(), mcfhe.Response.from_bytes),
}


def test_decoder_survives_mutations() -> None:
    """1,000 of each kind: read, or refused by an error of the package; never slow, never much memory."""
    assert fuzz_decoder(list(MESSAGES.values()), 4000, random.Random("mcfhe")) == 0


@pytest.mark.parametrize("kind", MESSAGES)
@settings(max_examples=100, deadline=None)
@given(rng=st.randoms(use_true_random=False))
def test_decoder_survives_what_hypothesis_finds(kind: str, rng: random.Random) -> None:
    valid, reader = MESSAGES[kind]
    assert check_decode(reader, mutate(valid, rng)) is None


def test_most_mutations_are_refused() -> None:
    """Else the mutations above would test nothing."""
    rng, refused = random.Random(3), 0
    for valid, reader in MESSAGES.values():
        for _ in range(200):
            try:
                reader(mutate(valid, rng))
            except McfheError:
                refused += 1
    assert refused > 700


def test_the_checks_of_the_decoder_can_fail() -> None:
    def hungry(data: bytes) -> None:
        bytearray(100 << 20)

    def broken(data: bytes) -> None:
        raise KeyError("name")

    def verbose(data: bytes) -> None:
        raise McfheError("two\nlines")

    messages = [(KEY.to_bytes(), reader) for reader in (hungry, broken, verbose, lambda data: time.sleep(0))]
    assert fuzz_decoder(messages, 4, random.Random(1)) == 3


def test_mutations_over_http(live: Live) -> None:
    """400 of them: a 4xx with one line each, or 200 where the mutation left a valid message; the service lives on."""
    rng = random.Random("mcfhe http")
    assert live.post(KEY.to_bytes(), "/v1/keys").status_code == 201
    statuses: dict[int, int] = {}
    for number in range(400):
        kind = ("request", "keyed", "key")[number % 3]
        path = "/v1/keys" if kind == "key" else EVALUATE
        start = time.process_time()  # client and server are this process; the clock on the wall is everybody's
        answer = live.post(mutate(MESSAGES[kind][0], rng), path)
        assert time.process_time() - start < 1
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
        if answer.status_code not in (200, 201):
            assert 400 <= answer.status_code < 500
            assert_refused(answer, answer.status_code)
    assert sum(count for status, count in statuses.items() if status >= 400) > 350
    assert_scores(live)


def assert_scores(live: Live) -> None:
    request, expected = encrypt(CLIENT)
    answer = live.post(request.to_bytes())
    assert CLIENT.decrypt_integers(mcfhe.Response.from_bytes(answer.content)) == expected


def test_secrets_are_refused(live: Live) -> None:
    secret = CLIENT.secret_key.to_bytes()
    for path in (EVALUATE, "/v1/keys"):
        assert_refused(live.post(secret, path), 400, "secret")


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/nowhere", "GET", 404),
        ("/v1/programs/", "GET", 404),
        ("/v1/programs/" + "0" * 64 + "/spec", "GET", 404),
        ("/v1/programs/..%2f..%2fetc/spec", "GET", 404),
        ("/v1/keys", "GET", 405),
        (EVALUATE, "PUT", 405),
        (EVALUATE, "DELETE", 405),
    ],
)
def test_paths_and_methods(live: Live, path: str, method: str, status: int) -> None:
    assert_refused(live.http.request(method, path), status)


def test_bodies_of_other_types(live: Live) -> None:
    for headers in ({"content-type": "application/json"}, {"content-encoding": "gzip"}):
        assert_refused(live.post(REQUEST.to_bytes(), **headers), 415, "octet-stream")
    assert_refused(live.post(b""), 400)


def test_messages_for_other_programs(live: Live) -> None:
    request, _ = encrypt(CLIENT)
    object.__setattr__(request, "program_id", "0" * 64)
    assert_refused(live.post(request.to_bytes()), 409, "program")
    small = mcfhe.EvaluationKey(KEY.moduli[:1], KEY.amplification, KEY.scale)  # type: ignore[arg-type]
    wrong = mcfhe.Request(REQUEST.ciphertext[:1], REQUEST.public_key[:1], small, PROGRAM.program_id, 4, "patent")  # type: ignore[index]
    assert_refused(live.post(wrong.to_bytes()), 422, "bits")


def test_oversized_bodies(live: Live) -> None:
    limit = live.service.settings.max_body_bytes
    assert_refused(live.post(bytes(limit + 1)), 413, str(limit))
    assert_refused(live.post(bytes((1 << 16) + 1), "/v1/keys"), 413)

    def endless() -> Iterator[bytes]:
        for _ in range(limit // 1024 + 2):
            yield bytes(1024)

    answer = live.http.post(EVALUATE, content=endless(), headers={"content-type": "application/octet-stream"})
    assert_refused(answer, 413)
    with live.connect() as sender:  # the length alone is enough: not a byte of this body is sent
        sender.sendall(head(EVALUATE, 1 << 62))
        assert b" 413 " in receive_all(sender)
    with live.connect() as sender:
        sender.sendall(head(EVALUATE, 1).replace(b"length: 1", b"length: " + b"9" * 30))
        assert receive_all(sender).startswith(b"HTTP/1.1 4")


def head(path: str, length: int) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/octet-stream\r\ncontent-length: {length}\r\n\r\n"
    ).encode()


def receive_all(connection: socket.socket) -> bytes:
    """Until the other side closes; an abrupt close counts."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionError:
        pass
    return b"".join(parts)


def test_slow_headers(hasty: Live) -> None:
    for begin in (b"", b"G", b"GET /healthz HTTP/1.1\r\nhost: x\r\n"):
        start = time.monotonic()
        with hasty.connect() as sender:
            sender.sendall(begin)
            answer = receive_all(sender)
        assert b" 408 " in answer
        assert time.monotonic() - start < 5


def test_drip_fed_headers_and_second_requests(hasty: Live) -> None:
    """A byte now and then buys no time, neither in the first request of a connection nor in the second."""
    for first in (b"", b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"):
        start = time.monotonic()
        with hasty.connect() as sender:
            sender.sendall(first)
            time.sleep(0.1)
            try:
                for _ in range(30):
                    sender.sendall(b"a")
                    time.sleep(0.1)
            except ConnectionError:
                pass
            assert b" 408 " in receive_all(sender) or time.monotonic() - start < 5
        assert time.monotonic() - start < 5


def test_slow_bodies(hasty: Live) -> None:
    start = time.monotonic()
    with hasty.connect() as sender:
        sender.sendall(head(EVALUATE, 1000) + b"x")
        answer = receive_all(sender)
    assert b" 408 " in answer
    assert json.loads(answer.rpartition(b"\r\n\r\n")[2])["error"].startswith("body")
    assert time.monotonic() - start < 5
    wait_for(lambda: hasty.metric("mcfhe_inflight_requests") == 0)


def test_senders_that_leave(live: Live) -> None:
    for data in (head(EVALUATE, 1000) + b"x", head(EVALUATE, len(MESSAGES["request"][0])) + MESSAGES["request"][0]):
        with live.connect() as sender:
            sender.sendall(data)
    time.sleep(0.1)
    assert_scores(live)
    wait_for(lambda: live.metric("mcfhe_inflight_requests") == 0)


def test_bytes_that_are_not_http(hasty: Live, live: Live) -> None:
    rng = random.Random(7)
    for data in (rng.randbytes(500), b"\x16\x03\x01" + rng.randbytes(200), b"GET /\r\n\r\n", b"\r\n" * 50_000):
        with hasty.connect() as sender:
            try:
                sender.sendall(data)
            except ConnectionError:
                continue
            answer = receive_all(sender)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    assert_scores(live)


def test_too_many_connections() -> None:
    with Live(max_connections=2) as live:
        held = [live.connect() for _ in range(2)]
        for connection in held:
            connection.sendall(b"GET")
        time.sleep(0.1)
        with live.connect() as one_more:
            assert b" 503 " in receive_all(one_more)
        for connection in held:
            connection.close()
        time.sleep(0.1)
        assert_scores(live)


def test_internal_errors_tell_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(HeldServer):
        def evaluate(self, request: Any, progress: Any = None) -> Any:
            raise RuntimeError("the secret inside")

    with Live([Broken()]) as live:
        request, _ = encrypt(CLIENT)
        for _ in range(2):  # a failure is not kept: the retry is evaluated anew
            answer = live.post(request.to_bytes())
            assert_refused(answer, 500, "internal error")
            assert "inside" not in answer.text


def test_logs_have_no_payload() -> None:
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(JsonFormatter().format(record))

    logger, handler = logging.getLogger("mcfhe.service"), Keep()
    with Live(tokens=["a-token-that-is-never-logged"]) as live:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        try:
            request, _ = encrypt(CLIENT)
            live.post(request.to_bytes(), authorization="Bearer a-token-that-is-never-logged")
            live.post(b"payload-in-the-body", "/v1/raw-path-of-the-sender", authorization="Bearer wrong-token-of-mine")
            live.http.get("/v1/programs")
            live.post(b"a payload", authorization="Bearer a-token-that-is-never-logged")
            wait_for(lambda: len(lines) == 4)  # a line may come just after its answer
        finally:
            logger.removeHandler(handler)
    entries = [json.loads(line) for line in lines]
    assert [entry["status"] for entry in entries if entry["event"] == "request"] == [200, 401, 401, 400]
    refused = [entry.get("refused") for entry in entries]
    assert refused == [None, *["no valid token: send 'Authorization: Bearer TOKEN'"] * 2, "FormatError"]
    first = next(entry for entry in entries if entry["event"] == "request")
    assert first["request"] == request.request_id
    assert first["owner"] == "token-1"
    for word in ("never-logged", "of-mine", "payload-in", "raw-path", CLIENT.evaluation_key.key_id[:12]):
        assert word not in "".join(lines)
