"""Runs every attack of mcfhe.modular.audit on real images and compares with the committed table: ``make audit``.

Writes build/reports/audit.json: {device, attacks: [{attack, profile, recovered, seconds, set, outcome, exact, lanes,
limbs, modulus_bits, images, detail}]}. ``exact`` is true when everything recovered equals the client's pixels and lane
positions, which only this script, playing both sides, can check. Exit code 0 when set, attack, profile, outcome,
recovered and exact are those of benchmarks/results/audit.json; ``--update`` writes that file anew.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mcfhe
from benchmarks.conftest import processor
from mcfhe.errors import DecryptionError
from mcfhe.modular import audit
from mcfhe.modular.audit.ratios import classes
from mcfhe.wire import Request, Response

COMMITTED = Path(__file__).parent / "results" / "audit.json"
REPORT = Path("build/reports/audit.json")
PROFILES = ("patent", "hardened")
VERDICT = ("set", "attack", "profile", "outcome", "recovered", "exact")


@dataclass(frozen=True)
class Setting:
    """One parameter set. ``limbs``: redundancy is chosen to get so many."""

    what: str
    lanes: int
    images: int
    noise: int | None = None
    limbs: int | None = None
    scale_bits: int = 8
    amplification_bits: int = 4
    modulus_bits: int = 30
    talkative: bool = True  # whether the client is asked about damaged responses


SETTINGS = {
    "default": Setting("defaults: M = 4, 30-bit limbs", 4, 10),
    "noise": Setting("M = 4, most noise", 4, 10, noise=8, talkative=False),
    "paper": Setting("M = 64, N = 20", 64, 2, limbs=20),
    "narrow": Setting("M = 64, 10-bit limbs", 64, 6, modulus_bits=10, talkative=False),
    "wide": Setting(
        "M = 64, 11-bit limbs, a = 2^20, Delta = 2^24",
        64,
        2,
        scale_bits=24,
        amplification_bits=20,
        modulus_bits=11,
        talkative=False,
    ),
}


def compiled(scale_bits: int, amplification_bits: int, modulus_bits: int) -> mcfhe.Program:
    model = mcfhe.models.lenet(pretrained="fashion-mnist")
    card = model.mcfhe_metadata
    return mcfhe.compile(
        model,
        input_shape=card.input_shape,
        mean=card.mean,
        std=card.std,
        scale_bits=scale_bits,
        amplification_bits=amplification_bits,
        modulus_bits=modulus_bits,
        labels=card.labels,
    )


def rows_of(name: str, setting: Setting, program: mcfhe.Program, images: torch.Tensor) -> Iterator[dict[str, Any]]:
    """All attacks in both profiles. The known pixels are the top row, as an outsider would guess them: all 0."""
    spec = program.client_spec()
    images = images[: setting.images]
    known = np.full(tuple(images.shape), audit.UNKNOWN)
    known[:, :, 0] = 0
    for profile in PROFILES:
        client = _client(spec, setting, profile)
        request = Request.from_bytes(client.encrypt(images).to_bytes())
        view = audit.View.of(spec, [request], known)
        findings = list(audit.run(spec, [request], known=known).findings)
        if setting.talkative:
            response = mcfhe.Server(program).evaluate(request)
            accepts = partial(_accepts, client)
            findings.append(audit.attack(partial(audit.reaction, view, response, accepts)))
        for finding in findings:
            body = finding.to_json(view)
            yield {
                "set": name,
                **{k: body[k] for k in ("attack", "profile", "recovered", "seconds", "outcome", "detail")},
                "exact": _exact(finding, view, images.numpy(), client),
                "lanes": view.lanes,
                "limbs": len(view.moduli),
                "modulus_bits": setting.modulus_bits,
                "images": view.batch,
            }


def _client(spec: Any, setting: Setting, profile: str) -> mcfhe.Client:
    generate = partial(mcfhe.Client.generate, spec, lanes=setting.lanes, profile=profile, noise=setting.noise)
    client = generate()
    spare = 0 if setting.limbs is None else setting.limbs - len(client.evaluation_key.moduli)
    return generate(redundancy=spare) if spare > 0 else client


def _accepts(client: mcfhe.Client, response: Response) -> bool:
    try:
        client.decrypt_integers(response)
    except DecryptionError:
        return False
    return True


def _exact(finding: audit.Finding, view: audit.View, images: np.ndarray, client: mcfhe.Client) -> bool:
    """Whether all that was recovered is true."""
    truth = client.secret_key.positions
    good = all(w is None or w == t for w, t in zip(finding.positions, truth, strict=False))
    good &= all((image.pixels == images[i]).all() for i, image in finding.images.items())
    if finding.attack == "equality" and finding.structure:
        for index in range(view.batch):
            seen, real = classes(view, index), images[index].reshape(-1)
            good &= len(np.unique(np.stack([seen, real]), axis=1).T) == len(np.unique(seen)) == len(np.unique(real))
    return bool(good)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true", help="write the committed table anew")
    arguments = parser.parse_args()
    # A client with redundancy logs every damaged response that it mends.
    logging.getLogger("mcfhe").setLevel(logging.ERROR)
    torch.set_num_threads(min(2, torch.get_num_threads()))
    images = mcfhe.datasets.load(mcfhe.datasets.SAMPLE, "test", limit=10).images
    programs: dict[tuple[int, int, int], mcfhe.Program] = {}
    rows = []
    for name, setting in SETTINGS.items():
        key = (setting.scale_bits, setting.amplification_bits, setting.modulus_bits)
        if key not in programs:
            programs[key] = compiled(*key)
        for row in rows_of(name, setting, programs[key], images):
            rows.append(row)
            print(f"{name:8} {row['profile']:9} {row['attack']:12} {row['recovered']} in {row['seconds']:.2f} s")
    sets = {name: setting.what for name, setting in SETTINGS.items()}
    text = json.dumps({"name": "audit", "device": processor(), "sets": sets, "attacks": rows}, indent=1) + "\n"
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(text, "utf-8")
    if arguments.update:
        COMMITTED.write_text(text, "utf-8")
        return 0
    return compare(rows, json.loads(COMMITTED.read_text("utf-8"))["attacks"])


def compare(rows: list[dict[str, Any]], committed: list[dict[str, Any]]) -> int:
    """0 if the verdicts are the same; otherwise prints what differs and returns 1."""
    now = {tuple(row[k] for k in VERDICT) for row in rows}
    then = {tuple(row[k] for k in VERDICT) for row in committed}
    for mark, verdicts in (("now", now - then), ("committed", then - now)):
        for verdict in sorted(verdicts, key=str):
            print(f"{mark}: {dict(zip(VERDICT, verdict, strict=True))}", file=sys.stderr)
    return int(now != then)


if __name__ == "__main__":
    sys.exit(main())
