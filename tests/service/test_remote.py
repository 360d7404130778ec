"""The client of a remote server: its interface, retries, what leaves the machine, and both commands."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from PIL import Image

import mcfhe
from mcfhe.errors import MismatchError, ParameterError, ServiceError
from tests.service.network import Proxy, make_certificate, messages
from tests.service.support import PROGRAM, HeldServer, Live, encrypt, images, new_client, wait_for

PROGRAM_FILE = Path(__file__).parent.parent / "vectors" / "program.mcfhe"


def test_has_the_interface_of_a_server(live: Live) -> None:
    client, shares = new_client(), []
    request, expected = encrypt(client, 2)
    with mcfhe.RemoteServer(live.url) as server:
        response = server.evaluate(request, shares.append)
        assert client.decrypt_integers(response, request_id=request.request_id) == expected
        assert [entry["program_id"] for entry in server.programs()] == [PROGRAM.program_id]
        assert server.client_spec(PROGRAM.program_id) == PROGRAM.client_spec()
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_registers_once_and_again_after_the_session() -> None:
    client, now = new_client(), [0.0]
    with Live(session_s=1.0) as live, mcfhe.RemoteServer(live.url) as server:
        live.service._sessions._clock = lambda: now[0]
        for now[0] in (0.0, 0.5, 2.0):
            request, expected = encrypt(client)
            assert client.decrypt_integers(server.evaluate(request)) == expected
        assert 'endpoint="register",status="201"} 2.0' in live.http.get("/metrics").text


def test_survives_a_restart_of_the_server() -> None:
    client = new_client()
    with Live() as first:
        server = mcfhe.RemoteServer(first.url, retry_wait_s=0.05)
        request, expected = encrypt(client)
        assert client.decrypt_integers(server.evaluate(request)) == expected
        port = first.port
    restart: list[Live] = []
    timer = threading.Timer(0.5, lambda: restart.append(Live(port=port).__enter__()))
    timer.start()
    request, expected = encrypt(client)
    assert client.decrypt_integers(server.evaluate(request)) == expected
    timer.join()
    server.close()
    restart[0].__exit__()


def test_busy_servers_are_asked_again() -> None:
    server, client = HeldServer(), new_client()
    with Live([server], max_inflight=2) as live, mcfhe.RemoteServer(live.url) as remote:
        remote.register(client.evaluation_key)
        senders = [threading.Thread(target=live.post, args=(encrypt(client)[0].to_bytes(),)) for _ in range(2)]
        for sender in senders:
            sender.start()
        threading.Timer(0.4, server.open.set).start()
        request, expected = encrypt(client)
        assert client.decrypt_integers(remote.evaluate(request)) == expected
        for sender in senders:
            sender.join()


def test_a_lost_answer_is_found_again() -> None:
    """The connection breaks when the answer is on its way: the retry gets it and nothing is evaluated twice."""
    server, client = HeldServer(), new_client()
    server.open.set()
    with Live([server]) as live, Proxy(live.port, lose_answers=1, after=b"/evaluate") as proxy:
        with mcfhe.RemoteServer(proxy.url, retry_wait_s=0.05) as remote:
            request, expected = encrypt(client)
            assert client.decrypt_integers(remote.evaluate(request)) == expected
        assert live.metric("mcfhe_replayed_total") == 1
    assert server.batches == [1]


def test_refusals_are_not_retried(live: Live) -> None:
    request, _ = encrypt(new_client())
    object.__setattr__(request, "program_id", "0" * 64)
    before = live.metric("mcfhe_requests_total")
    with mcfhe.RemoteServer(live.url) as server, pytest.raises(ServiceError, match="no such program") as caught:
        server.evaluate(request)
    assert caught.value.status == 404
    assert live.metric("mcfhe_requests_total") - before < 4  # the key, the refusal, this question


def test_gives_up_and_says_so() -> None:
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        server = mcfhe.RemoteServer(f"http://127.0.0.1:{unused.getsockname()[1]}", retries=1, retry_wait_s=0.01)
        with server, pytest.raises(ServiceError, match="no answer"):
            server.programs()


def test_refuses_the_response_to_another_request() -> None:
    class Wrong(HeldServer):
        def evaluate(self, request: mcfhe.Request, progress: object = None) -> mcfhe.Response:
            response = super().evaluate(request, progress)
            object.__setattr__(response, "request_id", "0" * 32)
            return response

    server = Wrong()
    server.open.set()
    with (
        Live([server]) as live,
        mcfhe.RemoteServer(live.url) as remote,
        pytest.raises(MismatchError, match="request_id"),
    ):
        remote.evaluate(encrypt(new_client())[0])


def test_refuses_a_response_for_another_number_of_images() -> None:
    """One too few would give every image after it its neighbour's label."""

    class Short(HeldServer):
        def evaluate(self, request: mcfhe.Request, progress: object = None) -> mcfhe.Response:
            response = super().evaluate(request, progress)
            return mcfhe.Response.for_request(request, response.residues[..., : -request.lanes].contiguous())

    server = Short()
    server.open.set()
    with Live([server]) as live, mcfhe.RemoteServer(live.url) as remote, pytest.raises(MismatchError, match="2 images"):
        remote.evaluate(encrypt(new_client(), 3)[0])


