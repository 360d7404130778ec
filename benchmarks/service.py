"""Load and hostile input against a real `mcfhe serve` process: ``make soak``.

Clients with keys of their own keep the server busy over loopback; requests are encrypted beforehand (each sending gets
a new request id), responses are decrypted and compared afterwards, integer by integer. Then mutated messages are sent
to it and to the decoder. Writes build/reports/soak.json: {name, ok, seconds, requests, wrong, lost, rejected, mutated,
crashes, p50_ms, p99_ms, rss_growth, requests_per_s, queueing_ms, clients, keys, batch, program, cores, load_average}.
``rejected`` counts answers 429 and 503, after which the client waits and sends again; ``lost`` requests that ended
without a response; ``crashes`` mutated messages that were answered by anything but success or a 4xx with one line, or
after more than a second, or for which the decoder allocated more than a small multiple of their size, and one more
if schemathesis finds an answer that is not in the OpenAPI description; ``rss_growth``
is of the server's memory, from a sixth of the time to its end, as a share. ``queueing_ms`` is what Little's law says
the mean time of a request is for clients that always have one request at work: clients / requests_per_s. Exit code 0
when wrong, lost and crashes are 0 and memory grew by at most 10 %.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mcfhe
from benchmarks.service_fuzz import fuzz_decoder, fuzz_http, readers
from benchmarks.service_load import count_wrong, growth, prepare, run_load

REPORT = Path("build/reports/soak.json")
MAX_GROWTH = 0.10


def load_program(path: Path | None) -> mcfhe.Program:
    """A program file, or the demo's LeNet."""
    if path is not None:
        return mcfhe.load_program(path)
    model = mcfhe.models.lenet(pretrained="fashion-mnist")
    card = model.mcfhe_metadata
    return mcfhe.compile(
        model, input_shape=card.input_shape, mean=card.mean, std=card.std, labels=card.labels, scale_bits=8
    )


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
                load = asyncio.run(run_load(url, server.pid, options.clients, options.seconds, work))
                busy = os.getloadavg()[0]
                crashes = fuzz_http(url, work, options.mutated_http, rng)
            finally:
                server.send_signal(signal.SIGTERM)
            crashes += server.wait(60) != 0
    crashes += fuzz_decoder(readers(work[0], load.answers[0][2]), options.mutated_decoder, rng) if load.answers else 1
    crashes += check_api(options.api_examples) if options.api_examples else 0
    rate, grown = len(load.answers) / options.seconds, growth(load.samples)
    report = {
        "name": "soak",
        "seconds": options.seconds,
        "requests": len(load.answers),
        "wrong": count_wrong(load),
        "lost": load.lost,
        "rejected": load.rejected,
        "mutated": options.mutated_http + options.mutated_decoder,
        "crashes": crashes,
        "p50_ms": load.percentile_ms(0.5),
        "p99_ms": load.percentile_ms(0.99),
        "rss_growth": round(grown, 4),
        "requests_per_s": round(rate, 1),
        "queueing_ms": round(1000 * options.clients / rate, 1) if rate else None,
        "clients": options.clients,
        "keys": options.keys,
        "batch": options.batch,
        "program": program.program_id[:12],
        "cores": os.cpu_count(),
        "load_average": round(busy, 1),
    }
    clean = report["requests"] and not (report["wrong"] or report["lost"] or report["crashes"])
    return {"ok": bool(clean and grown <= MAX_GROWTH), **report}


def check_api(examples: int) -> int:
    """1 if schemathesis finds an answer that the OpenAPI description does not have."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/service/test_api.py"]
    environment = {**os.environ, "MCFHE_API_EXAMPLES": str(examples)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout, file=sys.stderr)
    return int(done.returncode != 0)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of load")
    parser.add_argument("--clients", type=int, default=50, help="at once")
    parser.add_argument("--keys", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1, help="images in a request")
    parser.add_argument("--max-inflight", type=int, default=64)
    parser.add_argument("--mutated-http", type=int, default=10_000)
    parser.add_argument("--mutated-decoder", type=int, default=90_000)
    parser.add_argument("--api-examples", type=int, default=60, help="of schemathesis, for each operation and kind")
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
