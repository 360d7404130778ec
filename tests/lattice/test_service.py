"""Lattice programs over HTTP: the service and its client, unchanged."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import mcfhe
from mcfhe.errors import ParameterError, ServiceError
from mcfhe.lattice.client import LatticeClient
from mcfhe.lattice.expansion import expanded
from mcfhe.lattice.program import LatticeProgram
from mcfhe.lattice.seal import available
from mcfhe.lattice.server import LatticeServer
from mcfhe.lattice.wire import LatticeRequest, LatticeResponse
from mcfhe.service.admission import Quota
from mcfhe.service.sessions import Sessions
from mcfhe.service.settings import ServiceSettings
from mcfhe.service.sizing import request_bytes, settings_for
from mcfhe.sharding.sharded import local_evaluator
from mcfhe.wording import LATTICE_LINE, SECURITY_LINE
from tests.lattice.support import small_program
from tests.service.support import PROGRAM, Live, assert_refused, wait_for

pytestmark = pytest.mark.skipif(not available(), reason="needs tenseal: pip install 'mcfhe[lattice]'")


@pytest.fixture(scope="module")
def program() -> LatticeProgram:
    return small_program()


@pytest.fixture(scope="module")
def client(program: LatticeProgram) -> LatticeClient:
    return LatticeClient.generate(program.client_spec())


def test_classify_beside_a_modular_program(program: LatticeProgram, client: LatticeClient) -> None:
    images = torch.randint(0, 256, (5, 2, 3, 3), dtype=torch.uint8, generator=torch.manual_seed(0))
    other = mcfhe.Client.generate(PROGRAM.client_spec(), profile="patent")
    with Live([mcfhe.Server(program), mcfhe.Server(PROGRAM)]) as live, mcfhe.RemoteServer(live.url) as server:
        assert server.client_spec(program.program_id) == program.client_spec()
        request = client.encrypt(images)
        for _ in range(2):  # the second time with a registered key, answered from the replay store
            scores = client.decrypt(server.evaluate(request), request_id=request.request_id)
            expected = program.evaluate_plain(images)
            torch.testing.assert_close(scores, expected, atol=0.2, rtol=0)
        pixels = torch.zeros(1, *PROGRAM.input_shape, dtype=torch.uint8)
        modular = other.decrypt(server.evaluate(other.encrypt(pixels)))
        assert torch.equal(modular, PROGRAM.evaluate_plain(pixels))


def test_requests_of_those_who_have_the_public_key(program: LatticeProgram, client: LatticeClient) -> None:
    """Beside the owner's: another connection, the same evaluation key. The owner decrypts both."""
    images = torch.randint(0, 256, (5, 2, 3, 3), dtype=torch.uint8, generator=torch.manual_seed(1))
    public = mcfhe.PublicKey.from_bytes(client.public_key().to_bytes())
    live = Live([mcfhe.Server(program)])
    with live, mcfhe.RemoteServer(live.url) as owners, mcfhe.RemoteServer(live.url) as others:
        answers = [
            server.evaluate(encryptor.encrypt(images)).to_bytes()
            for server, encryptor in ((owners, client), (others, public), (others, public))
        ]
    for answer in answers:
        scores = client.decrypt(LatticeResponse.from_bytes(answer))
        torch.testing.assert_close(scores, program.evaluate_plain(images), atol=0.2, rtol=0)


