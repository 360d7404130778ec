"""Requests cut into shards: exact whatever is lost within the redundancy, and nothing is tried again in vain."""

from __future__ import annotations

import time
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mcfhe
from mcfhe.errors import ParameterError, WorkerError
from mcfhe.modular.params import Moduli
from mcfhe.sharding.cuts import cut
from mcfhe.sharding.sharded import ATTEMPTS, LocalWorker, ShardedServer, local_evaluator
from tests.service.support import PROGRAM, Live, encrypt, new_client, wait_for
from tests.service.workers import FaultyWorker, PatientServer


@given(
    limbs=st.integers(1, 40),
    batch=st.integers(1, 20),
    lanes=st.integers(1, 5),
    workers=st.integers(1, 12),
    spare=st.integers(0, 8),
    shard_bytes=st.integers(1, 4000),
)
def test_shards_cover_everything_once(
    limbs: int, batch: int, lanes: int, workers: int, spare: int, shard_bytes: int
) -> None:
    shards = cut((limbs, 1, 2, 3, batch * lanes), lanes, workers, spare, shard_bytes)
    cells = [cell for shard in shards for cell in product(shard.limbs, shard.streams)]
    assert sorted(cells) == list(product(range(limbs), range(batch * lanes)))
    assert max(len(shard.limbs) for shard in shards) <= -(-limbs // workers)
    assert workers < limbs or len(shards) >= min(workers, limbs * batch) / 2
    for shard in shards:
        assert not spare or len(shard.limbs) <= spare
        assert shard.streams.start % lanes == shard.streams.stop % lanes == 0
        one_image = len(shard.streams) == lanes
        assert one_image or len(shard.limbs) * 6 * len(shard.streams) * 4 <= shard_bytes


@given(st.lists(st.sampled_from([3, 5, 7, 11, 13, 17, 19, 23]), min_size=1, unique=True), st.integers(1, 10**9))
def test_spare_is_what_may_be_missing(moduli: list[int], required: int) -> None:
    basis = Moduli(moduli)
    enough = [r for r in range(len(basis)) if basis.smallest_product(len(basis) - r) > required]
    assert basis.spare(required) == max(enough, default=0)


@pytest.mark.parametrize("profile", ["patent", "hardened"])
@pytest.mark.parametrize("redundancy", [0, 1, 2, 3])
def test_server_and_client_find_the_same_redundancy(profile: str, redundancy: int) -> None:
    client = new_client(profile=profile, redundancy=redundancy)
    required = client.profile.required_product(client.spec.guard_bits)
    assert client.evaluation_key.moduli.spare(required) == redundancy


@pytest.mark.parametrize("count", [1, 2, 3, 40])
@pytest.mark.parametrize("redundancy", [0, 2])
def test_equals_one_server(count: int, redundancy: int) -> None:
    client = new_client(redundancy=redundancy)
    request, expected = encrypt(client, 5)
    workers = [LocalWorker(PROGRAM, "cpu") for _ in range(count)]
    server, shares = ShardedServer(PROGRAM, workers), []
    response = server.evaluate(request, shares.append)
    torch.testing.assert_close(response.residues, mcfhe.Server(PROGRAM).evaluate(request).residues, rtol=0, atol=0)
    assert response.limbs is None
    assert client.decrypt_integers(response, request_id=request.request_id) == expected
    assert shares == sorted(shares)
    assert shares[-1] == 1
    server.close()


@pytest.mark.parametrize("fault", ["dies", "garbles", "hangs"])
def test_a_lost_shard_is_dropped_and_not_tried_again(fault: str) -> None:
    """r = 1 and a worker that loses its first shard: the labels are the same, one limb is missing, no retry."""
    client = new_client(redundancy=1)
    request, expected = encrypt(client, 3)
    bad = FaultyWorker(PROGRAM, lambda n: fault if n == 0 else None)
    good = FaultyWorker(PROGRAM)
    server = PatientServer(PROGRAM, [bad, good], deadline_s=0.2)
    response = server.evaluate(request)
    lost = bad.given[0][0]
    assert response.limbs == tuple(p for p in range(len(client.evaluation_key.moduli)) if p != lost)
    assert client.decrypt_integers(response, request_id=request.request_id) == expected
    assert sorted(bad.given + good.given) == [(p, 1) for p in range(len(client.evaluation_key.moduli))]
    assert (server.dropped, server.retried) == (1, 0)
    bad.release.set()
    server.close()


def test_a_limb_that_lacks_one_image_is_left_out_for_all() -> None:
    """More workers than limbs: shards are of single images too. Their limb goes, once, and only it."""
    client = new_client(redundancy=1)
    request, expected = encrypt(client, 4)
    limbs = len(client.evaluation_key.moduli)
    workers = [FaultyWorker(PROGRAM) for _ in range(2 * limbs - 2)]
    workers.append(FaultyWorker(PROGRAM, lambda n: "dies"))
    workers.append(FaultyWorker(PROGRAM, lambda n: "dies"))
    server = ShardedServer(PROGRAM, workers)
    response = server.evaluate(request)
    assert response.limbs == tuple(range(limbs - 1))
    assert client.decrypt_integers(response) == expected
    assert server.retried == 0
    server.close()


def test_other_images_of_a_dropped_limb_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "mcfhe.sharding.sharded.cut", lambda *arguments: cut(*arguments, shard_bytes=1)
    )  # one image a shard
    client = new_client(redundancy=1)
    request, expected = encrypt(client, 6)
    bad, good = FaultyWorker(PROGRAM, lambda n: "dies" if n == 0 else None), FaultyWorker(PROGRAM)
    server = ShardedServer(PROGRAM, [bad, good])
    assert client.decrypt_integers(server.evaluate(request)) == expected
    assert [first for first, _ in bad.given + good.given].count(0) <= 2  # the lost one and the one beside it
    server.close()


