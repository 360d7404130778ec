"""Load and hostile input against a real `mcfhe serve` process: ``make soak``.

Clients with keys of their own keep the server busy over loopback; requests are encrypted beforehand (each sending gets
a new request id), responses are decrypted and compared afterwards, integer by integer. Then mutated messages are sent
to it and to the decoder. Writes build/reports/soak.json: {name, ok, seconds, requests, wrong, lost, rejected, mutated,
crashes, p50_ms, p99_ms, rss_growth, requests_per_s, clients, keys, batch, program, cores}. ``rejected`` counts answers
429 and 503, after which the client waits and sends again; ``lost`` requests that ended without a response; ``crashes``
mutated messages that were answered by a 5xx, not at all, or after more than a second; ``rss_growth`` is of the server's
memory, from a sixth of the time to its end, as a share. Exit code 0 when wrong, lost and crashes are 0 and memory grew
by at most 10 %.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

import mcfhe
from mcfhe.errors import McfheError
from mcfhe.wire import new_request_id
from tests.service.mutate import mutate

REPORT = Path("build/reports/soak.json")
HEADERS = {"content-type": "application/octet-stream"}
MAX_GROWTH = 0.10
SLOW_S = 1.0


@dataclass
class Prepared:
    """An encrypted request and the integers that its response must decrypt to."""

    client: mcfhe.Client
    request: mcfhe.Request
    expected: list[list[int]]


@dataclass
class Load:
    """What the load saw."""

    answers: list[tuple[Prepared, str, bytes]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    rejected: int = 0
    lost: int = 0


def load_program(path: Path | None) -> mcfhe.Program:
    """A program file, or the demo's LeNet."""
    if path is not None:
        return mcfhe.load_program(path)
    model = mcfhe.models.lenet(pretrained="fashion-mnist")
    card = model.mcfhe_metadata
    return mcfhe.compile(
        model, input_shape=card.input_shape, mean=card.mean, std=card.std, labels=card.labels, scale_bits=8
    )


def prepare(program: mcfhe.Program, keys: int, batch: int) -> list[Prepared]:
    """Four requests a key, profiles in turn."""
    rng, prepared = np.random.default_rng(1), []
    for number in range(keys):
        client = mcfhe.Client.generate(program.client_spec(), profile=("patent", "hardened")[number % 2])
        for _ in range(4):
            images = rng.integers(0, 256, (batch, *program.input_shape), dtype=np.uint8)
            request, values = client.encrypt(images, return_integers=True)
            prepared.append(Prepared(client, request, program.evaluate_integers(values, request.profile)))
    return prepared


async def send_until(end: float, number: int, http: httpx.AsyncClient, work: Sequence[Prepared], load: Load) -> None:
    """One client: one request after the other; a rejected or failed one is sent again, with the same bytes."""
    turn = number
    while time.monotonic() < end:
        item = work[turn % len(work)]
        turn += 7
        request = dataclasses.replace(item.request, request_id=new_request_id())
        body, path = request.to_bytes(embed_key=False), f"/v1/programs/{request.program_id}/evaluate"
        start = time.monotonic()
        for attempt in range(100):
            try:
                answer = await http.post(path, content=body, headers=HEADERS)
            except httpx.TransportError:
                if attempt > 5:
                    load.lost += 1
                    break
                continue
            if answer.status_code in (429, 503):
                load.rejected += 1
                await asyncio.sleep(0.05 * random.random() * min(20, attempt + 1))
                continue
            if answer.status_code == 200:
                load.answers.append((item, request.request_id, answer.content))
                load.seconds.append(time.monotonic() - start)
            else:
                load.lost += 1
            break
        else:
            load.lost += 1


async def run_load(url: str, pid: int, clients: int, seconds: float, work: Sequence[Prepared]) -> tuple[Load, float]:
    """The load and the growth of the server's memory."""
    load = Load()
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as http:
        for key in {id(item.client): item.client.evaluation_key for item in work}.values():
            (await http.post("/v1/keys", content=key.to_bytes(), headers=HEADERS)).raise_for_status()
        begin = time.monotonic()
        tasks = [
            asyncio.create_task(send_until(begin + seconds, number, http, work, load)) for number in range(clients)
        ]
        await asyncio.sleep(seconds / 6)
        early = resident_bytes(pid)
        await asyncio.sleep(seconds * 5 / 6)
        late = resident_bytes(pid)
        await asyncio.gather(*tasks)
    return load, late / early - 1