def test_the_description_has_the_largest_keys_limit_and_the_schemes_worth(
    program: LatticeProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcfhe.service.app.MAX_KEY_BYTES", 1000)
    for programs, lines in (([program], [LATTICE_LINE]), ([program, PROGRAM], [SECURITY_LINE, LATTICE_LINE])):
        with Live([mcfhe.Server(each) for each in programs]) as live:  # type: ignore[attr-defined]
            described = live.http.get("/openapi.json").json()
        assert described["info"]["description"] == " ".join(lines)
        key = described["paths"]["/v1/keys"]["post"]["requestBody"]["content"]["application/octet-stream"]["schema"]
        assert key["maxLength"] > program.key_bytes > 1000


def test_a_request_for_the_other_scheme_is_refused(program: LatticeProgram, client: LatticeClient) -> None:
    request = client.encrypt(torch.zeros(1, 2, 3, 3, dtype=torch.uint8))
    object.__setattr__(request, "program_id", PROGRAM.program_id)
    with Live([mcfhe.Server(program), mcfhe.Server(PROGRAM)]) as live, mcfhe.RemoteServer(live.url) as server:
        with pytest.raises(ServiceError, match="scheme") as refused:
            server.evaluate(request)
        assert refused.value.status is not None
        assert 400 <= refused.value.status < 500


def test_keys_are_bounded_by_bytes(client: LatticeClient) -> None:
    key = client.evaluation_key
    sessions = Sessions(100, 60.0, max_bytes=key.nbytes)
    other = mcfhe.Client.generate(PROGRAM.client_spec()).evaluation_key
    sessions.register("small", other)
    sessions.register("large", key)
    assert sessions.find("small", other.key_id) is other
    assert sessions.find("large", key.key_id) is None, "the owner of the most bytes pays"


class Held(LatticeServer):
    """Evaluates only while ``open`` is set."""

    def __init__(self, program: LatticeProgram) -> None:
        super().__init__(program)
        self.open, self.entered = threading.Event(), threading.Event()

    def evaluate(self, request: LatticeRequest, progress: Any = None) -> LatticeResponse:
        self.entered.set()
        if not self.open.wait(20):
            raise TimeoutError("held for too long")
        return super().evaluate(request, progress)


def test_admission_counts_what_a_seeded_request_expands_to(program: LatticeProgram, client: LatticeClient) -> None:
    pixels = torch.zeros(1, 2, 3, 3, dtype=torch.uint8)
    requests = [client.encrypt(pixels) for _ in range(2)]
    held, bodies = requests[0].held_bytes, [request.to_bytes() for request in requests]
    assert held == requests[0].ciphertext.nbytes + expanded(requests[0]).nbytes > len(bodies[0])
    path = f"/v1/programs/{program.program_id}/evaluate"
    limits = {"max_body_bytes": len(bodies[0])}
    with Live([mcfhe.Server(program)], max_inflight_bytes=held - 1, **limits) as live:
        assert_refused(live.post(bodies[0], path), 413, f"takes {held} bytes while it is evaluated, {held - 1}")
        assert live.metric("mcfhe_inflight_bytes") == 0
    tokens = ["t" * 20, "u" * 20]  # of a limit that would do, one of two can have three quarters
    with Live([mcfhe.Server(program)], tokens, max_inflight_bytes=held + 100, **limits) as live:
        answer = live.post(bodies[0], path, authorization=f"Bearer {tokens[0]}")
        assert_refused(answer, 413, "may be inside for one token")
    server = Held(program)
    with (
        Live([server], max_inflight_bytes=held + len(bodies[1]), **limits) as live,
        ThreadPoolExecutor(1) as sender,
    ):
        first = sender.submit(live.post, bodies[0], path)
        assert server.entered.wait(10)
        assert live.metric("mcfhe_inflight_bytes") == held
        assert_refused(live.post(bodies[1], path), 429, "too many bytes")  # its body alone had room
        assert live.metric("mcfhe_inflight_bytes") == held
        server.open.set()
        assert first.result().status_code == 200
        wait_for(lambda: live.metric("mcfhe_inflight_bytes") == 0)
        assert live.post(bodies[1], path).status_code == 200


def test_several_devices_are_refused(program: LatticeProgram) -> None:
    with pytest.raises(ParameterError, match="one device"):
        local_evaluator(program, "cpu,cpu")


def test_limits_suit_the_programs(program: LatticeProgram, client: LatticeClient) -> None:
    """With 64 MB for every program no request to most lattice programs was ever taken in."""
    body = client.encrypt(torch.zeros(1, 2, 3, 3, dtype=torch.uint8)).to_bytes()
    assert len(body) <= request_bytes(program) <= len(body) + (1 << 18)
    body = client.public_key().encrypt(torch.zeros(1, 2, 3, 3, dtype=torch.uint8)).to_bytes()
    assert len(body) <= request_bytes(program, seeded=False) <= len(body) + (1 << 18)
    large = SimpleNamespace(
        scheme="lattice",
        key_bytes=1 << 20,
        input_shape=(3, 32, 32),
        client_spec=lambda: SimpleNamespace(ring=SimpleNamespace(moduli=range(8), degree=16384)),
    )
    modular = SimpleNamespace(scheme="modular")
    settings = settings_for([modular, large], 3)
    needed = request_bytes(large)
    public = request_bytes(large, seeded=False)
    assert public <= settings.max_body_bytes < public + (1 << 20)
    assert Quota(settings.max_inflight_bytes, 3).most >= 3 * needed > settings.max_body_bytes
    assert settings_for([large], 1, body_mb=1538).max_inflight_bytes >= 3 * needed
    assert settings.body_timeout_s == (settings.max_body_bytes >> 20) / 4
    assert settings_for([modular], 1) == ServiceSettings()
    with pytest.raises(ParameterError, match=r"--max-body-mb 64: a request of the lattice scheme .* takes 1538 MB"):
        settings_for([modular, large], 1, body_mb=64)
