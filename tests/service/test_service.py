"""What the service answers, joins, repeats and finishes."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mcfhe
from mcfhe.cli.service_commands import serve
from mcfhe.errors import ParameterError
from mcfhe.service.admission import Quota, room_for
from mcfhe.service.refusal import Refusal
from mcfhe.service.replay import ENTRY_BYTES, Replays
from mcfhe.service.sessions import Sessions
from mcfhe.service.settings import ServiceSettings
from mcfhe.service.tokens import Tokens
from tests.service.support import (
    EVALUATE,
    PROGRAM,
    HeldServer,
    Live,
    assert_refused,
    encrypt,
    new_client,
    wait_for,
)

TOKENS = ("first-token-of-the-file", "second-token-of-the-file")


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def test_describes_itself(live: Live) -> None:
    paths = live.http.get("/openapi.json").json()["paths"]
    routes = {
        (route.path, method)
        for route in live.service.app.routes
        if route.include_in_schema
        for method in route.methods - {"HEAD"}
    }
    described = {(path, method.upper()) for path, item in paths.items() for method in item if method != "parameters"}
    assert described == routes
    assert live.http.get("/healthz").status_code == live.http.get("/readyz").status_code == 200
    (entry,) = live.http.get("/v1/programs").json()["programs"]
    spec = live.http.get(f"/v1/programs/{entry['program_id']}/spec")
    assert mcfhe.ClientSpec.from_json(spec.text) == PROGRAM.client_spec()
    assert entry["spec_sha256"] == PROGRAM.client_spec().digest()


@pytest.mark.parametrize("profile", ["patent", "hardened"])
@pytest.mark.parametrize("keyed", [True, False])
def test_exact_scores(live: Live, profile: str, keyed: bool) -> None:
    client = new_client(profile=profile)
    request, expected = encrypt(client, 3)
    if keyed:
        assert_refused(live.post(request.to_bytes(embed_key=False)), 410, "register it again")
        registered = live.post(client.evaluation_key.to_bytes(), "/v1/keys")
        assert registered.status_code == 201
        assert registered.json() == {"key_id": client.evaluation_key.key_id, "expires_in_s": 3600.0}
    answer = live.post(request.to_bytes(embed_key=not keyed))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/octet-stream"
    assert client.decrypt_integers(mcfhe.Response.from_bytes(answer.content), request_id=request.request_id) == expected


def test_clients_with_different_keys_at_once(live: Live) -> None:
    """Eight keys, eight threads, ten requests each: every client gets its own result and only that."""

    def work(number: int) -> None:
        client = new_client(profile=("patent", "hardened")[number % 2], lanes=2 + number % 3)
        with httpx.Client(base_url=live.url) as http:
            for count in range(1, 11):
                request, expected = encrypt(client, count % 3 + 1)
                headers = {"content-type": "application/octet-stream"}
                answer = http.post(EVALUATE, content=request.to_bytes(), headers=headers)
                response = mcfhe.Response.from_bytes(answer.content)
                assert client.decrypt_integers(response, request_id=request.request_id) == expected

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_joins_requests_of_one_key_only() -> None:
    server, clients = HeldServer(), [new_client(), new_client()]
    with Live([server]) as live, ThreadPoolExecutor(8) as pool:
        blocker, _ = encrypt(new_client())
        answers = [pool.submit(live.post, blocker.to_bytes())]
        assert server.entered.wait(5)
        sent = []
        for count, client in enumerate((clients[0], clients[1], clients[0], clients[1], clients[0]), 1):
            request, expected = encrypt(client, count)
            sent.append((client, request, expected, pool.submit(live.post, request.to_bytes())))
            wait_for(lambda count=count: live.metric("mcfhe_waiting_requests") == count)
        server.open.set()
        assert answers[0].result().status_code == 200
        for client, request, expected, answer in sent:
            response = mcfhe.Response.from_bytes(answer.result().content)
            assert client.decrypt_integers(response, request_id=request.request_id) == expected
    assert server.batches == [1, 1 + 3 + 5, 2 + 4]


def test_a_failing_batch_is_tried_one_by_one() -> None:
    class Picky(HeldServer):
        def evaluate(self, request: mcfhe.Request, progress: object = None) -> mcfhe.Response:
            response: mcfhe.Response = super().evaluate(request, progress)
            if request.batch >= 2:
                raise MemoryError("secret detail")
            return response

    server, client = Picky(), new_client()
    with Live([server]) as live, ThreadPoolExecutor(4) as pool:
        jobs = [encrypt(client, count)[0] for count in (1, 1, 2, 1)]
        answers = []
        for number, request in enumerate(jobs):
            answers.append(pool.submit(live.post, request.to_bytes()))
            wait_for(lambda number=number: live.metric("mcfhe_inflight_requests") == number + 1)
        server.open.set()
        statuses = [answer.result().status_code for answer in answers]
        assert statuses == [200, 200, 500, 200]
        assert_refused(answers[2].result(), 500, "internal error")
        assert "secret" not in answers[2].result().text


def test_busy_is_told_to_come_back_and_the_loop_stays_responsive() -> None:
    server, client = HeldServer(), new_client()
    with Live([server], max_inflight=2) as live, ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(live.post, encrypt(client)[0].to_bytes()) for _ in range(2)]
        wait_for(lambda: live.metric("mcfhe_inflight_requests") == 2)
        refused = live.post(encrypt(client)[0].to_bytes())
        assert_refused(refused, 429, "busy")
        assert int(refused.headers["retry-after"]) >= 1
        assert live.http.get("/healthz").status_code == 200
        assert not any(answer.done() for answer in answers)  # the evaluation that is held blocks nothing else
        server.open.set()
        assert [answer.result().status_code for answer in answers] == [200, 200]
        wait_for(lambda: live.metric("mcfhe_inflight_bytes") == 0)
        assert live.post(encrypt(client)[0].to_bytes()).status_code == 200


def test_one_token_cannot_fill_the_queue_for_another() -> None:
    server, client = HeldServer(), new_client()
    first, second = bearer(TOKENS[0]), bearer(TOKENS[1])
    with Live([server], TOKENS, max_inflight=4) as live, ThreadPoolExecutor(8) as pool:
        greedy = [pool.submit(live.post, encrypt(client)[0].to_bytes(), **first) for _ in range(3)]
        wait_for(lambda: live.metric("mcfhe_inflight_requests") == 3)
        assert_refused(live.post(encrypt(client)[0].to_bytes(), **first), 429, "busy")
        other = pool.submit(live.post, encrypt(client)[0].to_bytes(), **second)
        wait_for(lambda: live.metric("mcfhe_inflight_requests") == 4)
        assert_refused(live.post(encrypt(client)[0].to_bytes(), **second), 429, "busy")
        server.open.set()
        assert [answer.result().status_code for answer in (*greedy, other)] == [200] * 4


@given(
    limit=st.integers(1, 40),
    owners=st.integers(1, 5),
    steps=st.lists(st.tuples(st.integers(0, 4), st.integers(-6, 6)), max_size=60),
)
def test_quota(limit: int, owners: int, steps: list[tuple[int, int]]) -> None:
    """Never more than the limit; what is kept for an owner is always free for it; what is given back is free."""
    quota, used = Quota(limit, owners), [0] * owners
    for number, count in steps:
        owner = number % owners
        if count < 0:
            count = min(-count, used[owner])
            if count:
                quota.give(str(owner), count)
                used[owner] -= count
        elif quota.take(str(owner), count):
            used[owner] += count
        else:
            assert used[owner] + count > limit // (2 * owners)
        assert quota.taken == sum(used) <= limit
    assert owners > 1 or quota.take("0", limit - used[0])
    alone = Quota(limit, owners)
    assert not alone.take("0", alone.most + 1)
    assert alone.take("0", alone.most)


@given(count=st.integers(1, 1 << 40), owners=st.integers(1, 1000))
def test_room_for_one_request_of_any_owner(count: int, owners: int) -> None:
    assert Quota(room_for(count, owners), owners).most >= count
    assert room_for(count, owners) <= 2 * (count + owners) + 1


def test_a_body_that_no_token_could_send_is_refused_at_the_start() -> None:
    """With two tokens one has three quarters at best; a larger body would be told to come back for ever."""
    with pytest.raises(ParameterError, match="max_inflight_bytes = 1000: of that one of 2 tokens can have 750"):
        Live(tokens=TOKENS, max_body_bytes=800, max_inflight_bytes=1000)


def test_bytes_inside_are_bounded() -> None:
    server, client = HeldServer(), new_client()
    body = encrypt(client, 4)[0].to_bytes()
    limits = {"max_body_bytes": len(body), "max_inflight_bytes": len(body) + 100}
    with Live([server], **limits) as live, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(live.post, body)
        assert server.entered.wait(5)
        assert_refused(live.post(encrypt(client, 4)[0].to_bytes()), 429, "bytes")
        server.open.set()
        assert answer.result().status_code == 200


def test_a_retry_is_not_evaluated_twice() -> None:
    server, client = HeldServer(), new_client()
    with Live([server]) as live, ThreadPoolExecutor(3) as pool:
        body = encrypt(client)[0].to_bytes()
        answers = [pool.submit(live.post, body) for _ in range(3)]
        wait_for(lambda: live.metric("mcfhe_replayed_total") == 2)
        server.open.set()
        first = answers[0].result().content
        assert {answer.result().content for answer in answers} == {first}
        assert live.post(body).content == first
        assert server.batches == [1]


def test_a_request_id_stands_for_one_content(live: Live) -> None:
    client = new_client()
    request, _ = encrypt(client)
    other, _ = encrypt(client)
    object.__setattr__(other, "request_id", request.request_id)
    assert live.post(request.to_bytes()).status_code == 200
    assert_refused(live.post(other.to_bytes()), 409, "used before")


def test_answers_are_forgotten_after_their_time() -> None:
    server = HeldServer()
    server.open.set()
    with Live([server], replay_s=0.05) as live:
        body = encrypt(new_client())[0].to_bytes()
        assert live.post(body).status_code == 200
        time.sleep(0.1)
        assert live.post(body).status_code == 200
    assert server.batches == [1, 1]


def test_time_limit_then_retry_finds_the_result() -> None:
    server, client = HeldServer(), new_client()
    with Live([server], request_timeout_s=0.1) as live:
        request, expected = encrypt(client)
        late = live.post(request.to_bytes())
        assert_refused(late, 503, "same request again")
        assert late.headers["retry-after"]
        live.service.settings = ServiceSettings()  # what is done by now is found however slow the machine is
        server.open.set()
        wait_for(lambda: live.metric("mcfhe_inflight_requests") == 0)
        answer = live.post(request.to_bytes())
        assert client.decrypt_integers(mcfhe.Response.from_bytes(answer.content)) == expected
    assert server.batches == [1]


def nobody_listens(url: str) -> bool:
    try:
        httpx.get(url + "/readyz")
    except httpx.ConnectError:
        return True
    except httpx.TransportError:  # taken in just before the socket closed
        return False
    return False


def test_shutdown_finishes_what_was_accepted() -> None:
    server, client = HeldServer(), new_client()
    live = Live([server])
    with live, ThreadPoolExecutor(3) as pool:
        sent = [encrypt(client) for _ in range(3)]
        answers = [pool.submit(live.post, request.to_bytes()) for request, _ in sent]
        wait_for(lambda: live.metric("mcfhe_inflight_requests") == 3)
        stopping = threading.Thread(target=live.stop)
        stopping.start()
        wait_for(lambda: not live.service.accepting)
        wait_for(lambda: nobody_listens(live.url))
        assert not any(answer.done() for answer in answers)
        server.open.set()
        for (request, expected), answer in zip(sent, answers, strict=True):
            response = mcfhe.Response.from_bytes(answer.result().content)
            assert client.decrypt_integers(response, request_id=request.request_id) == expected
        stopping.join(10)


def test_tokens_guard_everything_but_the_open_paths() -> None:
    client = new_client()
    with Live(tokens=TOKENS) as live:
        for headers in (
            {},
            bearer("wrong-token-of-the-file"),
            {"authorization": f"Basic {TOKENS[0]}"},
            {"authorization": "Bearer"},
        ):
            for path in ("/v1/programs", "/nowhere", f"/v1/programs/{PROGRAM.program_id}/spec"):
                refused = live.http.get(path, headers=headers)
                assert_refused(refused, 401, "Bearer")
                assert refused.headers["www-authenticate"] == "Bearer"
            assert_refused(live.post(encrypt(client)[0].to_bytes(), **headers), 401)
        for path in ("/healthz", "/readyz", "/metrics", "/openapi.json"):
            assert live.http.get(path).status_code == 200
        request, _ = encrypt(client)
        first, second = bearer(TOKENS[0]), bearer(TOKENS[1])
        assert live.post(client.evaluation_key.to_bytes(), "/v1/keys", **first).status_code == 201
        assert live.post(request.to_bytes(embed_key=False), **first).status_code == 200
        # neither the key nor the finished answer is there for another token
        assert_refused(live.post(request.to_bytes(embed_key=False), **second), 410)
        replayed = live.metric("mcfhe_replayed_total")
        assert live.post(request.to_bytes(), **second).status_code == 200
        assert live.metric("mcfhe_replayed_total") == replayed


def test_tokens_are_matched_and_not_shown() -> None:
    assert Tokens(TOKENS).owner("bearer " + TOKENS[1]) == "token-2"
    for bad in ([], ["short"], ["with space in the middle"], ["ümlaut-token-of-the-file"]):
        with pytest.raises(ParameterError):
            Tokens(bad)
    assert TOKENS[0] not in repr(Tokens(TOKENS)) + str(vars(Tokens(TOKENS)))


def test_sessions_expire_and_are_bounded() -> None:
    clients = [new_client() for _ in range(3)]
    now = [0.0]
    with Live(max_keys=2, session_s=1.0) as live:
        live.service._sessions._clock = lambda: now[0]
        for client in clients:
            assert live.post(client.evaluation_key.to_bytes(), "/v1/keys").status_code == 201
        assert_refused(live.post(encrypt(clients[0])[0].to_bytes(embed_key=False)), 410)
        assert live.post(encrypt(clients[2])[0].to_bytes(embed_key=False)).status_code == 200
        now[0] = 1.0
        assert_refused(live.post(encrypt(clients[2])[0].to_bytes(embed_key=False)), 410, "expired")
        assert live.metric("mcfhe_registered_keys") == 0


def test_use_extends_a_session_and_the_least_used_key_goes_first() -> None:
    now = [0.0]
    sessions = Sessions(2, 10.0, clock=lambda: now[0])
    keys = [new_client().evaluation_key for _ in range(3)]
    sessions.register("a", keys[0])
    sessions.register("a", keys[1])
    now[0] = 6.0
    assert sessions.find("a", keys[0].key_id) == keys[0]
    assert sessions.find("b", keys[0].key_id) is None
    sessions.register("a", keys[2])  # the second was used longest ago
    assert [sessions.find("a", key.key_id) for key in keys] == [keys[0], None, keys[2]]
    now[0] = 15.9
    assert len(sessions) == 2
    now[0] = 16.0
    assert len(sessions) == 0


def test_no_owner_drives_out_the_keys_of_another() -> None:
    sessions = Sessions(3, 10.0)
    keys = [new_client().evaluation_key for _ in range(6)]
    sessions.register("modest", keys[0])
    for key in keys[1:]:
        sessions.register("greedy", key)
    assert sessions.find("modest", keys[0].key_id) == keys[0]
    assert [sessions.find("greedy", key.key_id) is not None for key in keys[1:]] == [False, False, False, True, True]


def test_replays_are_bounded_in_time_and_bytes() -> None:
    async def steps() -> None:
        now = [0.0]
        replays, loop = Replays(10.0, 2 * ENTRY_BYTES + 100, clock=lambda: now[0]), asyncio.get_running_loop()

        async def finish(number: int, result: bytes | Exception) -> tuple[str, str, str]:
            slot, answer = ("owner", "program", str(number)), loop.create_future()
            replays.begin(slot, "digest", answer)
            assert replays.find(slot, "digest") is answer
            answer.set_result(result) if isinstance(result, bytes) else answer.set_exception(result)
            await asyncio.sleep(0)
            return slot

        first, second = await finish(1, bytes(60)), await finish(2, bytes(30))
        assert replays.find(first, "digest") is not None
        third = await finish(3, bytes(60))
        assert replays.find(first, "digest") is None
        failed = await finish(4, Refusal(500, "failed"))
        assert replays.find(failed, "digest") is None
        with pytest.raises(Refusal, match="used before"):
            replays.find(second, "another digest")
        now[0] = 10.0
        assert [replays.find(slot, "digest") for slot in (second, third)] == [None, None]

    asyncio.run(steps())


def test_metrics_count(live: Live) -> None:
    before = live.metric("mcfhe_images_total")
    request, _ = encrypt(new_client(), 2)
    live.post(request.to_bytes())
    assert live.metric("mcfhe_images_total") == before + 2
    assert request.request_id not in live.http.get("/metrics").text
    assert request.key_id[:12] not in live.http.get("/metrics").text


@pytest.mark.parametrize("bad", [{"max_inflight": 0}, {"session_s": -1.0}, {"max_inflight_bytes": 1}])
def test_settings_refuse(bad: dict[str, float]) -> None:
    with pytest.raises(ParameterError, match=next(iter(bad))):
        ServiceSettings(**bad)  # type: ignore[arg-type]


def test_the_page_for_operators_lists_every_metric_and_limit(live: Live) -> None:
    page = (Path(__file__).parents[2] / "docs" / "service.md").read_text("utf-8")
    known = {
        re.sub("_info$", "", name) if kind == "info" else name
        for name, kind in re.findall(r"^# TYPE (\w+) (\w+)$", live.http.get("/metrics").text, re.MULTILINE)
        if not name.endswith("_created") and not name.startswith("process_")
    }
    assert set(re.findall(r"`(mcfhe_[a-z_]+)", page)) == known
    options = {name for parameter in serve.params for name in parameter.opts if name.startswith("--")}
    elsewhere = {"--port", "--device", "--engine", "--ray-address", "--workers", "--log-level", "--json"}
    assert {name for name in options if name not in page} <= elsewhere
    assert set(re.findall(r"--[a-z][a-z-]+", page)) <= options | {"--server", "--key", "--retries"}


def test_the_first_line_of_the_log_has_the_limits(caplog: pytest.LogCaptureFixture) -> None:
    live, logger = Live(), logging.getLogger("mcfhe.service")
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, "mcfhe.service"), live:
        pass
    logger.removeHandler(caplog.handler)
    fields = next(vars(record)["fields"] for record in caplog.records if record.message == "started")
    assert fields["url"] == live.url
    assert fields["programs"] == [PROGRAM.program_id[:12]]
    assert fields["max_body_bytes"] == ServiceSettings().max_body_bytes
