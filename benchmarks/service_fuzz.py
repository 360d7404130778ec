"""Mutated messages against a decoder in this process and against a server. What is wrong is counted and told."""

from __future__ import annotations

import json
import random
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import httpx

import mcfhe
from benchmarks.service_load import Prepared
from mcfhe.errors import McfheError
from tests.service.mutate import mutate

HEADERS = {"content-type": "application/octet-stream"}
SLOW_S = 1.0
# A message of n bytes is its tensors, widened to twice their size, a header parsed into objects, and copies of both.
ALLOCATION = 8
ALLOCATION_FLOOR = 2 << 20


def check_decode(reader: Callable[[bytes], Any], data: bytes) -> str | None:
    """What is wrong with how a reader takes a message: None if it reads it, or refuses it with one clear line."""
    tracemalloc.reset_peak()
    before, start = tracemalloc.get_traced_memory()[0], time.process_time()
    try:
        reader(data)
    except McfheError as error:
        if not str(error) or "\n" in str(error) or len(str(error)) > 1000:
            return f"refused by {str(error)[:200]!r}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1] - before
    if seconds > SLOW_S:  # of this process: on a busy machine the clock on the wall says nothing about the decoder
        return f"{seconds:.2f} s"
    if tracemalloc.is_tracing() and peak > ALLOCATION * len(data) + ALLOCATION_FLOOR:
        return f"{peak} bytes allocated for a message of {len(data)}"
    return None


def readers(item: Prepared, response: bytes) -> list[tuple[bytes, Callable[[bytes], Any]]]:
    """A valid message of every kind with what reads it."""
    key = item.client.evaluation_key

    def request(data: bytes) -> mcfhe.Request:
        return mcfhe.Request.from_bytes(data, {key.key_id: key}.get)

    return [
        (item.request.to_bytes(), request),
        (item.request.to_bytes(embed_key=False), request),
        (key.to_bytes(), mcfhe.EvaluationKey.from_bytes),
        (response, mcfhe.Response.from_bytes),
    ]


def fuzz_decoder(messages: Sequence[tuple[bytes, Callable[[bytes], Any]]], count: int, rng: random.Random) -> int:
    """Crashes among ``count`` mutated messages: other errors, more than a second, or too much memory."""
    crashes = 0
    tracemalloc.start()
    try:
        for number in range(count):
            valid, reader = messages[number % len(messages)]
            data = mutate(valid, rng)
            if (wrong := check_decode(reader, data)) is not None:
                print(f"decoder, message {number}: {wrong}", file=sys.stderr)
                crashes += 1
    finally:
        tracemalloc.stop()
    return crashes


def check_answer(answer: httpx.Response) -> str | None:
    """What is wrong with the answer to a mutated message: None for success, or a 4xx with one line of JSON."""
    if answer.status_code in (200, 201):
        return None
    if not 400 <= answer.status_code < 500:
        return f"status {answer.status_code}"
    try:
        body = json.loads(answer.content)
    except ValueError:
        return f"status {answer.status_code} without JSON"
    if list(body) != ["error"] or not body["error"] or "\n" in body["error"] or answer.content.count(b"\n") != 1:
        return f"status {answer.status_code} with {answer.content[:200]!r}"
    return None


def fuzz_http(url: str, work: Sequence[Prepared], count: int, rng: random.Random) -> int:
    """Crashes among ``count`` mutated messages over HTTP."""
    crashes = 0
    with httpx.Client(base_url=url, timeout=10) as http:

        def send(path: str, data: bytes) -> tuple[str | None, float]:
            start = time.monotonic()
            try:
                wrong = check_answer(http.post(path, content=data, headers=HEADERS))
            except httpx.TransportError as error:
                wrong = type(error).__name__
            return wrong, time.monotonic() - start

        for number in range(count):
            item = work[number % len(work)]
            if number % 3 == 2:
                path, valid = "/v1/keys", item.client.evaluation_key.to_bytes()
            else:
                path = f"/v1/programs/{item.request.program_id}/evaluate"
                valid = item.request.to_bytes(embed_key=number % 3 == 0)
            data = mutate(valid, rng)
            wrong, seconds = send(path, data)
            if wrong is None and seconds > SLOW_S:  # a message that is slow is so again; a machine that was busy is not
                wrong, seconds = send(path, data)
                if wrong is None and seconds > SLOW_S:
                    wrong = f"{seconds:.2f} s, for the second time"
            if wrong is not None:
                print(f"http, message {number}: {wrong}", file=sys.stderr)
                crashes += 1
        crashes += http.get("/readyz").status_code != 200
    return crashes