def resident_bytes(pid: int) -> int:
    """Resident memory of a process (Linux)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def count_wrong(load: Load) -> int:
    """Responses that are not the exact result of their own request."""
    wrong = 0
    for item, request_id, data in load.answers:
        try:
            found = item.client.decrypt_integers(mcfhe.Response.from_bytes(data), request_id=request_id)
            wrong += found != item.expected
        except McfheError:
            wrong += 1
    return wrong


def mutate_http(url: str, work: Sequence[Prepared], count: int, rng: random.Random) -> int:
    """Crashes among ``count`` mutated messages over HTTP."""
    crashes = 0
    with httpx.Client(base_url=url, timeout=10) as http:
        for number in range(count):
            item = work[number % len(work)]
            if number % 3 == 2:
                path, valid = "/v1/keys", item.client.evaluation_key.to_bytes()
            else:
                path = f"/v1/programs/{item.request.program_id}/evaluate"
                valid = item.request.to_bytes(embed_key=number % 3 == 0)
            start = time.monotonic()
            try:
                status = http.post(path, content=mutate(valid, rng), headers=HEADERS).status_code
            except httpx.TransportError:
                status = 599
            crashes += status >= 500 or time.monotonic() - start > SLOW_S
        crashes += http.get("/readyz").status_code != 200
    return crashes


def mutate_decoder(work: Sequence[Prepared], count: int, rng: random.Random) -> int:
    """Crashes among ``count`` mutated messages given to the decoder in this process."""
    item, crashes = work[0], 0
    key = item.client.evaluation_key
    kinds = [item.request.to_bytes(), item.request.to_bytes(embed_key=False), key.to_bytes()]
    for number in range(count):
        data = mutate(kinds[number % 3], rng)
        start = time.monotonic()
        try:
            if number % 3 == 2:
                mcfhe.EvaluationKey.from_bytes(data)
            else:
                mcfhe.Request.from_bytes(data, {key.key_id: key}.get)
        except McfheError:
            pass
        except Exception as error:
            print(f"decoder: {type(error).__name__}: {error}", file=sys.stderr)
            crashes += 1
        crashes += time.monotonic() - start > SLOW_S
    return crashes


def soak(options: argparse.Namespace) -> dict[str, Any]:
    """The whole run -> the report."""
    program = load_program(options.program)
    work = prepare(program, options.keys, options.batch)
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program"
        program.save(path)
        command = [sys.executable, "-m", "mcfhe", "serve", str(path), "--port", "0", "--json", "--log-level", "error"]
        command += ["--max-inflight", str(options.max_inflight)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                line = server.stdout.readline() if server.stdout else ""
                url = json.loads(line)["url"]
                load, growth = asyncio.run(run_load(url, server.pid, options.clients, options.seconds, work))
                crashes = mutate_http(url, work, options.mutated_http, rng)
            finally:
                server.send_signal(signal.SIGTERM)
            crashes += server.wait(60) != 0
    crashes += mutate_decoder(work, options.mutated_decoder, rng)
    times = sorted(load.seconds) or [float("nan")]
    report = {
        "name": "soak",
        "seconds": options.seconds,
        "requests": len(load.answers),
        "wrong": count_wrong(load),
        "lost": load.lost,
        "rejected": load.rejected,
        "mutated": options.mutated_http + options.mutated_decoder,
        "crashes": crashes,
        "p50_ms": round(1000 * times[len(times) // 2], 1),
        "p99_ms": round(1000 * times[min(len(times) - 1, len(times) * 99 // 100)], 1),
        "rss_growth": round(growth, 4),
        "requests_per_s": round(len(load.answers) / options.seconds, 1),
        "clients": options.clients,
        "keys": options.keys,
        "batch": options.batch,
        "program": program.program_id[:12],
        "cores": os.cpu_count(),
    }
    clean = report["requests"] and not (report["wrong"] or report["lost"] or report["crashes"])
    return {"ok": bool(clean and growth <= MAX_GROWTH), **report}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of load")
    parser.add_argument("--clients", type=int, default=50, help="at once")
    parser.add_argument("--keys", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1, help="images in a request")
    parser.add_argument("--max-inflight", type=int, default=64)
    parser.add_argument("--mutated-http", type=int, default=10_000)
    parser.add_argument("--mutated-decoder", type=int, default=90_000)
    parser.add_argument("--program", type=Path, help="a program file; the demo's LeNet by default")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path, default=REPORT)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    report = soak(options)
    options.report.parent.mkdir(parents=True, exist_ok=True)
    options.report.write_text(json.dumps(report, indent=1) + "\n")
    print(" ".join(f"{name}={value}" for name, value in report.items() if name != "name"))
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