@pytest.mark.parametrize("fault", ["dies", "hangs"])
def test_without_redundancy_it_is_tried_elsewhere(fault: str) -> None:
    client = new_client()
    request, expected = encrypt(client, 2)
    bad, good = FaultyWorker(PROGRAM, lambda n: fault), FaultyWorker(PROGRAM)
    server = PatientServer(PROGRAM, [bad, good], deadline_s=0.2)
    response = server.evaluate(request)
    assert response.limbs is None
    assert client.decrypt_integers(response) == expected
    assert (server.dropped, server.retried, len(bad.given)) == (0, 1, 1)
    bad.release.set()
    server.close()


def test_more_losses_than_can_be_spared_are_tried_elsewhere() -> None:
    client = new_client(redundancy=1)
    request, expected = encrypt(client)
    bad, good = FaultyWorker(PROGRAM, lambda n: "dies"), FaultyWorker(PROGRAM)
    server = ShardedServer(PROGRAM, [bad, good])
    response = server.evaluate(request)
    assert response.limbs is not None
    assert len(response.limbs) == len(client.evaluation_key.moduli) - 1
    assert client.decrypt_integers(response) == expected
    assert server.dropped == 1
    assert server.retried == len(bad.given) - 1
    server.close()


def test_gives_up_after_some_attempts() -> None:
    client = new_client()
    workers = [FaultyWorker(PROGRAM, lambda n: "dies") for _ in range(2)]
    server = ShardedServer(PROGRAM, workers)
    with pytest.raises(WorkerError, match=f"{ATTEMPTS} times"):
        server.evaluate(encrypt(client)[0])
    server.close()


def test_gives_up_when_nobody_answers_and_works_again_afterwards() -> None:
    client = new_client()
    worker = FaultyWorker(PROGRAM, lambda n: "hangs" if n == 0 else None)
    server = PatientServer(PROGRAM, [worker], deadline_s=0.2)
    start = time.monotonic()
    with pytest.raises(WorkerError, match="no worker"):
        server.evaluate(encrypt(client)[0])
    assert time.monotonic() - start < 5
    worker.release.set()
    wait_for(lambda: all(back.done() for back in server._away.values()))
    request, expected = encrypt(client)
    assert client.decrypt_integers(server.evaluate(request)) == expected
    server.close()


def test_a_late_result_of_one_request_never_enters_another() -> None:
    client = new_client(redundancy=1)
    bad, good = FaultyWorker(PROGRAM, lambda n: "hangs" if n == 0 else None), FaultyWorker(PROGRAM)
    server = PatientServer(PROGRAM, [bad, good], deadline_s=0.2)
    for number in range(3):
        request, expected = encrypt(client, 2)
        assert client.decrypt_integers(server.evaluate(request), request_id=request.request_id) == expected
        if number == 0:
            bad.release.set()
    server.close()


def test_a_scheme_whose_limbs_belong_together_is_refused() -> None:
    program = SimpleNamespace(scheme="lattice", program_id="0" * 64)
    with pytest.raises(ParameterError, match="one device"):
        ShardedServer(program, [LocalWorker(PROGRAM, "cpu")])  # type: ignore[arg-type]


def test_needs_workers() -> None:
    with pytest.raises(ParameterError, match="workers"):
        ShardedServer(PROGRAM, [])


def test_missing_limbs_over_http() -> None:
    """Joined requests of one key: each response says what is missing, and each client decrypts."""
    client = new_client(redundancy=1)
    bad, good = FaultyWorker(PROGRAM, lambda n: "dies"), FaultyWorker(PROGRAM)
    with Live([ShardedServer(PROGRAM, [bad, good])]) as live, mcfhe.RemoteServer(live.url) as remote:
        for count in (1, 2, 3):
            request, expected = encrypt(client, count)
            response = remote.evaluate(request)
            assert client.decrypt_integers(response, request_id=request.request_id) == expected
        assert response.limbs is not None
        assert live.metric("mcfhe_dropped_limbs") > 0


def test_losses_beyond_repair_are_told_to_come_back() -> None:
    workers = [FaultyWorker(PROGRAM, lambda n: "dies")]
    with Live([ShardedServer(PROGRAM, workers)]) as live:
        answer = live.post(encrypt(new_client())[0].to_bytes())
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert "send the request again" in answer.json()["error"]


def test_devices_of_one_process() -> None:
    assert isinstance(local_evaluator(PROGRAM), mcfhe.Server)
    server = local_evaluator(PROGRAM, "cpu, cpu,cpu")
    assert isinstance(server, ShardedServer)
    client = new_client()
    request, expected = encrypt(client, 2)
    assert client.decrypt_integers(server.evaluate(request)) == expected
    server.close()
    with pytest.raises(ParameterError, match="cuda:77"):
        local_evaluator(PROGRAM, "cpu,cuda:77")