def test_a_proxy_of_the_environment_never_sees_a_local_server(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would get the token, which crosses no network only where the proxy is left out."""
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{unused.getsockname()[1]}")
        with mcfhe.RemoteServer(live.url, "t" * 20, retries=0) as server:
            assert server.programs()


@pytest.mark.parametrize(
    "arguments",
    [
        {"url": "http://host:99999"},
        {"url": "http://host:port"},
        {"url": "http://[::1"},
        {"url": "http://two words"},
        {"url": "ftp://host"},
        {"url": "host:80"},
        {"url": "http://user:word@host"},
        {"url": "http://host?query"},
        {"url": "http://host", "token": "t" * 20},
        {"url": "https://host", "token": "two\nlines"},
        {"url": "http://localhost", "timeout_s": 0},
        {"url": "http://localhost", "retries": -1},
    ],
)
def test_refuses_arguments(arguments: dict[str, object]) -> None:
    with pytest.raises(ParameterError):
        mcfhe.RemoteServer(**arguments)  # type: ignore[arg-type]


def test_repr_has_no_token() -> None:
    with mcfhe.RemoteServer("http://localhost", "t" * 20) as server:
        assert "ttt" not in repr(server)


@pytest.mark.parametrize("profile", ["patent", "hardened"])
def test_no_lane_position_leaves_the_machine(profile: str) -> None:
    """Every byte on the socket is accounted for by public values, and the positions are in none of them."""
    client = new_client(profile=profile, lanes=61, redundancy=20, user_key=b"the user's own key, 32 bytes long")
    request, expected = encrypt(client, 1)
    with (
        Live(tokens=["token-of-this-test"]) as live,
        Proxy(live.port) as proxy,
        mcfhe.RemoteServer(proxy.url, "token-of-this-test") as server,
    ):
        spec = server.client_spec(PROGRAM.program_id)
        assert client.decrypt_integers(server.evaluate(request)) == expected
    sent = bytes(proxy.sent)
    # What may travel, made anew from values that the design calls public: nothing else was given to these objects.
    public = mcfhe.EvaluationKey(client.evaluation_key.moduli, spec.amplification, spec.scale)
    anew = mcfhe.Request(
        request.ciphertext, request.public_key, public, spec.program_id, request.lanes, profile, request.request_id
    )
    exchanges = list(messages(sent))
    assert [body for _, body in exchanges] == [b"", public.to_bytes(), anew.to_bytes(embed_key=False)]
    known = {b"host", b"accept", b"accept-encoding", b"connection", b"user-agent", b"authorization", b"content-type"}
    for head, _ in exchanges:
        first, *lines = head.split(b"\r\n")
        assert first.split(b" ")[1].startswith(b"/v1/")
        assert {line.split(b":")[0].lower() for line in lines} <= known | {b"content-length"}
    # And the positions themselves, in any width and order of bytes, whole or in part, are nowhere.
    positions = client.secret_key.positions
    assert len(set(positions)) > 8
    for start in range(0, len(positions) - 8, 4):
        part = positions[start : start + 8]
        for code in "BHIQ":
            for order in "<>":
                assert struct.pack(f"{order}8{code}", *part) not in sent
        for separator in (",", ", ", " "):
            assert separator.join(map(str, part)).encode() not in sent
    for secret in (b"the user's own key", client.secret_key.salt or b"?", b"positions"):
        assert secret not in sent


# The commands, each in a process of its own.

Start = Callable[..., tuple[subprocess.Popen[str], dict[str, object]]]


@pytest.fixture
def serve() -> Iterator[Start]:
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: object) -> tuple[subprocess.Popen[str], dict[str, object]]:
        command = [sys.executable, "-m", "mcfhe", "serve", str(PROGRAM_FILE), "--port", "0", "--json"]
        process = subprocess.Popen(
            [*command, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        running.append(process)
        assert process.stdout is not None
        return process, json.loads(process.stdout.readline())

    yield start
    for process in running:
        process.kill()
        process.communicate()


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mcfhe", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


def test_serve_and_classify(serve: Start, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("# of this test\n0123456789abcdef0123456789abcdef\n")
    process, facts = serve("--token-file", tokens)
    assert facts["programs"] == [PROGRAM.program_id]
    client, pixels = new_client(noise=0), images(3)
    client.save(tmp_path / "key")
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for file, image in zip(files, pixels, strict=True):
        Image.fromarray(image[0]).save(file)
    arguments = ("classify", *files, "--server", facts["url"], "--key", tmp_path / "key")
    done = run(*arguments, "--json", "--batch", 2, MCFHE_TOKEN="0123456789abcdef0123456789abcdef")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    plain = PROGRAM.evaluate_plain(pixels)
    assert answer["labels"] == [PROGRAM.labels[int(i)] for i in plain.argmax(1)]
    assert answer["images"] == [str(file) for file in files]
    assert "without semantic security" in done.stderr
    refused = run(*arguments, "--quiet", MCFHE_TOKEN="wrong")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "no valid token" in refused.stderr
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=10)
    assert process.returncode == 0
    events = [json.loads(line) for line in log.splitlines()]
    assert [entry["event"] for entry in events][-2:] == ["shutting down", "finished"]
    assert "0123456789abcdef" not in log


def test_serve_over_tls(serve: Start, tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make_certificate(certificate, key)
    _, facts = serve("--tls-cert", certificate, "--tls-key", key)
    client = new_client()
    request, expected = encrypt(client)
    assert str(facts["url"]).startswith("https://")
    with mcfhe.RemoteServer(str(facts["url"]), ca_file=certificate) as server:
        assert client.decrypt_integers(server.evaluate(request)) == expected
    # A certificate that is not trusted now will not be at the next attempt: this must not wait.
    start = time.monotonic()
    with (
        mcfhe.RemoteServer(str(facts["url"]), retries=9, retry_wait_s=30) as server,
        pytest.raises(ServiceError, match="CERTIFICATE"),
    ):
        server.programs()
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--host", "0.0.0.0"), "--no-token"),
        (("--tls-cert", "x"), "go together"),
        (("--tls-cert", "no", "--tls-key", "no"), "TLS"),
        (("--token-file", "no"), "no"),
        (("--host", "192.0.2.1", "--no-token"), "cannot be bound"),
    ],
)
def test_serve_refuses(arguments: tuple[str, ...], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    from mcfhe.cli import run as run_here

    assert run_here(["serve", str(PROGRAM_FILE), "--port", "0", *arguments]) == 1
    captured = capsys.readouterr()
    assert word in captured.err
    assert len(captured.err.strip().splitlines()) == 1


def test_classify_survives_a_killed_server(serve: Start, tmp_path: Path) -> None:
    """kill -9 in mid-run, a new process on the same port: every image once, in order, with its label.

    The new server knows neither the key nor the requests: the client registers the key again and repeats its request.
    """
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process, facts = serve("--port", port)
    client, pixels = new_client(profile="patent"), images(150)  # no noise: labels as in evaluate_plain
    client.save(tmp_path / "key")
    files = [tmp_path / f"{number}.png" for number in range(len(pixels))]
    for file, image in zip(files, pixels, strict=True):
        Image.fromarray(image[0]).save(file)
    command = [sys.executable, "-m", "mcfhe", "classify", *map(str, files), "--server", str(facts["url"])]
    command += ["--key", str(tmp_path / "key"), "--batch", "1", "--retries", "12", "--json", "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as classify:
        with httpx.Client(base_url=str(facts["url"])) as http:
            wait_for(lambda: evaluated(http) >= 5, 60)
        process.kill()
        process.wait()
        assert classify.poll() is None, classify.communicate()
        _, facts = serve("--port", port)
        stdout, stderr = classify.communicate(timeout=120)
        assert classify.returncode == 0, stderr
    answer = json.loads(stdout)
    assert answer["images"] == [str(file) for file in files]
    assert answer["labels"] == [PROGRAM.labels[int(i)] for i in PROGRAM.evaluate_plain(pixels).argmax(1)]
    with httpx.Client(base_url=str(facts["url"])) as http:
        text = http.get("/metrics").text
        assert 'endpoint="register",status="201"} 1.0' in text
        assert 'endpoint="evaluate",status="410"} 1.0' in text
        assert evaluated(http) <= len(files) - 4  # what the first had answered was not sent again


def evaluated(http: httpx.Client) -> float:
    """Images that a server has evaluated."""
    lines = http.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("mcfhe_images_total{"))
