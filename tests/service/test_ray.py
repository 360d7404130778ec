"""Workers on a Ray cluster: exact, and a worker that is killed in mid-request costs a limb and no retry."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import mcfhe
from mcfhe.errors import ParameterError
from tests.service.support import PROGRAM, Live, encrypt, new_client, wait_for

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'mcfhe[ray]'")

from mcfhe.sharding.ray_engine import connect, ray_evaluators  # noqa: E402
from mcfhe.sharding.sharded import ShardedServer  # noqa: E402

PROGRAM_FILE = Path(__file__).parent.parent / "vectors" / "program.mcfhe"
pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two cores of this machine, with a small object store."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        "local",
        num_cpus=3,
        object_store_memory=100 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def server(cluster: None) -> Iterator[ShardedServer]:
    (server,) = ray_evaluators([PROGRAM], workers=2, deadline_s=20.0)
    yield server
    server.close()


def pids(server: ShardedServer) -> list[int]:
    actors: list[Any] = [worker.actor for worker in server._workers]  # type: ignore[attr-defined]
    return [int(pid) for pid in ray.get([actor.pid.remote() for actor in actors])]


@pytest.mark.parametrize("redundancy", [0, 1])
def test_exact_scores(server: ShardedServer, redundancy: int) -> None:
    client = new_client(redundancy=redundancy)
    request, expected = encrypt(client, 3)
    response = server.evaluate(request)
    assert response.limbs is None
    assert client.decrypt_integers(response, request_id=request.request_id) == expected
    assert len(set(pids(server))) == 2
    assert os.getpid() not in pids(server)


def test_a_worker_killed_in_mid_request(server: ShardedServer) -> None:
    """Over HTTP, r = 1: the first actor has its shard and is killed; same labels, one limb less, nothing retried."""
    client = new_client(redundancy=1)
    before = pids(server)
    with Live([NotClosed(server)]) as live, ThreadPoolExecutor(1) as pool:
        request, expected = encrypt(client, 3)
        os.kill(before[0], signal.SIGSTOP)  # so that it surely has not finished when it is killed
        answer = pool.submit(live.post, request.to_bytes())
        wait_for(lambda: live.metric("mcfhe_inflight_requests") == 1)
        time.sleep(0.5)  # the second has done all other shards
        assert not answer.done()
        os.kill(before[0], signal.SIGKILL)
        received = answer.result(20)
    response = mcfhe.Response.from_bytes(received.content)
    assert response.limbs == tuple(range(1, len(client.evaluation_key.moduli)))
    assert client.decrypt_integers(response, request_id=request.request_id) == expected
    assert (server.dropped, server.retried) == (1, 0)

    # Ray restarts the actor; until then the other one does all the work.
    def recovered() -> bool:
        request, expected = encrypt(client)
        assert client.decrypt_integers(server.evaluate(request)) == expected
        time.sleep(0.1)
        return not server._away

    wait_for(recovered, 60)
    assert pids(server)[1] == before[1]
    assert pids(server)[0] != before[0]
    assert server.retried == 0


def test_serve_on_a_running_cluster(server: ShardedServer) -> None:
    """`mcfhe serve --engine ray` as a process of its own, its actor in the cluster of this test."""
    command = [sys.executable, "-m", "mcfhe", "serve", str(PROGRAM_FILE), "--port", "0", "--json", "--engine", "ray"]
    command += ["--ray-address", ray.get_runtime_context().gcs_address, "--workers", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            client = new_client(profile="hardened")
            with mcfhe.RemoteServer(url) as remote:
                request, expected = encrypt(client, 2)
                assert client.decrypt_integers(remote.evaluate(request)) == expected
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_arguments() -> None:
    with pytest.raises(ParameterError, match="choose cpu or cuda"):
        ray_evaluators([PROGRAM], "cuda:1")


def test_no_gpu(cluster: None) -> None:
    if not ray.cluster_resources().get("GPU"):
        with pytest.raises(ParameterError, match="0 of GPU"):
            ray_evaluators([PROGRAM], "cuda")


def test_connecting_again_is_nothing(cluster: None) -> None:
    assert connect(None) is ray


class NotClosed:
    """An evaluator that outlives the service it is given to."""

    def __init__(self, server: ShardedServer) -> None:
        self.program, self.check, self.evaluate = server.program, server.check, server.evaluate

    def close(self) -> None:
        pass
